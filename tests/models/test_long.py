"""Long texts: memory grows as their length, and chunks of queries compute what the whole mask does."""

import pytest
import tiny
import torch
from allocated import peak
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from wrong import square_masks

from tmem.agent.decode import decode
from tmem.models import attention, masks
from tmem.models import forward as fw
from tmem.testing import assert_close

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
FAMILIES = ("llama", "mistral+window", "phi3+window", "gemma3_text", "smollm3+windows")


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        made = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max(self.elements, *made, 0) if made else self.elements
        return out


def numbers(length, rows=1):
    """A trunk of a fifth, and three branches of unlike lengths."""
    cuts = torch.tensor([length // 5, length // 2, length // 2 + 3])
    return torch.bucketize(torch.arange(length), cuts, right=True)[None].expand(rows, -1)


def positions_of(branches):
    """Where every token stands in its own text."""
    trunk = int((branches[0] == 0).sum())
    out = [torch.arange(trunk), *(trunk + torch.arange(int((branches[0] == n).sum())) for n in branches[0].unique()[1:])]
    return torch.cat(out)[None]


def passed(network, length, kind):
    """One pass over `length` tokens, with gradients where they are switched on."""
    ids = torch.randint(3, 160, (1, length), generator=torch.Generator().manual_seed(0))
    cache = fw.KVCache(length) if kind == "prefill" else None
    hidden, mask = fw.embed(network, ids), fw.Branches(numbers(length)) if kind == "branches" else None
    if torch.is_grad_enabled():
        hidden.requires_grad_()
    if kind == "continued":
        cache = fw.KVCache(length + 64)
        fw.layers(network, hidden[:, :64], torch.arange(64)[None], None, stop=2, cache=cache)
        cache.advance(64)
        mask = fw.Branches(torch.zeros(1, length, dtype=torch.int64), torch.tensor([[50]]), 64)
    out = fw.layers(network, hidden, torch.arange(length)[None], mask, stop=2, cache=cache)
    if torch.is_grad_enabled():
        out.sum().backward()


def largest(*arguments):
    with Largest() as seen:
        passed(*arguments)
    return seen.elements


@pytest.mark.parametrize("kind", ["alone", "branches", "prefill", "continued"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_no_tensor_of_a_pass_grows_as_the_square_of_its_length(family, kind):
    network = tiny.model(family)
    for grad in (False, True) if kind in ("alone", "branches") else (False,):  # keys and values are kept without gradients
        with torch.set_grad_enabled(grad):
            few, many = (largest(network, length, kind) for length in (2048, 4096))
            assert many <= 2.1 * few and many < 4096**2 / 3
            with pytest.raises(AssertionError):
                assert square_masks.compute(largest, network, 4096, kind) < 4096**2


@pytest.mark.parametrize("kind", ["alone", "branches"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_is_kept_for_backward_grows_as_the_length(family, kind):
    network = tiny.model(family)

    def kept(length):
        held = {}

        def keep(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            passed(network, length, kind)
        return sum(size for size, _ in held.values())

    few, many = kept(2048), kept(4096)
    assert many <= 2.1 * few
    with pytest.raises(AssertionError):
        assert square_masks.compute(kept, 4096) <= 2.1 * few


@pytest.mark.parametrize("kind", ["alone", "branches", "prefill", "continued"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_peak_of_a_pass_grows_as_its_length(family, kind):
    network = tiny.model(family)
    with torch.inference_mode():
        few, many = (peak(lambda n=n: passed(network, n, kind)) for n in (2048, 4096))
        assert many <= 2.1 * few
        with pytest.raises(AssertionError):
            assert square_masks.compute(peak, lambda: passed(network, 4096, kind)) <= 2.1 * few


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [33, 64, 130])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_of_queries_compute_what_the_whole_mask_does(monkeypatch, family, length, dtype):
    """Outputs and gradients, of texts alone and of those that share a row."""
    network = tiny.model(family, dtype=dtype)
    ids = torch.randint(3, 160, (3, length), generator=torch.Generator().manual_seed(1))
    branches, weights = numbers(length, 3), torch.randn(3, length, 64, generator=torch.Generator().manual_seed(2)).to(dtype)

    def found(mask, positions):
        with torch.enable_grad():
            hidden = fw.embed(network, ids).requires_grad_()
            out = fw.layers(network, hidden, positions, mask)
            return out.detach(), *torch.autograd.grad((out * weights).sum(), hidden)

    for mask, whole, positions in (
        (None, masks.causal(length), torch.arange(length)[None]),
        (fw.Branches(branches), fw.Branches(branches).rows(0, length), positions_of(branches)),
    ):
        monkeypatch.undo()
        want = found(whole, positions)
        monkeypatch.setattr(attention, "QUERIES", 32)
        for name, got, right in zip(("output", "gradient"), found(mask, positions), want):
            assert_close(name, got, right, TOLERANCE[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_those_of_transformers(family):
    """Longer than a chunk, and not by whole chunks."""
    network, length = tiny.model(family, max_position_embeddings=4096), attention.QUERIES + 301
    ids = torch.randint(3, 160, (1, length), generator=torch.Generator().manual_seed(0))
    hidden = fw.layers(network, fw.embed(network, ids), torch.arange(length)[None], None)
    assert_close("logits", fw.logits(network, hidden), network(input_ids=ids).logits, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_in_chunks_has_the_bits_it_has_alone(monkeypatch, family):
    monkeypatch.setattr(attention, "QUERIES", 32)
    network, branches = tiny.model(family), numbers(144, 4)
    hidden = fw.embed(network, torch.randint(3, 160, (4, 144), generator=torch.Generator().manual_seed(3)))
    for mask, own, positions in (
        (None, None, torch.arange(144)[None]),
        (fw.Branches(branches), fw.Branches(branches[:1]), positions_of(branches)),
    ):
        together = fw.layers(network, hidden, positions, mask)
        for row in range(4):
            assert torch.equal(fw.layers(network, hidden[row : row + 1], positions, own)[0], together[row]), row


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_goes_on_behind_its_beginning_is_read_in_chunks(monkeypatch, family):
    network, generator = tiny.model(family), torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 160, (n,), generator=generator).tolist() for n in (150, 170, 181)]
    options = {"begins": [17, 40, 50], "end": -1, "max_new": 8}
    want = decode(network, prompts, **options)
    monkeypatch.setattr(attention, "QUERIES", 32)
    got = decode(network, prompts, **options)
    assert [g.ids for g in got] == [g.ids for g in want]
    assert [p for g in got for p in g.logprobs] == pytest.approx([p for g in want for p in g.logprobs], abs=1e-4)


def test_what_a_cache_holds_must_be_said_to_be_seen():
    network, cache = tiny.model(), fw.KVCache(64)
    hidden = torch.randn(2, 32, 64)
    fw.layers(network, hidden, torch.arange(32)[None], None, cache=cache)
    cache.advance(32)
    with pytest.raises(ValueError, match="the cache holds 32 columns; mask must say which"):
        fw.layers(network, hidden, 32 + torch.arange(32)[None], None, cache=cache)


@pytest.mark.parametrize("window", [1, 2, 16, 17, 40])
def test_a_band_is_a_window_behind_a_causal_mask(window):
    before = masks.shown(window - 1)
    for start in (0, 32, 96):
        want = masks.windowed(masks.causal(128), window)[0, 0, start : start + 32, max(0, start - before) : start + 32]
        found = masks.band(32, before, window, torch.zeros(1))[:, max(0, before - start) :]
        assert torch.equal(found == 0.0, want)
