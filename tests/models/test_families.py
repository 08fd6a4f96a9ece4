"""Every family, run in pieces, is what transformers computes: in a full pass, behind a frozen trunk, and token by token.

Norms, biases and router weights are random as well: fresh ones are all ones or zeros, and would hide one that is left out.
"""

import contextlib

import peft
import pytest
import tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny import MORE, Letters, pairs
from tiny_agent import CONFIG, agent_of
from tiny_chat import tokenizer
from wrong import experts_unfilled, window_of_columns

from tmem import cli
from tmem.adapters.bank import AdapterBank
from tmem.adapters.peft import load_adapter, save_adapter
from tmem.agent.agent import Agent
from tmem.agent.decode import decode
from tmem.agent.learn import learn
from tmem.models import forward as fw
from tmem.models import loading, masks
from tmem.models.experts import prepare
from tmem.models.families import APART, FAMILIES, FUSED, kinds, passed, trainable
from tmem.testing import assert_close

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
WINDOWED = [family for family in MORE if getattr(tiny.model(family).config, "sliding_window", None)]
EVERY = [(family, torch.float32) for family in MORE]
EVERY += [(family, torch.bfloat16) for family in ("gemma3_text", "qwen3_moe", "phi3", "mistral+window")]
LENGTHS = (7, 23, 24, 25, 61, 130)  # below a window of 24 tokens, at it, and well above


def model(family, dtype=torch.float32, **sizes):
    """A tiny model none of whose parameters is as it began."""
    network = tiny.model(family, dtype=dtype, initializer_range=0.1, **sizes)
    with torch.no_grad():
        for i, (_, weight) in enumerate(p for p in network.named_parameters() if p[1].ndim == 1):
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i), dtype=dtype)
    return network


def texts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 160, (n,), generator=generator).tolist() for n in lengths]


@contextlib.contextmanager
def theirs_alone(network):
    """Nothing of tmem's inside of transformers' model."""
    network.set_experts_implementation("eager")
    yield
    prepare(network)


def theirs(network, ids):
    """transformers' own logits [T, V] of one text."""
    with theirs_alone(network):
        return network(input_ids=torch.tensor([ids])).logits[0]


def ours(network, rows, cut=None):
    """The pieces' logits of right-padded rows; cut: the trunk ends below this layer, and the rest runs on its own."""
    width = max(map(len, rows))
    ids = fw.pad(rows, width, fill=5, dummies=False)
    positions = torch.arange(width)[None]
    hidden = fw.embed(network, ids)
    if cut is not None:
        with torch.no_grad():
            hidden = fw.layers(network, hidden, positions, None, stop=cut)
    return fw.logits(network, fw.layers(network, hidden, positions, None, start=cut or 0))


def stepwise(network, rows, read):
    """The logits behind `read[i]` tokens of row i and behind each token after them, by the cache: a prefill, then steps."""
    starts = [row[:n] for row, n in zip(rows, read)]
    width, more = fw.bucket(max(read)), max(len(row) - n for row, n in zip(rows, read))
    cache = fw.KVCache(width + more)
    at = torch.arange(width)
    ids = fw.pad(starts, width, fill=5, dummies=False)
    hidden = fw.layers(network, fw.embed(network, ids), at[None], None, cache=cache)
    cache.advance(width)
    out = [fw.logits(network, hidden[range(len(rows)), [n - 1 for n in read]])]
    before = torch.tensor(read)[:, None]
    for step in range(more):
        new = torch.tensor([[row[n + step] if n + step < len(row) else 5] for row, n in zip(rows, read)])
        mask = fw.Branches(torch.zeros(1, step + 1, dtype=torch.int64), before, width).rows(step, step + 1)
        hidden = fw.layers(network, fw.embed(network, new), before + step, mask, cache=cache)
        cache.advance(1)
        out.append(fw.logits(network, hidden[:, 0]))
    return torch.stack(out, 1)


