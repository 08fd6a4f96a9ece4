"""Experts of a mixture under a bank: every (expert, slot) learns by itself, in one call of an op for each projection."""

import pytest
import tiny_bank
import torch
from asked import asked
from tiny import model
from tiny_bank import ALL, IDS, fill, logits
from wrong import experts_keep_used_gradients, experts_slot_first, experts_sorted

from tmem.adapters.bank import MLP
from tmem.adapters.layout import lay_out
from tmem.agent.decode import decode
from tmem.agent.steps import Steps
from tmem.models.experts import COPIED, fixed_shapes, sort
from tmem.testing import assert_close

NAN = float("nan")
MIXTURES = ["qwen3_moe", "qwen3_moe+dense"]
D = 64  # of the tiny models


def bank_of(network, slots=3, rank=4, **options):
    return tiny_bank.bank_of(network, slots, rank, **{"init": "random", **options})


def backward(network, bank, slots, ids=IDS, **options):
    with bank.route(slots, **options):
        logits(network, ids).square().mean(dim=(1, 2)).sum().backward()


def factors(bank, slot):
    """A and B of every site as leaves [E, r, ...] that require grad, A of all experts that share one the same."""
    r, found = int(bank.rank[slot]), {}
    for site in bank.sites:
        a = (site.of(site.a, slot) if bank.train_a else site.a)[:, :r]
        leaves = a.detach().clone(), site.of(site.bt, slot)[:, :r].detach().clone()
        found[site] = [leaf.requires_grad_() for leaf in leaves]
    return found


def by_itself(network, bank, slot, ids, leaves):
    """Logits by transformers' own loop over experts, on weights W + scale·BA, for one slot."""
    bank.detach()
    network.set_experts_implementation("eager")
    kept = []
    for site, (a, b) in leaves.items():
        name = site.parameter or "weight"
        weight = site.module._parameters.pop(name)
        kept.append((site.module, name, weight))
        delta = float(bank.scale[slot]) * b.mT @ a
        setattr(site.module, name, weight.detach() + (delta[0] if site.parameter is None else delta))
    try:
        return logits(network, ids)
    finally:
        for module, name, weight in kept:
            delattr(module, name)
            module._parameters[name] = weight
        network.set_experts_implementation("rows_apart")
        bank.attach()


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("targets", [ALL, MLP, ("down_proj",), ("q_proj", "gate_up_proj")], ids="+".join)
@pytest.mark.parametrize("family", MIXTURES)
def test_forward_and_gradients_are_those_of_a_loop_over_experts(family, targets, train_a):
    """In fp64, a slot with two rows, another rank, and a row without a slot; the second backward adds to the first."""
    network = model(family, dtype=torch.float64)
    bank = bank_of(network, targets=targets, dtype=torch.float64, train_a=train_a, slots=4)
    idle, a, b = bank.alloc(), bank.alloc(rank=2, alpha=3.0), bank.alloc()
    fill(bank, a, b)
    slots, ids = [a, b, a, -1], torch.cat([IDS, IDS[:1].flip(1)])
    for site in bank.sites:
        for grad in filter(lambda grad: grad is not None, (site.bt_grad, site.a_grad)):
            for slot in (idle, a, b):
                site.of(grad, slot)[:, : bank.rank[slot]] = NAN
    bank.zero_grad([idle, a, b])
    with bank.route(slots):
        ours = logits(network, ids)
        ours.square().mean(dim=(1, 2)).sum().backward()
    want = {}
    for row, slot in enumerate(slots):
        leaves = factors(bank, slot) if slot >= 0 else {}
        theirs = by_itself(network, bank, slot, ids[row : row + 1], leaves)
        assert_close(f"logits of row {row}", ours[row], theirs[0], 1e-12)
        if slot >= 0:
            theirs.square().mean().backward()
            for site, pair in leaves.items():
                for kind, leaf in zip("ab", pair):
                    want[site, slot, kind] = want.get((site, slot, kind), 0) + leaf.grad
    for times in (1, 2):
        grad = bank.grad.clone()
        assert not grad[idle].any()
        for (site, slot, kind), expected in want.items():
            if kind == "b" or train_a:
                rows = site.of(site.bt_grad if kind == "b" else site.a_grad, slot)
                r = expected.shape[1]
                assert_close(f"d{kind} {site.name}", rows[:, :r], times * expected, 1e-11)
                assert not rows[:, r:].any()
        backward(network, bank, slots, ids)


