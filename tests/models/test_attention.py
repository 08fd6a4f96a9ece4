"""Attention of short bf16 passes by products of our own, against torch's in fp64."""

import pytest
import torch
import torch.nn.functional as F

from tmem.models import masks
from tmem.models.attention import _Short, choose
from tmem.testing import rel_rms

TOLERANCE = 5e-3  # bf16: probabilities, scores and their gradients are rounded once each
BRANCHES = torch.tensor([[0] * 5 + [1] * 9 + [2] * 3 + [0] * 4, [0] * 21])


def seen(kind: str, length: int) -> torch.Tensor:
    if kind == "branches":
        return masks.Branches(BRANCHES).rows(0, length)
    return masks.windowed(masks.causal(length), 4 if kind == "window" else None)


def both(mask: torch.Tensor, backward=None) -> dict[str, float]:
    """Relative RMS error of the output and of every gradient, three query heads to a key head."""
    torch.manual_seed(0)
    length, scaling = mask.shape[-1], 0.3
    inputs = [torch.randn(2, heads, length, 8).bfloat16().requires_grad_() for heads in (6, 2, 2)]
    grad = torch.randn(2, 6, length, 8).bfloat16()
    out = _Short.apply(*inputs, masks.bias(mask, torch.bfloat16), scaling)
    found = [out, *torch.autograd.grad(out, inputs, grad)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    oracle = F.scaled_dot_product_attention(*wide, attn_mask=mask, scale=scaling, enable_gqa=True)
    expected = [oracle, *torch.autograd.grad(oracle, wide, grad.double())]
    return {name: rel_rms(x.double(), y) for name, x, y in zip(("out", "query", "key", "value"), found, expected)}


@pytest.mark.parametrize("kind, length", [("causal", 21), ("causal", 1), ("window", 19), ("branches", 21)])
def test_short_attention_and_its_gradients_are_those_of_fp64(kind, length):
    for name, error in both(seen(kind, length)).items():
        assert error <= TOLERANCE, name


def test_a_backward_without_the_rows_sum_is_caught(monkeypatch):
    monkeypatch.setattr(torch, "_softmax_backward_data", lambda d, p, *_: d * p)
    assert both(seen("causal", 21))["query"] > 10 * TOLERANCE


def test_a_mask_that_is_left_out_is_caught(monkeypatch):
    monkeypatch.setattr(masks, "bias", lambda mask, dtype: torch.zeros(mask.shape, dtype=dtype))
    assert min(both(seen("branches", 21)).values()) > 10 * TOLERANCE


def test_short_bf16_passes_with_gradients_are_computed_so():
    hidden = torch.zeros(2, 21, 16, dtype=torch.bfloat16)
    assert choose(hidden, masks.Branches(BRANCHES), None, False).func.__name__ == "_short"
