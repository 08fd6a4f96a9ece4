"""One token of every row through a decoder's layers in few kernels, against the layers of transformers. On a CPU, where the
formulas serve; tests/ops/test_interpreted.py holds the kernels against the formulas."""

from functools import partial
from unittest.mock import patch

import pytest
import tiny
import tiny_bank
import torch

from tmem.adapters import token
from tmem.agent import steps
from tmem.agent.decode import decode
from tmem.agent.sampling import forced
from tmem.agent.steps import Spots, Steps
from tmem.models import forward as fw
from tmem.testing import rel_rms

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "mistral+window", "qwen3+windows"]
OTHERS = ["granite", "smollm3", "olmo2", "glm", "glm4", "phi3", "qwen3_moe"]
COLUMN = torch.tensor([40, 3, 0, 30])  # of each row's first token; the third row serves nobody


def spots(t, slots=(0, -1, -1, 1)):
    """What step t computes: rows of different lengths, each with a hole of padding before its own tokens."""
    at, first = torch.arange(512), COLUMN
    column = COLUMN + t * (COLUMN > 0)
    seen = (at < COLUMN[:, None] - 2) | ((at >= first[:, None]) & (at <= column[:, None]))
    return Spots(torch.tensor([5, 6, 0, 9]) + t, column + 1, column, list(slots), seen, 512)


ROWS = patch.object(token, "layers", partial(token.layers, rows=True))  # as a step on a CPU takes them