def test_an_expert_that_nobody_chose_has_no_gradient_after_a_step_has_used_it():
    network = model("qwen3_moe", num_experts=24)
    bank = bank_of(network, targets=MLP)
    slot = bank.alloc(lr=1e-2)
    fill(bank, slot)
    for site in bank.sites:
        site.of(site.bt_grad, slot).fill_(NAN)
    bank.zero_grad([slot])
    backward(network, bank, [slot], IDS[:1])
    chosen = [site.of(site.bt_grad, slot).flatten(1).any(1) for site in bank.sites]
    assert bank.grad.isfinite().all()
    assert all(0 < int(found.sum()) <= 21 for found in chosen)  # 7 tokens, 3 experts each
    before = [site.of(site.bt, slot).clone() for site in bank.sites]
    assert bank.step([slot]).isfinite().all()
    for site, found, was in zip(bank.sites, chosen, before):
        moved = (site.of(site.bt, slot) != was).flatten(1).any(1)
        assert torch.equal(moved, found)
    assert not bank.grad.any()
    for site in bank.sites:
        site.of(site.bt_squares, slot).fill_(NAN)
    backward(network, bank, [slot], IDS[:1])
    assert_close("norm", bank.step([slot])[0], bank._grad[slot].double().norm(), 1e-6)  # memory still holds what was used


def test_one_call_of_an_op_serves_all_experts_and_slots(monkeypatch):
    from tmem.adapters import attach

    network, calls = model("qwen3_moe", num_hidden_layers=1), []
    bank = bank_of(network, targets=MLP)
    slots = [bank.alloc() for _ in range(3)]
    for name in ("_shrink", "_expand_", "_gram_", "_backward_", "_decode_"):
        op = getattr(attach, name)
        monkeypatch.setattr(attach, name, lambda *a, op=op, name=name: calls.append(name) or op(*a))
    backward(network, bank, slots)
    # Forward and backward of two projections. What the first reads needs no gradient: nothing below it is learned.
    assert calls == ["_shrink", "_expand_"] * 2 + ["_backward_", "_expand_", "_gram_"]
    calls.clear()
    bank.decodes_rows = True
    with bank.route(slots, learn=False), torch.no_grad():
        logits(network, IDS[:, :1])
    assert calls == ["_decode_"] * 2


def test_single_rows_by_the_decode_kernel_are_those_of_a_pass():
    network = model("qwen3_moe")
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc(rank=1)
    fill(bank, a, b)
    found = []
    for bank.decodes_rows in (False, True):
        with bank.route([b, a, -1], learn=False), torch.no_grad():
            found.append(logits(network, IDS[:, :1]))
    assert_close("logits", found[1], found[0], 1e-6)
    assert (found[0] - logits(network, IDS[:, :1])).norm(dim=-1).gt(1e-3).flatten().tolist() == [True, True, False]


def test_steps_in_place_compute_experts_with_the_slots_of_now():
    network, prompts = model("qwen3_moe"), [[5, 9, 33] * 9, [7] * 30, [60, 2, 11]]
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc()
    fill(bank, a, b, size=0.5)
    said = {}
    for slots in ([a, -1, b], [b, a, -1]):
        for fixed in (False, True):
            found = decode(network, prompts, bank=bank, slots=slots, end=999, max_new=12, fixed=fixed)
            said[fixed, slots[0]] = [one.ids for one in found]
    assert all(said[False, slot] == said[True, slot] for slot in (a, b)) and said[True, a] != said[True, b]


