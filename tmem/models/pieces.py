"""A decoder's layer by its pieces: its norms, its gate, and a pass through them on a CPU. There an op goes over memory once
where a module of transformers does so many times, forward and backward.

Products and attention stay as they are. transformers' modules run where others have a part in a layer: hooks such as FSDP's,
another `forward`, checkpoints, torch.autocast to another dtype and torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops import PASS_PARTS, gated_product, kernel_for, rms_norm, rotate
from . import bases
from .families import FAMILIES

GELU = {"SiLU": False, "SiLUActivation": False, "GELUTanh": True}  # of an activation's class: whether it is GELU by tanh


class Norms(NamedTuple):
    """The norms of what each half of a layer reads, and of what it makes, where that is normed before the sum."""

    attention: nn.Module
    attended: nn.Module | None
    mlp: nn.Module
    passed: nn.Module | None


def norms(layer: nn.Module) -> Norms:
    """Those of a layer of a family whose `norms` are known."""
    if hasattr(layer, "pre_feedforward_layernorm"):  # norms on both sides of each half
        after = layer.post_attention_layernorm, layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
        return Norms(layer.input_layernorm, *after)
    return Norms(layer.input_layernorm, None, layer.post_attention_layernorm, None)


def eps(norm: nn.Module) -> float:
    """What a norm adds to the mean of squares."""
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def known(model: nn.Module, layers: nn.ModuleList) -> bool:
    """Whether the layers of a decoder consist of what this file names, in heads of an even width."""
    if FAMILIES[model.config.model_type].norms is None:
        return False
    return all(type(layer.mlp.act_fn).__name__ in GELU and layer.self_attn.head_dim % 2 == 0 for layer in layers)


def serve(model: nn.Module, layers: nn.ModuleList, hidden: Tensor) -> bool:
    """Whether ops serve a pass over `hidden` [B, T, D], in layers that are `whole`."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != hidden.dtype or torch.compiler.is_compiling():
        return False
    if hidden.dtype == torch.float64:  # in which transformers' norms compute in fp32, and bits of fp64 are not theirs
        return False
    return all(kernel_for(op, device) != "PyTorch reference" for op in PASS_PARTS) and known(model, layers)


def whole(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether nobody else has a part in a layer, and all of its norms are of this dtype."""
    attention = layer.self_attn
    normed = *norms(layer), getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    own = [norm for norm in normed if norm is not None]
    if layer.training and layer.gradient_checkpointing:
        return False
    if any(map(_shared, (layer, attention, layer.mlp, layer.mlp.act_fn, *own))):
        return False
    return all(type(norm.weight) is nn.Parameter and norm.weight.dtype == dtype for norm in own)


def _shared(module: nn.Module) -> bool:
    """Whether somebody runs before a module's own code, after it, or instead of it."""
    backward = module._backward_hooks or module._backward_pre_hooks
    return "forward" in vars(module) or bases.hooked(module) or bool(backward)


def run(
    layer: nn.Module, plus: float, hidden: Tensor, rotary: tuple[Tensor, Tensor], attend_by: Callable, at: Tensor | None = None
) -> Tensor:
    """What a whole layer makes of `hidden` [B, T, D].

    plus       what is added to the weights of its norms
    rotary     cos and sin [1 or B, T, head]
    attend_by  see attention.choose
    at         int64 [L], places among the B·T tokens: what comes after attention is computed of these alone, [L, 1, D]
    """

    def normed(norm: nn.Module | None, x: Tensor) -> Tensor:
        return x if norm is None else rms_norm(x, norm.weight, eps(norm), plus)

    first, attended, second, passed = norms(layer)
    x, own = normed(first, hidden), layer.self_attn
    q, k, v = (one(x).unflatten(-1, (-1, own.head_dim)) for one in (own.q_proj, own.k_proj, own.v_proj))
    q, k = (rotate(normed(getattr(own, name, None), y), *rotary) for name, y in (("q_norm", q), ("k_norm", k)))
    dropout = own.attention_dropout if own.training else 0.0
    x, _ = attend_by(own, q, k, v.transpose(1, 2), None, dropout=dropout, scaling=own.scaling)
    x = x.flatten(2)
    if at is not None:
        x, hidden = (y.flatten(0, 1).index_select(0, at)[:, None] for y in (x, hidden))
    hidden = hidden + normed(attended, own.o_proj(x))
    x, own = normed(second, hidden), layer.mlp
    x = gated_product(own.gate_proj(x), own.up_proj(x), GELU[type(own.act_fn).__name__])
    return hidden + normed(passed, own.down_proj(x))
