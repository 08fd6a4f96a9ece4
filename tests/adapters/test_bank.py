"""AdapterBank and attachment: slots, routing, files, and that nothing but the routed slot moves."""

import json

import peft
import pytest
import torch
from tiny import FAMILIES, model
from tiny_bank import ALL, IDS, bank_of, fill, logits
from torch.utils._python_dispatch import TorchDispatchMode

from tmem.adapters.bank import AdapterBank
from tmem.adapters.peft import load_adapter, save_adapter
from tmem.testing import assert_close


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_slot_changes_nothing_and_a_filled_one_only_its_rows(family):
    network = model(family)
    plain = logits(network, IDS)
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc()
    with bank.route([a, -1, b], learn=False):
        assert_close("Δ = 0", logits(network, IDS), plain, 1e-6)
        fill(bank, b)
        routed = logits(network, IDS)
    assert_close("rows without Δ", routed[:2], plain[:2], 1e-6)
    assert (routed[2] - plain[2]).abs().max() > 1e-3
    assert torch.equal(logits(network, IDS), plain)  # no route: the model itself
    bank.detach()
    assert not any("forward" in vars(m) for m in network.modules())
    assert torch.equal(logits(network, IDS), plain)


def test_generation_uses_a_slot_per_row():
    network = model()
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc()
    fill(bank, a, b, size=1.0)
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    ids = IDS[:1]
    alone = []
    for slot in (a, b, -1):
        with bank.route([slot], learn=False):
            alone.append(network.generate(ids, attention_mask=torch.ones_like(ids), **options))
    three = ids.expand(3, -1)
    with bank.route([a, b, -1], learn=False):
        together = network.generate(three, attention_mask=torch.ones_like(three), **options)
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(r.tolist()) for r in together}) > 1
    with bank.route([a], learn=False), pytest.raises(ValueError, match="num_return_sequences"):
        network.generate(ids, attention_mask=torch.ones_like(ids), num_return_sequences=2, num_beams=2, **options)


def test_reset_fork_snapshot_restore_copy_rows():
    network = model()
    bank = bank_of(network, slots=4)
    a = bank.alloc(rank=3, alpha=6.0, lr=0.5)
    fill(bank, a)
    bank.m[a] += 2
    bank.step_count[a] = 7
    fork = bank.fork(a)
    for matrix in (bank.param, bank.m, bank.v, bank.step_count, bank.rank, bank.scale, bank.hyper):
        assert torch.equal(matrix[fork], matrix[a])
    kept = bank.snapshot(a)
    bank.reset(a)
    assert not bank.param[a].any() and not bank.m[a].any() and int(bank.step_count[a]) == 0
    assert bank.param[fork].any() and float(bank.scale[a]) == 2.0
    bank.restore(a, kept)
    assert torch.equal(bank.param[a], bank.param[fork]) and int(bank.step_count[a]) == 7
    other = bank_of(model(seed=5), slots=1)
    other.alloc()
    with pytest.raises(ValueError, match="subspace"):
        other.restore(0, kept)


def test_slots_are_borrowed_for_a_block_and_given_back_whatever_happens_in_it():
    bank = bank_of(model(), slots=3)
    with bank.borrowed(2) as (a, b), bank.borrowed(5, 1) as rest:
        assert rest == [2] and {a, b} == {0, 1} and bank.is_zero(b)
        fill(bank, a, b)
        first, second = bank.snapshot(a), bank.snapshot(b)
        with pytest.raises(RuntimeError, match="0 of 3 slots are free, expected 1"), bank.borrowed(1):
            pass
    with pytest.raises(ZeroDivisionError), bank.holding([first, None, second, first]) as (x, none, y, again):
        assert none == -1 and x == again != y
        assert torch.equal(bank.param[x], first.param) and torch.equal(bank.param[y], second.param)
        raise ZeroDivisionError
    slot, other = bank.alloc(), bank_of(model(seed=5), slots=1)
    with other.borrowed(1) as (foreign,):
        foreign = other.snapshot(foreign)
    refused = (([first, second, bank.snapshot(slot)], RuntimeError, "2 of 3 slots"), ([first, foreign], ValueError, "subspace"))
    for snapshots, error, match in refused:
        with pytest.raises(error, match=match), bank.holding(snapshots):
            pass
        assert bank.used == [True, False, False]
    with bank.holding([None]) as slots:
        assert slots == [-1]


