"""Attention where torch's own loses: one new token per row (by the op `attend`), and bf16 sequences of some hundred tokens on a
CPU.

Both fold the query heads that share a key head into query rows, so that keys and values are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..ops import attend
from ..ops._once import once_differentiable
from ..ops.attend import WIDEST

MOST = 1024  # tokens; the probabilities of a layer are kept for backward, in bf16


def choose(hidden: Tensor, cached: bool) -> Callable | None:
    """What computes attention in a forward pass over `hidden` [B, T, D], None for torch's own.

    torch's flash attention on CPUs spends two to six times as long on a short bf16 backward as four products.
    """
    if cached:
        return _one_token if hidden.shape[1] == 1 else None
    short = hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16 and hidden.shape[1] <= MOST
    return _short if short and torch.is_grad_enabled() else None


def _sdpa(*args, attend_by: Callable | None = None, **kwargs) -> tuple[Tensor, None]:
    """transformers' sdpa, unless the pass names another way: passes of several threads share the model's config."""
    return (attend_by or sdpa_attention_forward)(*args, **kwargs)


def _one_token(module, query, key, value, attention_mask, scaling=None, **_kwargs) -> tuple[Tensor, None]:
    """query [B, H, 1, D], key and value [B, H/g, L, D], mask bool [B, 1, 1, L] -> [B, 1, H, D]."""
    batch, heads, _, size = query.shape
    if query.device.type == "cpu" or (query.is_cuda and size <= WIDEST.get(value.dtype, 0)):
        scaling = size**-0.5 if scaling is None else scaling
        query, key = query.to(value.dtype), key.to(value.dtype)  # see _short
        return attend(query[:, :, 0], key, value, attention_mask[:, 0, 0].expand(batch, -1), scaling)[:, None], None
    folded = query.view(batch, key.shape[1], heads // key.shape[1], size)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, size), None


def _short(module, query, key, value, attention_mask, scaling=None, **_kwargs) -> tuple[Tensor, None]:
    """query [B, H, T, D], key and value [B, H/g, T, D], mask bool [1 or B, 1, T, T] -> [B, T, H, D]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)  # torch.autocast leaves them wider, after the rotation
    return _Short.apply(query, key, value, attention_mask, scaling).transpose(1, 2), None


class _Short(torch.autograd.Function):
    """P = softmax(c Q Kᵀ), O = P V; dV = Pᵀ dO, dS = P ∘ (dP - rowsum(P ∘ dP)) with dP = dO Vᵀ, dQ = c dS K, dK = c dSᵀ Q.

    Products in the inputs' dtype with fp32 sums inside, the softmax in fp32.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        batch, heads, length, size = query.shape
        groups = key.shape[1]
        rows = (query * scaling).reshape(batch, groups, -1, size)
        scores = (rows @ key.transpose(-1, -2)).view(batch, groups, -1, length, length)
        scores.masked_fill_(~mask[:, :, None], float("-inf"))
        p = scores.softmax(-1, dtype=torch.float32).to(query.dtype).view(batch, groups, -1, length)
        ctx.save_for_backward(query, key, value, p)
        ctx.scaling = scaling
        return (p @ value).view(batch, heads, length, size)

    @staticmethod
    @once_differentiable("attention")
    def backward(ctx, saved, grad):
        query, key, value, p = saved
        rows = (query * ctx.scaling).reshape(*p.shape[:-1], -1)
        shape, grad = grad.shape, grad.reshape(rows.shape)
        d_value = p.transpose(-1, -2) @ grad
        d_scores = grad @ value.transpose(-1, -2)
        d_scores = d_scores.sub_((d_scores * p).sum(-1, keepdim=True, dtype=torch.float32)).mul_(p)
        d_key = d_scores.transpose(-1, -2) @ rows  # the rows carry the scale
        d_query = (d_scores @ key).mul_(ctx.scaling).view(shape)
        return d_query, d_key, d_value, None, None


AttentionInterface.register("sdpa", _sdpa)