def test_every_family_is_tried():
    assert set(FAMILIES) == {name.partition("+")[0] for name in (*tiny.FAMILIES, *MORE)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", MORE)
def test_a_full_pass_is_the_model_whatever_the_padding(family, dtype):
    network, rows = model(family, dtype), texts()
    for cut in (None, 2):
        for row, got in zip(rows, ours(network, rows, cut)):
            assert_close(f"{len(row)} tokens", got[: len(row)], theirs(network, row), TOLERANCE[dtype])
    want = torch.stack([theirs(network, rows[5])[129], theirs(network, rows[2])[23]])
    some = fw.token_logits(network, fw.pad(rows, 130, dummies=False), [5, 2], [129, 23])
    assert_close("at positions", some, want, TOLERANCE[dtype])


@pytest.mark.parametrize("cut", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MORE)
def test_with_the_same_masks_it_is_the_model_to_the_bit(family, dtype, cut):
    """transformers takes masks as they are given, and would leave out or cut its own."""
    network, rows = model(family, dtype), texts()
    at = torch.arange(130)
    full = masks.causal(130).expand(len(rows), -1, -1, -1)
    seen = {"full_attention": full, "sliding_attention": full & (at[:, None] - at < 24)}
    if FAMILIES[network.config.model_type].windows != "some":
        seen = seen[kinds(network.config)[0]]
    with torch.no_grad():
        want = network(input_ids=fw.pad(rows, 130, fill=5, dummies=False), attention_mask=seen).logits
        assert torch.equal(ours(network, rows, cut), want.float())


@pytest.mark.parametrize("family", [family for family in MORE if "moe" not in family])  # a near tie sends a token elsewhere
def test_a_pass_with_gradients_in_bf16_is_as_near_as_the_model(family):
    """Short sequences have an attention of their own there, which takes masks and scales as well."""
    network, rows = model(family, torch.bfloat16), texts()
    with torch.enable_grad():
        got = ours(network, rows)
    for row, logits in zip(rows, got):
        assert_close(f"{len(row)} tokens", logits[: len(row)], theirs(network, row), 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", MORE)
def test_a_prefill_and_cached_steps_are_the_model(family, dtype):
    network, rows = model(family, dtype), texts()
    read = [5, 20, 21, 24, 40, 70]
    for row, n, got in zip(rows, read, stepwise(network, rows, read)):
        assert_close(f"{len(row)} tokens", got[: len(row) - n + 1], theirs(network, row)[n - 1 :], TOLERANCE[dtype])


def test_a_window_is_counted_in_tokens_of_ones_own_text():
    """Against the positions themselves: a trunk, two branches, and a column of padding behind each of the first two."""
    branches = torch.tensor([[0] * 6 + [-1] + [1] * 7 + [-1] + [2] * 9])
    positions = torch.tensor([[*range(6), -1, *range(6, 13), -1, *range(6, 15)]])
    padding = branches < 0
    mask = fw.Branches(branches).rows(0, 24) & ~padding[:, None, None] | torch.eye(24, dtype=torch.bool)
    for window in (1, 2, 5, 8, 24, 100):
        near = positions[:, None, :, None] - positions[:, None, None, :] < window
        assert torch.equal(masks.windowed(mask, window)[:, :, ~padding[0]], (mask & near)[:, :, ~padding[0]]), window
    assert masks.windowed(mask, 24) is mask, "nothing is made where nothing is out of sight"


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_goes_on_where_a_prompt_is_read_in_two_pieces(family):
    """Columns of padding stand between the beginning, the rest and what is generated."""
    network, prompts, begins = model(family), texts((30, 70, 100)), [17, 17, 50]
    want = decode(network, prompts, end=-1, max_new=30)
    for fixed in (False, True):
        got = decode(network, prompts, begins=begins, end=-1, max_new=30, fixed=fixed)
        assert [g.ids for g in got] == [g.ids for g in want]
        assert [p for g in got for p in g.logprobs] == pytest.approx([p for g in want for p in g.logprobs], abs=1e-4)
    wrong = window_of_columns.decode(decode, network, prompts, begins=begins, end=-1, max_new=30)
    assert [g.ids for g in wrong] != [g.ids for g in want]


@pytest.mark.parametrize("family", WINDOWED)
def test_what_is_out_of_a_window_changes_nothing(family):
    """Of layers that all see 24 tokens, the last of four sees 93 tokens back."""
    network = model(family, layer_types=["sliding_attention"] * 4) if "3" in family else model(family)
    (ids,) = texts((130,))
    changed = [ids[0] + 1 if ids[0] < 100 else ids[0] - 1, *ids[1:]]
    moved = (ours(network, [ids]) - ours(network, [changed]))[0].abs().amax(-1) > 0
    assert moved[:93].any() and not moved[93:].any()


@pytest.mark.parametrize("family", MORE)
def test_a_row_has_the_bits_it_has_alone(family):
    network, rows = model(family), texts((70, 90, 81, 96))
    rows = [row + [5] * (96 - len(row)) for row in rows]
    together = ours(network, rows)
    for i, row in enumerate(rows):
        assert torch.equal(ours(network, [row])[0], together[i]), i


def test_an_experts_products_have_rows_that_do_not_depend_on_neighbours():
    """At sizes where a product of a few rows is rounded by how many there are."""
    network = tiny.model("qwen3_moe", hidden_size=256, moe_intermediate_size=192, num_hidden_layers=1)
    experts, generator = network.model.layers[0].mlp.experts, torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 256, generator=generator)
    index = torch.rand(64, 8, generator=generator).topk(3).indices
    weights = torch.rand(64, 3, generator=generator)
    want = experts(hidden, index, weights)

    def apart():
        return all(
            torch.equal(experts(hidden[i : i + n], index[i : i + n], weights[i : i + n]), want[i : i + n])
            for n in (1, 4, 7, 20)
            for i in range(0, 64, n)
        )

    assert apart() and not experts_unfilled.compute(apart)
    with theirs_alone(network):
        assert_close("experts", want, experts(hidden, index, weights), 1e-6)


def test_experts_are_not_trained_and_how_many_a_token_passes_is_known():
    network = tiny.model("qwen3_moe+dense")
    network.set_experts_implementation("grouped_mm")
    with pytest.raises(ValueError, match="experts by 'grouped_mm', whose rounding depends on a row's neighbours; call tmem"):
        decode(network, [[3, 4, 5]], end=0, max_new=2)
    agent = Agent.build(network, Letters(), CONFIG, 1)
    assert agent.model.config._experts_implementation == APART
    sparse, dense = network.model.layers[0], network.model.layers[1]
    own = sum(weight.numel() for weight in sparse.mlp.experts.parameters())
    assert passed(sparse, network.config) == sum(weight.numel() for weight in sparse.parameters()) - own * 2 // 4
    assert passed(dense, network.config) == sum(weight.numel() for weight in dense.parameters())
    with pytest.raises(ValueError, match="train: the model is of family 'qwen3_moe', a mixture of experts, whose weights are"):
        trainable(network.config)
    trainable(tiny.model().config)


@pytest.mark.parametrize("name", ["0.mlp.experts.3.up_proj", "2.mlp.experts.7.down_proj"])
def test_a_mixture_that_lacks_a_weight_of_one_expert_is_refused(name, tmp_path):
    """transformers joins those of all experts when it loads."""
    loading.save_model(tiny.model("qwen3_moe", vocab_size=400), tokenizer(), tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights[f"model.layers.{name}.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(loading.ModelError, match="does not load as a causal language model|config.json asks for"):
        loading.load_model(tmp_path / "m")


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_whole_weights_of_a_mixture_are_not_trained(verb, tmp_path):
    loading.save_model(tiny.model("qwen3_moe", vocab_size=400), tokenizer(), tmp_path / "m")
    out = ["--out", str(tmp_path / "out"), "--preset", "stream"] if verb == "train" else []
    done = CliRunner().invoke(cli.main, [verb, "--model", str(tmp_path / "m"), *out])
    assert done.exit_code == 2 and "a mixture of experts, whose weights are not trained" in done.output


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *MORE])
def test_greedy_decoding_is_that_of_transformers(family):
    network, prompts = model(family), texts((3, 11, 30, 61))
    got = decode(network, prompts, end=-1, max_new=40)
    for fixed in (False, True):
        assert [g.ids for g in decode(network, prompts, end=-1, max_new=40, fixed=fixed)] == [g.ids for g in got]
    for prompt, generation in zip(prompts, got):
        logits = theirs(network, prompt + generation.ids)[len(prompt) - 1 : -1].log_softmax(-1)
        assert logits.argmax(-1).tolist() == generation.ids
        assert torch.tensor(generation.logprobs).allclose(logits.amax(-1), atol=1e-4)


@pytest.mark.parametrize("family, dtype", EVERY)
def test_an_episode_learns_and_decodes_the_same_bits_alone_and_among_others(family, dtype):
    jobs = [pairs(6, "a"), pairs(3, "bb"), pairs(9, "c")]
    together = agent_of(family=family, dtype=dtype)
    slots = [together.bank.alloc() for _ in jobs]
    learned = learn(together.model, together.bank, [*zip(slots, jobs)], together.chat, CONFIG.learn)
    prompts, options = texts((5, 40, 65)), {"end": -1, "max_new": 12}
    said = decode(together.model, prompts, bank=together.bank, slots=slots, **options)
    for slot, job, result, prompt, generation in zip(slots, jobs, learned, prompts, said):
        alone = agent_of(family=family, dtype=dtype)
        own = alone.bank.alloc()
        assert learn(alone.model, alone.bank, [(own, job)], alone.chat, CONFIG.learn) == [result]
        assert torch.equal(alone.bank.param[own], together.bank.param[slot])
        assert decode(alone.model, [prompt], bank=alone.bank, slots=[own], **options) == [generation]
        assert result.loss_after < result.loss_before


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *MORE])
def test_what_was_learned_is_a_peft_adapter(family, tmp_path):
    agent, ids = agent_of(family=family), torch.tensor(texts((40,)))
    slot = agent.bank.alloc()
    learn(agent.model, agent.bank, [(slot, pairs(4))], agent.chat, CONFIG.learn)
    save_adapter(agent.bank, slot, tmp_path / "m")
    again = load_adapter(agent.bank, tmp_path / "m")
    assert torch.equal(agent.bank.param[again], agent.bank.param[slot])
    with agent.bank.route([slot], learn=False):
        got = ours(agent.model, ids.tolist())
    loaded = peft.PeftModel.from_pretrained(tiny.model(family), tmp_path / "m")
    assert_close("logits in PEFT", got, loaded(input_ids=ids).logits, 1e-5)
    assert (got - theirs(agent.model, ids[0].tolist())).norm() > 1e-2 * got.norm()