class Calls(TorchDispatchMode):
    """Counts what the dispatcher is asked within the block."""

    def __enter__(self):
        self.count = 0
        return super().__enter__()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += 1
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("count", [1, 512])
@pytest.mark.parametrize(
    ("verb", "most"),
    [("step", 8), ("zero_grad", 8), ("claim", 10), ("fork", 15)],
)
def test_a_verb_asks_the_dispatcher_as_often_for_512_slots_as_for_one(verb, most, count):
    bank = bank_of(model(), slots=513, copy=True)
    slots = bank.claim(count) if verb != "claim" else count
    with Calls() as calls:
        getattr(bank, verb)(slots[0] if verb == "fork" else slots)
    assert calls.count <= most


@pytest.mark.parametrize("train_a", [False, True])
def test_many_slots_are_taken_and_cleared_as_one_is(train_a):
    """Whatever their rows held before."""
    bank = bank_of(model(), slots=7, train_a=train_a, copy=True)
    for matrix in (bank.param, bank.grad, bank.m, bank.v, bank.copy):
        matrix.fill_(torch.nan)
    bank.step_count.fill_(9)
    one = bank.alloc()
    many = bank.claim(9)
    assert many == [1, 2, 3, 4, 5, 6]
    for slot in many:
        for matrix in (bank.param, bank.m, bank.v, bank.copy, bank.step_count, bank.rank, bank.scale, bank.hyper):
            assert torch.equal(matrix[slot], matrix[one])
    assert torch.equal(bank.copy, bank.param.bfloat16())
    assert not bank.grad.any() and not bank.step_count.any() and not bank.m.any()
    assert bool(bank.param.any()) == train_a


@pytest.mark.parametrize("slots", [10**13, 10**16])
def test_more_slots_than_there_is_memory_for_are_refused(slots):
    network = model()
    with pytest.raises(ValueError, match=rf"^AdapterBank: {slots} slots of rank 4 take [0-9,.]+ GiB, more than there is"):
        AdapterBank(network, slots, 4)
    assert not any("forward" in vars(module) for module in network.modules())


def test_slots_that_are_free_out_of_range_or_used_up_are_refused():
    bank = bank_of(model(), slots=1)
    with pytest.raises(ValueError, match="slot 0 is free"), bank.route([0]):
        pass
    slot = bank.alloc()
    with pytest.raises(RuntimeError, match="all 1 slots"):
        bank.alloc()
    with pytest.raises(ValueError, match="expected an int in 0..0, got 5"), bank.route([5]):
        pass
    bank.free(slot)
    for use in (bank.reset, bank.snapshot, bank.free, bank.delta_norm, lambda s: save_adapter(bank, s, "x")):
        with pytest.raises(ValueError, match="slot 0 is free"):
            use(slot)
    with pytest.raises(ValueError, match="rank: expected 1..4, got 9"):
        bank.alloc(rank=9)


def test_a_slot_that_changed_between_forward_and_backward_is_caught():
    network = model()
    bank = bank_of(network)
    slot = bank.alloc()
    for change in (lambda: bank.step([slot]), lambda: bank.reset(slot), lambda: bank.free(slot)):
        with bank.route([slot] * 3):
            loss = logits(network, IDS).square().mean()
        change()
        with pytest.raises(RuntimeError, match="slot 0 was changed"):
            loss.backward()