def logits(family, dtype, few, *, targets=tiny_bank.ALL, copy=None, cache=None, slots=(0, -1, -1, 1)):
    """[3 steps, 4 rows, V]"""
    with torch.inference_mode():
        network, bank = tiny.model(family, dtype=dtype), None
        if targets:
            exact = torch.float64 if dtype == torch.float64 else torch.float32
            bank = tiny_bank.bank_of(network, targets=targets, copy=copy, dtype=exact)
            tiny_bank.fill(bank, bank.alloc(), bank.alloc(rank=2))
            bank._refresh([0, 1])
        step = Steps(network, bank, 4, 512)
        step.few = few
        step.cache.memory.copy_(torch.randn(step.cache.memory.shape, generator=torch.Generator().manual_seed(1)))
        if cache is not None:
            cache(step.cache.memory)
        return torch.stack([step(spots(t, slots)).clone() for t in range(3)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [tiny_bank.ALL, tiny_bank.MLP, ("q_proj", "up_proj"), None], ids=str)
def test_it_computes_what_the_layers_compute(family, targets):
    """In fp64, in which transformers' norms and angles are still those of fp32."""
    few, many = (logits(family, torch.float64, x, targets=targets) for x in (True, False))
    assert rel_rms(few, many) < 2e-6
    with ROWS:
        assert rel_rms(logits(family, torch.float64, True, targets=targets), many) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_rounds_no_worse(family, dtype):
    """Off the same weights in fp64, beside transformers' layers, which round more often."""
    network = tiny.model(family)
    rounded = {name: p.to(dtype).double() for name, p in network.state_dict().items()}
    exact, kept = tiny.model, torch.float64

    def of_rounded(family, dtype):
        made = exact(family, dtype=dtype)
        made.load_state_dict(rounded)
        return made

    few, many = (logits(family, dtype, x, targets=None) for x in (True, False))
    with ROWS:
        rows = logits(family, dtype, True, targets=None)
    tiny.model = of_rounded
    try:
        want = logits(family, kept, False, targets=None)
    finally:
        tiny.model = exact
    for found in (few, rows):
        assert rel_rms(found, want) < 1.25 * rel_rms(many, want) + 1e-6


def test_a_row_has_its_bits_among_any_others():
    """Other slots and another NaN around it: the same bits."""

    def sick(memory):
        memory[:, :, 1] = float("nan")

    want = logits("qwen3", torch.float32, True)
    for slots in ((0, 1, 0, -1), (0, -1, 1, 1)):
        got = logits("qwen3", torch.float32, True, slots=slots, cache=sick)
        assert torch.equal(got[:, 0], want[:, 0])


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_families_that_it_knows(family):
    """The others' layers are not of this shape: they run as before."""
    assert token.known(tiny.model(family)) == (family in FAMILIES)
    assert not token.fits(tiny.model(family), torch.device("cpu"))
    assert token.fits_rows(tiny.model(family)) == token.fits_rows(tiny.model(family).bfloat16()) == (family in FAMILIES)


def test_what_it_does_not_know_is_left():
    assert not token.known(tiny.model("llama", hidden_act="relu"))
    assert not token.known(tiny.model("llama", dtype=torch.float64))
    assert not token.known(tiny.model("llama", head_dim=192)) and token.known(tiny.model("llama", head_dim=192).bfloat16())


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_decode_loop_takes_it(monkeypatch, family):
    """Rows that join, end and move, in steps of few kernels: the tokens of the loop as it was."""
    network = tiny.model(family)
    bank = tiny_bank.bank_of(network)
    tiny_bank.fill(bank, bank.alloc(), bank.alloc(rank=2))
    prompts = [[7, 8, 9], [11] * 30, [5, 6] * 20, [3], [99, 98]]
    wanted = dict(bank=bank, slots=[0, 1, -1, 0, 1], end=0, max_new=12, fixed=True)
    want = decode(network, prompts, **wanted)
    calls, plain = [], token.layers
    monkeypatch.setattr(steps.token, "fits", lambda model, device: True)
    monkeypatch.setattr(steps.token, "layers", lambda *args: (calls.append(1), plain(*args))[1])
    bank.__dict__.pop("_decode_steps")
    got = decode(network, prompts, **wanted)
    assert calls and [g.ids for g in got] == [w.ids for w in want]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_cpu_decodes_by_rows(monkeypatch, family, dtype):
    """A row among others has the bits that it has alone, and is no further off the same weights in fp64 than by transformers'
    layers."""
    network, exact = tiny.model(family, dtype=dtype), tiny.model(family, dtype=torch.float64)
    exact.load_state_dict(network.state_dict())
    bank, wide = tiny_bank.bank_of(network), tiny_bank.bank_of(exact, dtype=torch.float64)
    for one in (bank, wide):
        tiny_bank.fill(one, one.alloc(), one.alloc(rank=2))
    for site, other in zip(wide.sites, bank.sites):
        site.a.copy_(other.a)
        site.bt.copy_(other.bt)
    prompts, slots = [[7, 8, 9], [11] * 30, [5, 6] * 20, [3], [99, 98]], [0, 1, -1, 0, 1]
    said = {str(i): [4] * 12 for i in range(5)}
    calls, plain = [], token.layers
    monkeypatch.setattr(token, "layers", lambda *args, **named: (calls.append(named), plain(*args, **named))[1])

    def found(which, network=network, bank=bank):
        with forced(said):
            some = decode(
                network, [prompts[i] for i in which], bank=bank, slots=[slots[i] for i in which], end=0, max_new=12,
                temperature=1.0, keys=[str(i) for i in which],
            )  # fmt: skip
        return torch.tensor([g.logprobs for g in some])

    together = found(range(5))
    assert calls and all(named["rows"] is True for named in calls)
    for i in range(5):
        assert torch.equal(found([i])[0], together[i])
    want = found(range(5), exact, wide)
    calls.clear()
    monkeypatch.setattr(token, "fits_rows", lambda model: False)
    theirs = found(range(5))
    assert not calls
    assert (together - want).abs().mean() < 1.1 * (theirs - want).abs().mean()


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "kernels"])
@pytest.mark.parametrize("name", ["q_proj", "o_proj", "gate_proj", "down_proj", "lm_head"])
def test_what_stands_beside_a_layer_is_added(monkeypatch, name, rows):
    """By a hook, as an adapter over few bits is: under a bank's Δ, on a layer without one, and on a CPU's rows."""
    network = tiny.model()
    bank = tiny_bank.bank_of(network)
    tiny_bank.fill(bank, bank.alloc())
    module = next(m for key, m in network.named_modules() if key.endswith(name))
    monkeypatch.setattr(token, "fits_rows", lambda model: rows)
    monkeypatch.setattr(token, "fits", lambda model, device: not rows)
    said = {"0": [4] * 6, "1": [5] * 6}

    def found(fits=True):
        bank.__dict__.pop("_decode_steps", None)
        with monkeypatch.context() as patch, forced(said):
            if not fits:
                patch.setattr(token, "fits_rows", lambda model: False)
                patch.setattr(token, "fits", lambda model, device: False)
            some = decode(
                network, [[7, 8, 9], [11] * 9], bank=bank, slots=[0, -1], end=0, max_new=6, temperature=1.0, keys=["0", "1"],
                fixed=not rows,
            )  # fmt: skip
        return torch.tensor([g.logprobs for g in some])

    before = found()
    module.register_forward_hook(
        lambda module, given, y: y + given[0].sum(-1, keepdim=True) * torch.linspace(0, 1, y.shape[-1])
    )
    after, theirs = found(), found(fits=False)
    assert (after - before).abs().max() > 1e-3
    assert (after - theirs).abs().max() < 1e-4


def test_autocast_to_another_dtype_is_left_to_the_layers(monkeypatch):
    calls, plain = [], token.layers
    monkeypatch.setattr(token, "layers", lambda *args, **named: (calls.append(1), plain(*args, **named))[1])
    for dtype, taken in ((torch.float32, False), (torch.bfloat16, True)):
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            decode(tiny.model(dtype=dtype), [[7, 8, 9]], end=0, max_new=3)
        assert bool(calls) == taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_bank_that_serves_nobody_changes_no_bit(dtype):
    network = tiny.model(dtype=dtype)
    want = decode(network, [[7, 8, 9], [11] * 30], end=0, max_new=6)
    bank = tiny_bank.bank_of(network)
    tiny_bank.fill(bank, bank.alloc())
    assert decode(network, [[7, 8, 9], [11] * 30], end=0, max_new=6) == want
    assert decode(network, [[7, 8, 9], [11] * 30], end=0, max_new=6, bank=bank, slots=[-1, -1]) == want


def test_the_last_norm_is_not_taken_twice():
    network = tiny.model()
    hidden = torch.randn(4, 64)
    assert torch.equal(fw.logits(network, fw.parts(network).norm(hidden), normed=True), fw.logits(network, hidden))