EVERY_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("family", ["glm4", "phi3"])
def test_projections_that_are_one_layer_are_adapted_as_one(family, tmp_path):
    """Names of the parts and names of the layers mean the same, and gradients are those of the layers themselves."""
    network, (ids,) = model(family, torch.float64), texts((40,))
    banks = []
    fused = tuple(name for name in FUSED if name in FAMILIES[family].fused)
    plain = tuple(name for name in EVERY_LAYER if not any(name in FUSED[one] for one in fused))
    for targets in (EVERY_LAYER, (*fused, *plain)):
        bank = AdapterBank(network, 1, 4, targets=targets, train_a=True, dtype=torch.float64)
        slot = bank.alloc()
        bank.param[slot] += 0.05 * torch.randn(bank.param.shape[1], generator=torch.Generator().manual_seed(0))
        with bank.route([slot], learn=True):
            ours(network, [ids])[0].logsumexp(-1).sum().backward()
        bank.detach()
        banks.append(bank)
    assert [site.name for site in banks[0].sites] == [site.name for site in banks[1].sites]
    assert torch.equal(banks[0].grad, banks[1].grad)
    save_adapter(banks[0], 0, tmp_path / "m")
    loaded = peft.PeftModel.from_pretrained(model(family, torch.float64), tmp_path / "m", is_trainable=True)
    loaded(input_ids=torch.tensor([ids])).logits[0].logsumexp(-1).sum().backward()
    named = dict(loaded.named_parameters())
    for site in banks[0].sites:
        b = named[f"base_model.model.{site.name}.lora_B.default.weight"].grad
        assert_close(site.name, site.bt_grad[0].T, b, 1e-5)


@pytest.mark.parametrize("family", MORE)
def test_a_folder_of_the_family_loads(family, tmp_path):
    network, (ids,) = model(family, vocab_size=400), texts((61,))
    loading.save_model(network, tokenizer(), tmp_path / "m")
    again, _ = loading.load_model(tmp_path / "m", dtype=torch.float32, device="cpu")
    assert torch.equal(ours(again, [ids]), ours(network, [ids]))
    named = {name for name, _ in loading.outline(tmp_path / "m")[0].named_parameters()}
    assert named == {name for name, _ in network.named_parameters()}