def test_modules_that_cannot_be_adapted_are_refused_by_name():
    network = model()
    with pytest.raises(ValueError, match="no module named 'gate'"):
        AdapterBank(network, 1, 2, targets=("gate",))
    with pytest.raises(ValueError, match="lm_head is tied to model.embed_tokens"):
        AdapterBank(network, 1, 2, targets=("lm_head",))
    with pytest.raises(ValueError, match="'up_proj' is a part of gate_up_proj, .*; name gate_proj as well, or gate_up_proj"):
        AdapterBank(model("glm4"), 1, 2, targets=("down_proj", "up_proj"))
    network.model.layers[1].self_attn.q_proj = torch.nn.Conv1d(64, 64, 1)
    with pytest.raises(ValueError, match="layers.1.self_attn.q_proj is a Conv1d"):
        AdapterBank(network, 1, 2, targets=("q_proj",))
    with pytest.raises(ValueError, match="rank: expected 1..64"):
        AdapterBank(model(), 1, 80)
    bank = bank_of(model())
    with pytest.raises(RuntimeError, match="detach the other bank first"):
        bank_of(bank.model)


@pytest.mark.parametrize("train_a", [False, True])
def test_gradients_are_those_of_autograd_on_dense_weights(train_a):
    """fp64 oracle: W + scale·BA as a leaf per row, one row at a time."""
    network = model(dtype=torch.float64)
    bank = bank_of(network, dtype=torch.float64, train_a=train_a)
    a, b = bank.alloc(rank=2, alpha=3.0), bank.alloc()
    fill(bank, a, b)
    slots = [a, b, a]
    with bank.route(slots):
        logits(network, IDS).square().mean(dim=(1, 2)).sum().backward()
    for site in bank.sites:
        site.want_b = torch.zeros_like(site.bt_grad)
        site.want = torch.zeros_like(site.a_grad) if train_a else None
    bank.detach()
    for row, slot in enumerate(slots):
        r, scale = int(bank.rank[slot]), float(bank.scale[slot])
        leaves, plain = [], []
        for site in bank.sites:
            fa = site.a[slot if train_a else 0, :r].detach().clone().requires_grad_()
            fb = site.bt[slot, :r].detach().clone().requires_grad_()
            leaves.append((fa, fb))
            plain.append(site.module.weight)
            w = site.module.weight.detach() + scale * fb.T @ fa
            del site.module._parameters["weight"]
            site.module.weight = w
        logits(network, IDS[row : row + 1]).square().mean().backward()
        for site, (fa, fb), w in zip(bank.sites, leaves, plain):
            del site.module.weight
            site.module._parameters["weight"] = w
            site.want_b[slot, :r] += fb.grad
            if train_a:
                site.want[slot, :r] += fa.grad
    for site in bank.sites:
        assert_close(f"dB {site.name}", site.bt_grad, site.want_b, 1e-12)
        if train_a:
            assert_close(f"dA {site.name}", site.a_grad, site.want, 1e-12)