@pytest.mark.parametrize("under", [False, True], ids=["base", "bank"])
@pytest.mark.parametrize("family", MIXTURES)
def test_a_step_at_fixed_addresses_asks_nothing_of_the_device(family, under, monkeypatch):
    """So that a GPU captures it; the same of a step that sorts by experts is seen."""
    network, found = model(family), []
    bank = bank_of(network) if under else None
    slots = [bank.alloc(), -1, bank.alloc()] if under else None
    run = Steps._run

    def noted(steps):
        run(steps)  # what is made once
        with asked() as said:
            run(steps)
        found.extend(said)

    monkeypatch.setattr(Steps, "_run", noted)
    options = {"bank": bank, "slots": slots, "end": 999, "max_new": 3, "fixed": True}
    prompts = [[5, 9, 33], [7] * 5, [60, 2]]
    decode(network, prompts, **options)
    assert found == []
    experts_sorted.compute(decode, network, prompts, **options)
    assert {"tolist", "unique_consecutive"} <= set(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_choices_that_are_multiplied_one_by_one_say_what_sorted_ones_say(dtype):
    """Of more rows than are multiplied at once, whoever else is there."""
    network = model("qwen3_moe", num_hidden_layers=1, dtype=dtype)
    bank = bank_of(network, dtype=dtype if dtype == torch.float64 else torch.float32)
    a, b = bank.alloc(), bank.alloc(rank=2)
    fill(bank, a, b)
    block, generator = network.model.layers[0].mlp, torch.Generator().manual_seed(0)
    x = torch.randn(24, 1, D, generator=generator).to(dtype)
    assert 24 * network.config.num_experts_per_tok > 2 * COPIED
    slots = [a, -1, b, b] * 6
    with torch.no_grad(), bank.route(slots, learn=False):
        want = block(x)
        with fixed_shapes():
            got = block(x)
    assert_close("experts", got.double(), want.double(), {torch.bfloat16: 2e-2, torch.float32: 1e-6}.get(dtype, 1e-14))
    for rows in ([0, 1, 2, 3], [7, 4, 12, 13, 22, 23, 0, 5], [6, 6, 6, 6]):
        with torch.no_grad(), bank.route([slots[i] for i in rows], learn=False), fixed_shapes():
            assert torch.equal(block(x[rows]), got[rows]), rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_slot_has_the_bits_it_has_alone(dtype):
    """Forward, gradient and step, whoever shares the batch and wherever it stands; 16 tokens a row, as a bucket has."""
    ids = torch.randint(1, 160, (4, 16), generator=torch.Generator().manual_seed(1))

    def run(order, wanted):
        network = model("qwen3_moe", dtype=dtype)
        bank = bank_of(network, slots=4)
        slots = [bank.alloc() for _ in range(4)]
        fill(bank, *slots)
        with bank.route([slots[i] for i in order]):
            out = logits(network, ids[order])
            out.float().square().mean(dim=(1, 2)).sum().backward()
        slot = slots[wanted]
        grad = bank.grad[slot].clone()
        bank.step([slot])
        return out[order.index(wanted)].detach(), grad, bank.param[slot]

    alone = run([2], 2)
    for order in ([0, 1, 2, 3], [3, 2, 0], [2, 1]):
        for got, want in zip(run(order, 2), alone):
            assert torch.equal(got, want)


def test_a_nan_stays_in_its_slot():
    """In one expert's B, then in everything of one slot; the others keep every bit."""
    network = model("qwen3_moe")
    bank = bank_of(network)
    a, b, c = (bank.alloc() for _ in range(3))
    fill(bank, a, b, c)

    def run():
        bank.zero_grad([a, b, c])
        with bank.route([a, b, c]):
            out = logits(network, IDS)
            out.square().mean(dim=(1, 2)).sum().backward()
        return out.detach(), bank.grad.clone()

    clean = run()
    site = bank.sites[0]
    chosen = int(site.of(site.bt_grad, b).flatten(1).any(1).nonzero()[0])
    for part in (site.of(site.bt, b)[chosen], bank.param[b]):
        part.fill_(NAN)
        for was, now in zip(clean, run()):
            assert torch.equal(now[[0, 2]], was[[0, 2]]) and not now[1].isfinite().all()
    before = bank.param.clone()
    norms = bank.step([a, b, c])
    assert norms.isfinite().tolist() == [True, False, True] and bank.step_count.tolist() == [1, 0, 1]
    assert torch.equal(bank.param[b].isnan(), before[b].isnan()) and not torch.equal(bank.param[a], before[a])


def test_padding_is_nobodys():
    network = model("qwen3_moe", dtype=torch.float64)
    bank = bank_of(network, dtype=torch.float64)
    a, b = bank.alloc(), bank.alloc()
    fill(bank, a, b)
    with bank.route([a, b], lengths=[7, 4]):
        out = logits(network, IDS[:2])
        (out[0].square().mean() + out[1, :4].square().mean()).backward()
    grad = bank.grad.clone()
    bank.zero_grad([a, b])
    with bank.route([b]):
        short = logits(network, IDS[1:2, :4])
        short.square().mean().backward()
    assert_close("logits", out[1, :4], short[0], 1e-12)
    assert_close("gradient", grad[b], bank.grad[b], 1e-10)


def test_clipping_and_norms_are_of_a_slot_not_of_an_expert():
    network = model("qwen3_moe")
    bank = bank_of(network, optimizer="sgd", targets=MLP)
    a = bank.alloc(lr=1.0, clip=0.5)
    fill(bank, a)
    backward(network, bank, [a, a, a])
    grad, before = bank.grad[a].clone(), bank.param[a].clone()
    assert_close("norm", bank.step([a])[0], grad.norm(), 1e-6)
    assert grad.norm() > 0.5
    assert_close("step", before - bank.param[a], grad * 0.5 / (grad.norm() + 1e-6), 1e-4)


def test_a_slot_is_a_row_of_experts_too():
    network = model("qwen3_moe+dense")
    bank = bank_of(network, train_a=True, slots=4)
    a = bank.alloc(rank=3, lr=1e-2)
    fill(bank, a)
    backward(network, bank, [a, a, a])
    bank.step([a])
    twin, kept = bank.fork(a), bank.snapshot(a)
    assert torch.equal(bank.param[twin], bank.param[a])
    with bank.route([a] * 3, learn=False):
        want = logits(network, IDS)
    with bank.route([twin] * 3, learn=False):
        assert torch.equal(logits(network, IDS), want)
    bank.reset(a)
    assert bank.delta_norm(a) == 0
    bank.restore(a, kept)
    with bank.route([a] * 3, learn=False):
        assert torch.equal(logits(network, IDS), want)
    bank.free(twin)
    new = bank.alloc()
    for site, factor in zip(bank.sites, bank.factors):
        assert not site.of(site.bt, new).any() and torch.equal(site.of(site.a, new), factor.expand(site.experts, -1, -1))
    dense = sum((2.0 * b.mT @ a).detach().square().sum().item() for a, b in factors(bank, a).values())
    bank.scale[a] = 2.0
    assert_close("‖ΔW‖", torch.tensor(bank.delta_norm(a)), torch.tensor(dense**0.5), 1e-5)


@pytest.mark.parametrize("init", ["sigma", "none", "sqrt", "unit_fro", "orthogonal"])
def test_a_subspace_is_that_of_all_experts_of_a_layer(init):
    """Σ is the root mean square over experts, so that A has the size that one expert's would have."""
    network = model("qwen3_moe", num_hidden_layers=1)
    bank = bank_of(network, init=init, targets=("down_proj",))
    stack = network.model.layers[0].mlp.experts.down_proj.flatten(0, 1).double()
    _, s, vh = torch.linalg.svd(stack)
    s = s[:4] / 8**0.5
    size = {"sigma": s, "sqrt": s.sqrt(), "unit_fro": s / s.norm()}.get(init, torch.ones_like(s))
    a = bank.factors[0].double()
    if init != "orthogonal":
        assert_close("A", a.T @ a, (vh[:4].T * size**2) @ vh[:4], 1e-4)
    assert_close("lengths", a.norm(dim=1), size, 1e-4)


@pytest.mark.parametrize("elements, experts", [([64, 128, 64], [1, 1, 1]), ([192, 64, 128, 64, 64], [1, 4, 1, 4, 1])])
def test_every_layer_has_a_place_of_its_own(elements, experts):
    offsets, size = lay_out(elements, experts)
    count = max(experts)
    taken = torch.zeros(size, dtype=torch.int64)
    for at, part, number in zip(offsets, elements, experts):
        for expert in range(number):
            taken[at + expert * size // count :][:part] += 1
    assert taken.max() == 1 and int(taken.sum()) == sum(e * n for e, n in zip(elements, experts))
    assert size % (64 * count) == 0 and (count > 1 or offsets == [0, 64, 192])


def test_rows_stand_by_expert_then_owner_then_token():
    index, owner = torch.tensor([[2, 0], [2, 1], [0, 2], [2, 0], [2, 3]]), torch.tensor([1, 0, 1, -1, 0])
    rows = sort(index, owner, 2)
    assert rows.segments == [(0, -1, 1), (0, 1, 2), (0, -1, 1), (1, 0, 1), (1, -1, 3), (2, -1, 1), (2, 0, 2), (2, 1, 2),
                             (2, -1, 3), (3, 0, 1), (3, -1, 3)]  # fmt: skip
    assert rows.products == [(0, 0, 4), (1, 4, 8), (2, 8, 16), (3, 16, 20)]
    token = rows.pair // 2
    assert torch.equal(token[rows.place], torch.arange(5)[:, None].expand(5, 2))
    assert token[9:13].tolist() == [1, 4, 0, 2] and rows.filling.tolist() == [3, 5, 6, 7, 13, 14, 15, 17, 18, 19]


def test_no_tokens():
    network = model("qwen3_moe")
    experts = network.model.layers[0].mlp.experts
    none = torch.zeros(0, 3)
    assert experts(torch.zeros(0, D), none.long(), none).shape == (0, D)


def test_experts_that_are_trained_have_the_gradient_of_the_loop():
    found = []
    for how in ("rows_apart", "eager"):
        network = model("qwen3_moe", dtype=torch.float64).requires_grad_(True)
        network.set_experts_implementation(how)
        logits(network, IDS).square().mean().backward()
        found.append([p.grad for p in network.parameters()])
    for got, want in zip(*found):
        assert_close("gradient", got, want, 1e-10)


def test_autocast_makes_of_experts_what_it_makes_of_linear_layers():
    """One layer, whose tokens choose the same experts in both."""
    network = model("qwen3_moe", num_hidden_layers=1)
    bank, experts = bank_of(network, targets=MLP), network.model.layers[0].mlp.experts
    slot, found = bank.alloc(), []
    fill(bank, slot)
    hidden = torch.randn(14, D)
    index = torch.rand(14, 8).topk(3).indices
    for on in (False, True):
        bank.zero_grad([slot])
        x = hidden.clone().requires_grad_()
        with bank.route([slot, -1]), torch.autocast("cpu", torch.bfloat16, enabled=on):
            y = experts(x, index, torch.full((14, 3), 0.5))
            y.float().square().mean().backward()
        found.append((y.detach(), x.grad, bank.grad[slot].clone()))
    for name, want, got in zip(("y", "dx", "gradient"), *found):
        assert_close(name, got, want, 0.02)


def test_a_copy_in_16_bits_is_what_experts_are_decoded_with():
    network = model("qwen3_moe", dtype=torch.bfloat16)
    bank = bank_of(network, copy=True)
    slot = bank.alloc()
    fill(bank, slot)
    bank.written(slot)
    bank.decodes_rows = True
    with bank.route([slot] * 3, learn=False), torch.no_grad():
        before = logits(network, IDS[:, :1])
        bank.param.zero_()
        assert torch.equal(logits(network, IDS[:, :1]), before)
        bank.written(slot)
        assert not torch.equal(logits(network, IDS[:, :1]), before)


def test_checkpointed_layers_compute_experts_with_their_route_again():
    network = model("qwen3_moe")
    bank = bank_of(network)
    a, b = bank.alloc(), bank.alloc()
    fill(bank, a, b)
    backward(network, bank, [a, -1, b])
    want = bank.grad.clone()
    bank.zero_grad([a, b])
    network.train().gradient_checkpointing_enable({"use_reentrant": False})
    backward(network, bank, [a, -1, b])
    assert torch.equal(bank.grad, want)


def test_a_batch_of_other_rows_than_the_routes_is_refused():
    network = model("qwen3_moe")
    bank = bank_of(network, targets=MLP)
    slot = bank.alloc()
    with bank.route([slot, slot], learn=False), pytest.raises(ValueError, match="saw a batch of 4 rows, but 2 slots"):
        logits(network, torch.ones(4, 3, dtype=torch.int64))
    bank.detach()
    assert not any("forward" in vars(m) for m in network.modules())


def test_compiled_models_compute_experts_outside_of_the_graph():
    network = model("qwen3_moe", num_hidden_layers=1)
    bank = bank_of(network)
    slot = bank.alloc()
    fill(bank, slot)
    with bank.route([slot] * 3):
        want = logits(network, IDS)
        want.square().mean().backward()
        grad = bank.grad.clone()
    bank.zero_grad([slot])
    with bank.route([slot] * 3):
        got = logits(torch.compile(network, backend="aot_eager"), IDS)
        got.square().mean().backward()
    assert_close("logits", got, want, 1e-6)
    assert_close("gradient", bank.grad, grad, 1e-5)


@pytest.mark.parametrize(
    "family, options, sentence",
    [
        ("qwen3_moe", {"targets": ("gate_proj",)}, "'gate_proj' is a part of gate_up_proj.*name up_proj as well"),
        ("qwen3_moe", {"targets": ("gate",), "rank": 2}, "gate is a Qwen3MoeTopKRouter"),
        ("qwen3_moe", {"targets": ("experts",)}, "experts is a Qwen3MoeExperts"),
        ("qwen3_moe", {"targets": ("wo",)}, "has no module named 'wo'"),
        ("qwen3_moe+dense", {"targets": ("up_proj", "gate_up_proj")}, "'up_proj' is a part of gate_up_proj"),
        ("qwen3_moe", {"init": "activation", "texts": [[1, 2, 3]]}, "activation looks at what linear layers read"),
    ],
)
def test_what_is_no_projection_of_experts_is_refused(family, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        bank_of(model(family), **options)


def test_layers_that_have_none_of_the_experts_are_refused():
    with pytest.raises(ValueError, match="the last 1 layers have no module named gate_up_proj; widen last_layers"):
        bank_of(model("qwen3_moe+dense", mlp_only_layers=[3]), targets=("gate_up_proj",), last_layers=1)


@pytest.mark.parametrize("change", ["other names", "a number of their own"])
def test_experts_of_another_kind_are_refused(change):
    network = model("qwen3_moe")
    experts = network.model.layers[2].mlp.experts
    if change == "other names":
        experts.gate_up_proj_bias = torch.nn.Parameter(torch.zeros(8, 96))
        sentence = "would leave out model.layers.2.mlp.experts of .*name some of q_proj"
    else:
        for name in ("gate_up_proj", "down_proj"):
            setattr(experts, name, torch.nn.Parameter(getattr(experts, name)[:4]))
        sentence = "differ in the number of experts"
    with pytest.raises(ValueError, match=sentence):
        bank_of(network)
    assert bank_of(network, targets=ALL[:4]).sites


@pytest.mark.parametrize(
    "wrong, check",
    [
        (experts_keep_used_gradients, test_an_expert_that_nobody_chose_has_no_gradient_after_a_step_has_used_it),
        (experts_slot_first, test_forward_and_gradients_are_those_of_a_loop_over_experts),
    ],
    ids=lambda x: x.__name__.rpartition(".")[2],
)
def test_a_wrong_way_is_found(wrong, check, monkeypatch):
    wrong.put(monkeypatch)
    with pytest.raises(AssertionError):
        check() if wrong is experts_keep_used_gradients else check("qwen3_moe", MLP, False)