@pytest.mark.parametrize("train_a", [False, True])
def test_peft_reads_what_save_writes_and_load_reads_what_peft_writes(tmp_path, train_a):
    network = model()
    bank = bank_of(network, train_a=train_a, last_layers=2)
    slot = bank.alloc(rank=3, alpha=1.5)
    fill(bank, slot)
    save_adapter(bank, slot, tmp_path / "ours")
    with bank.route([slot] * 3, learn=False):
        ours = logits(network, IDS)
    theirs = peft.PeftModel.from_pretrained(model(), tmp_path / "ours")
    assert_close("logits in PEFT", logits(theirs, IDS), ours, 1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_adapter(bank, tmp_path / "theirs")
    used = [s.bt[:, :3] for s in bank.sites] + [s.a[:, :3] for s in bank.sites if train_a]
    assert all(torch.equal(part[again], part[slot]) for part in used)
    with bank.route([again] * 3, learn=False):
        assert_close("logits after load", logits(network, IDS), ours, 1e-6)


def test_load_takes_an_adapter_made_by_peft_and_refuses_what_does_not_fit(tmp_path):
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    theirs = peft.get_peft_model(model(), config).eval()
    theirs.save_pretrained(tmp_path / "a")
    network = model()
    bank = bank_of(network, train_a=True)
    slot = load_adapter(bank, tmp_path / "a")
    with bank.route([slot] * 3, learn=False):
        assert_close("logits", logits(network, IDS), logits(theirs, IDS), 1e-5)
    shared = bank_of(model())
    with pytest.raises(ValueError, match="train_a=True"):
        load_adapter(shared, tmp_path / "a")
    with pytest.raises(ValueError, match="has rank 3, this bank stores 2"):
        load_adapter(bank_of(model(), rank=2), tmp_path / "a")
    with pytest.raises(ValueError, match="which this bank does not"):
        load_adapter(AdapterBank(model(), 1, 4, targets=("q_proj",), train_a=True), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="adapter_config.json is missing"):
        load_adapter(shared, tmp_path)
    config_file = tmp_path / "a" / "adapter_config.json"
    fields = json.loads(config_file.read_text())
    for change, sentence in (
        ({"r": 0}, "expected r >= 1"),
        ({"lora_alpha": None}, "a number lora_alpha"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ):
        config_file.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=sentence):
            load_adapter(bank_of(model(), train_a=True), tmp_path / "a")
    assert not any(shared.used)


def test_an_adapter_whose_a_differs_in_the_last_bits_only_is_taken(tmp_path):
    """The subspace is an SVD: other threads or another machine round it otherwise."""
    bank = bank_of(model())
    slot = bank.alloc()
    fill(bank, slot)
    save_adapter(bank, slot, tmp_path / "a")
    twin = bank_of(model())
    for site in twin.sites:
        site.a.mul_(1 + 1e-5)
    assert torch.equal(twin.param[load_adapter(twin, tmp_path / "a")], bank.param[slot])
    with pytest.raises(ValueError, match="has another A"):
        load_adapter(bank_of(model(), init="random"), tmp_path / "a")


def gradients_of(network, bank, slots, **options):
    """Gradient rows after one backward, which runs when the route is closed."""
    with bank.route(slots, **options):
        loss = logits(network, IDS)[:, :5].square().mean()
    loss.backward()
    grad = bank.grad.clone()
    bank.grad.zero_()
    return grad


def test_layers_recomputed_in_backward_run_with_the_route_they_had():
    network = model()
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc()
    fill(bank, a, b)
    network.train()
    want = gradients_of(network, bank, [a, -1, b])
    assert want.any()
    network.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(gradients_of(network, bank, [a, -1, b]), want)
    with bank.route([b, b, b]):  # another route is open when the first one's layers are recomputed
        assert torch.equal(gradients_of(network, bank, [a, -1, b]), want)
    network.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match="use_reentrant=True gives adapters no gradient"):
        gradients_of(network, bank, [a, -1, b])
    bank.detach()
    assert not any(hasattr(vars(m).get("_gradient_checkpointing_func"), "tmem_inner") for m in network.modules())


def test_adapters_do_no_work_on_padding():
    """With lengths, padded positions are the base model's; real ones and the gradients keep every bit."""
    network = model()
    plain = logits(network, IDS)
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc()
    fill(bank, a, b)
    lengths = [7, 5, 6]
    with torch.no_grad():
        with bank.route([a, b, -1]):
            padded = logits(network, IDS)
        with bank.route([a, b, -1], lengths=lengths) as route:
            real = logits(network, IDS)
            assert route.segments(IDS[..., None]).slot.tolist() == [a, -1, b, -1, -1, -1]
        site = bank.sites[0]
        x = torch.randn(3, 7, site.module.in_features)
        with bank.route([a, b, -1], lengths=lengths):
            y = site.module(x)
        base = torch.nn.functional.linear(x, site.module.weight, site.module.bias)
    for row, n in enumerate(lengths):
        assert torch.equal(real[row, :n], padded[row, :n])
        assert torch.equal(y[row, n:], base[row, n:])
    assert torch.equal(gradients_of(network, bank, [a, b, a], lengths=[5, 5, 5]), gradients_of(network, bank, [a, b, a]))
    assert torch.equal(logits(network, IDS), plain)
    for bad in ([7, 5], [7, 5, -1]):
        with pytest.raises(ValueError, match="lengths: expected 3 token counts, one per row"):
            with bank.route([a, b, -1], lengths=bad):
                pass
    with bank.route([a, b, -1], lengths=[9, 1, 1]), pytest.raises(ValueError, match="row of 9 tokens .* saw 7"):
        logits(network, IDS)


def test_a_slot_freed_while_it_is_routed_is_refused():
    network = model()
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc()
    with bank.route([a, a, -1]):
        bank.free(b)
        logits(network, IDS)
        bank.free(a)
        with pytest.raises(RuntimeError, match=f"slot {a} was freed while it is routed"):
            logits(network, IDS)


@pytest.mark.parametrize("train_a", [False, True])
def test_what_a_gpu_does_otherwise_is_the_same_function(train_a):
    """Projections that share one read of their input, single rows by lora_decode_, and a bf16 copy for these."""
    network = model()
    bank = bank_of(network, train_a=train_a, copy=True)
    a, b = bank.alloc(rank=3), bank.alloc()
    fill(bank, a, b)
    assert [len(s.together) for s in bank.sites[:7]] == [1, 2, 2, 3, 1, 3, 3]
    one = IDS[:, :1]
    want = gradients_of(network, bank, [a, -1, b])
    with torch.no_grad(), bank.route([a, -1, b]):
        many, single = logits(network, IDS), logits(network, one)
    bank.reads_once = True
    assert torch.equal(gradients_of(network, bank, [a, -1, b]), want)
    with torch.no_grad(), bank.route([a, -1, b]):
        assert torch.equal(logits(network, IDS), many)
    bank.decodes_rows = True
    for slot in (a, b):
        bank.written(slot)
    bank.param.fill_(float("nan"))  # decode reads the copy
    with torch.no_grad(), bank.route([a, -1, b]):
        assert_close("decode", logits(network, one), single, 4e-3)


def test_the_copy_follows_every_write(tmp_path):
    network = model()
    bank = bank_of(network, copy=True)
    slot = bank.alloc()

    def follows():
        return torch.equal(bank.copy, bank.param.to(torch.bfloat16))

    bank.grad[slot] = torch.randn(bank.grad.shape[1])
    bank.step([slot])
    assert follows() and bank.copy[slot].any()
    save_adapter(bank, slot, tmp_path / "a")
    kept = bank.snapshot(slot)
    other = bank.fork(slot)
    assert follows() and torch.equal(bank.copy[other], bank.copy[slot])
    bank.reset(slot)
    assert follows() and not bank.copy[slot].any()
    bank.restore(slot, kept)
    assert follows() and bank.copy[slot].any()
    load_adapter(bank, tmp_path / "a")
    assert follows()


def test_biases_alone_are_trained_under_a_route_that_learns_nothing():
    """Against the same Δ merged into the weights."""
    network, merged = model("qwen2"), model("qwen2")
    bank = bank_of(network)
    slot = bank.alloc()
    fill(bank, slot)
    for one in (network, merged):
        for name, p in one.named_parameters():
            p.requires_grad_(name.endswith("bias"))
    layers = dict(merged.named_modules())
    with torch.no_grad():
        for site in bank.sites:
            a, b = (site.of(site.a, slot) if bank.train_a else site.a)[0], site.of(site.bt, slot)[0]
            layers[site.name].weight += float(bank.scale[slot]) * b.T @ a
    with bank.route([slot] * 3, learn=False):
        network(IDS).logits.square().mean().backward()
    merged(IDS).logits.square().mean().backward()
    biases = [(p.grad, q.grad) for (n, p), q in zip(network.named_parameters(), merged.parameters()) if n.endswith("bias")]
    assert biases and all(got is not None for got, _ in biases)
    for got, want in biases:
        assert_close("bias", got, want, 1e-4)


def test_factors_that_do_not_fit_change_nothing():
    bank = bank_of(model())
    before, subspace = [f.clone() for f in bank.factors], bank.subspace
    last = [*bank.factors[:-1], torch.zeros(7, 5)]
    for factors, why in ((bank.factors[:2], "factors, got 2"), (last, rf"factor {len(last) - 1} of shape .*, got \[7, 5\]"),
                         ([f[:1] for f in bank.factors], r"factor 0 of shape")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^take: expected .*{why}"):
            bank.take(factors)
        assert all(torch.equal(a, b) for a, b in zip(before, bank.factors)) and bank.subspace == subspace


def test_a_setting_that_is_no_number_takes_no_slot():
    bank = bank_of(model(), slots=2)
    for options in ({"lr": "0.1"}, {"rank": 1.5}, {"alpha": float("nan")}, {"alpha": float("inf")}):
        for _ in range(3):
            with pytest.raises((ValueError, TypeError)):
                bank.alloc(**options)
    assert not any(bank.used)
    slot = bank.alloc(alpha=-2.0)
    fill(bank, slot)
    assert bank.delta_norm(slot) > 0
    bank.free(slot)
    with pytest.raises(KeyError), bank.borrowed(2) as slots:
        bank.free(slots[0])
        raise KeyError
    assert not any(bank.used)


def test_a_name_that_is_no_setting_takes_no_slot():
    bank = bank_of(model())
    with pytest.raises(ValueError, match="got 'lrr'"):
        bank.alloc(lrr=1.0)
    assert not any(bank.used)


def test_delta_norm_is_that_of_the_dense_product():
    bank = bank_of(model())
    slot = bank.alloc(rank=2, alpha=5.0)
    fill(bank, slot)
    dense = sum(float((2.5 * s.bt[slot, :2].T @ s.a[0, :2]).square().sum()) for s in bank.sites) ** 0.5
    assert bank.delta_norm(slot) == pytest.approx(dense, rel=1e-5)


def test_matches_peft_and_torch_adamw_over_twenty_steps():
    """Promise 5: relative RMS <= 2e-5 in fp32 after 20 AdamW steps, <= 1e-10 in fp64."""
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-10)):
        network = model(dtype=dtype)
        bank = bank_of(network, slots=2, dtype=dtype)
        busy, slot = bank.alloc(), bank.alloc()
        bank.configure(slot, lr=1e-2, weight_decay=0.1, clip=0.5)
        theirs = peft.get_peft_model(model(dtype=dtype), peft.LoraConfig(r=4, lora_alpha=4, target_modules=list(ALL))).to(dtype)
        weights = {}
        for site in bank.sites:
            module = theirs.base_model.model.get_submodule(site.name)
            module.lora_A["default"].weight.data = site.a[0].clone()
            module.lora_A["default"].weight.requires_grad_(False)
            weights[site.name] = module.lora_B["default"].weight
        optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=0.1)
        for step in range(20):
            ids = torch.randint(1, 160, (2, 9), generator=torch.Generator().manual_seed(step))
            with bank.route([slot, busy]):
                out = logits(network, ids)
                torch.nn.functional.cross_entropy(out[0, :-1], ids[0, 1:]).backward()
            bank.step([slot])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits(theirs, ids[:1])[0, :-1], ids[0, 1:]).backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 0.5)
            optimizer.step()
        ours = torch.cat([s.bt[slot].T.flatten() for s in bank.sites])
        reference = torch.cat([weights[s.name].detach().flatten() for s in bank.sites])
        assert_close(str(dtype), ours, reference, tolerance)
        assert not bank.param[busy].any()
        bank.detach()
