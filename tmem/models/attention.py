"""How attention is computed: by torch's own kernels, of which none is given a mask of a whole long text, and in ways of our own
where torch's lose: one new token per row (by the op `attend`), and on a CPU branches and sequences of some hundred tokens (by
`attend_branches`, of bf16 by products).

A pass over T tokens takes memory in proportion to T. Texts from their beginning are causal, which kernels know without a mask;
windows and branches go chunk after chunk of queries, each with its own part of the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from ..ops import attend
from ..ops._once import once_differentiable
from ..ops.attend import WIDEST
from . import masks

MOST = 1024  # tokens; the probabilities of a layer are kept for backward, in bf16
QUERIES = 1024  # at once with a mask; a shorter text is one chunk, whose bits are those of the causal kernel


def choose(
    hidden: Tensor, mask: Tensor | masks.Rule | None, window: int | None, cached: bool, by_pieces: bool = False
) -> Callable:
    """What computes attention in a forward pass over `hidden` [B, T, D].

    mask    what every token sees: bool 4-D, or its rule; None: the tokens before it, which are all of this pass
    window  of these the last so many alone; None: all
    cached  keys and values are kept
    by_pieces  what a layer is made of goes by ops

    torch's flash attention on CPUs computes what a mask hides, and spends two to six times as long on a short bf16 backward as
    four products. Raises ValueError for joined rows in another pass than one by pieces.
    """
    length, half = hidden.shape[1], hidden.dtype == torch.bfloat16
    if by_pieces and (runs := _runs(mask, length, half)) is not None:
        return partial(_branches, runs=runs, window=window or 0)
    if isinstance(mask, masks.Joined):
        raise ValueError("attention: rows one behind another are served in passes by pieces alone; pad them to one length.")
    whole = isinstance(mask, masks.Branches) and length <= QUERIES
    mask = mask.rows(0, length) if whole else mask
    if cached and length == 1 and mask is not None:
        return partial(_one_token, mask=masks.windowed(mask, window))
    if not cached and hidden.device.type == "cpu" and half and length <= MOST:
        if torch.is_grad_enabled():
            mask = masks.causal(length) if mask is None else mask
            return partial(_short, bias=masks.bias(masks.windowed(mask, window), hidden.dtype))
    if isinstance(mask, masks.Branches):
        return partial(_chunks, mask=mask, window=window)
    if mask is not None:
        return partial(_masked, mask=masks.windowed(mask, window))
    if window is None or length <= window:
        return _causal
    before, most = masks.shown(window - 1), min(QUERIES, masks.shown(length))
    return partial(_windows, bias=masks.band(most, before, window, hidden), before=before)


def _runs(mask: Tensor | masks.Rule | None, length: int, half: bool) -> Tensor | None:
    """What attend_branches takes, where it is the fastest: of branches, and of short sequences in fp32."""
    if isinstance(mask, masks.Rule):
        return mask.runs
    return torch.tensor([[0, length]], dtype=torch.int32) if mask is None and not half and length <= MOST else None


def _sdpa(*args, attend_by: Callable | None = None, **kwargs) -> tuple[Tensor, None]:
    """transformers' sdpa, unless the pass names another way: passes of several threads share the model's config."""
    return (attend_by or sdpa_attention_forward)(*args, **kwargs)


# Each of these takes query [B, H, T, D], key and value [B, H/g, L, D], and gives [B, T, H, D].


def _causal(module, query, key, value, _mask, scaling=None, **_kwargs) -> tuple[Tensor, None]:
    """Without a mask: flash attention, on GPUs in half precision, and on CPUs in any."""
    length = query.shape[2]
    key, value = key[:, :, :length], value[:, :, :length]
    grouped = key.shape[1] < query.shape[1]
    if grouped and query.is_cuda and query.dtype == torch.float32:  # there flash attention is not, and groups would get a mask
        (key, value), grouped = _repeated(query, key, value), False
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


def _branches(module, query, key, value, _mask, scaling=None, *, runs: Tensor, window: int, **_kwargs) -> tuple[Tensor, None]:
    """L = T, runs and window as attend_branches takes them."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)  # see _short
    # Not by the public function, which reads the values of `runs`: the kernel alone does.
    return torch.ops.tmem.attend_branches(query, key, value, runs, scaling, window)[0], None


def _masked(module, query, key, value, _mask, *, mask: Tensor, **kwargs) -> tuple[Tensor, None]:
    """mask: bool [1 or B, 1, T, up to L]; what it does not reach is not seen."""
    key, value, mask = _reached(key, value, mask)
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def _windows(module, query, key, value, _mask, scaling=None, *, bias: Tensor, before: int, **_kwargs) -> tuple[Tensor, None]:
    """bias: masks.band of a chunk and of the `before` keys that precede it; all chunks share it."""
    (key, value), out, most = _repeated(query, key, value), [], len(bias)
    bias = bias.to(query.dtype)
    for start in range(0, query.shape[2], most):
        some = query[:, :, start : start + most]
        stop, first = start + some.shape[2], max(0, start - before)
        seen = bias[: some.shape[2], first - start + before : stop - start + before]
        out.append(F.scaled_dot_product_attention(some, key[:, :, first:stop], value[:, :, first:stop], seen, scale=scaling))
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def _chunks(
    module, query, key, value, _mask, scaling=None, *, mask: masks.Branches, window: int | None, **_kwargs
) -> tuple[Tensor, None]:
    """Chunks of queries, whose masks are made anew for backward: kept, they would be the whole mask, in floats."""
    (key, value), out = _repeated(query, key, value), []

    def one(some: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        rows = masks.windowed(mask.rows(start, start + some.shape[2]), window)
        key, value, rows = _reached(key, value, rows)
        return F.scaled_dot_product_attention(some, key, value, rows, scale=scaling)

    for start in range(0, query.shape[2], QUERIES):
        some = query[:, :, start : start + QUERIES]
        if query.requires_grad:
            out.append(checkpoint(one, some, key, value, start, use_reentrant=False, preserve_rng_state=False))
        else:
            out.append(one(some, key, value, start))
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value for every head of the query."""
    times = query.shape[1] // key.shape[1]
    return repeat_kv(key, times), repeat_kv(value, times)


def _reached(key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The columns that a mask reaches, in whole groups where there are so many."""
    columns = min(masks.shown(mask.shape[-1]), key.shape[2])
    more = columns - mask.shape[-1]
    return key[:, :, :columns], value[:, :, :columns], F.pad(mask, (0, more)) if more else mask


def _one_token(module, query, key, value, _mask, scaling=None, *, mask: Tensor, **_kwargs) -> tuple[Tensor, None]:
    """T = 1, mask bool [B, 1, 1, L]. The query heads that share a key head become query rows, so that no key is repeated."""
    batch, heads, _, size = query.shape
    key, value, mask = _reached(key, value, mask)
    if query.device.type == "cpu" or (query.is_cuda and size <= WIDEST.get(value.dtype, 0)):
        scaling = size**-0.5 if scaling is None else scaling
        query, key = query.to(value.dtype), key.to(value.dtype)  # see _short
        return attend(query[:, :, 0], key, value, mask[:, 0, 0].expand(batch, -1), scaling)[:, None], None
    folded = query.view(batch, key.shape[1], heads // key.shape[1], size)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, 1, heads, size), None


def _short(module, query, key, value, _mask, scaling=None, *, bias: Tensor, **_kwargs) -> tuple[Tensor, None]:
    """L = T, bias [1 or B, 1, T, T] as masks.bias makes it; keys are not repeated."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)  # torch.autocast leaves them wider, after the rotation
    return _Short.apply(query, key, value, bias, scaling).transpose(1, 2), None


class _Short(torch.autograd.Function):
    """P = softmax(c Q Kᵀ), O = P V; dV = Pᵀ dO, dS = P ∘ (dP - rowsum(P ∘ dP)) with dP = dO Vᵀ, dQ = c dS K, dK = c dSᵀ Q.

    Products in the inputs' dtype with fp32 sums inside, the softmax and its backward in fp32, rounded once: one pass over the
    scores each, which are many times as large as all else.
    """

    @staticmethod
    def forward(ctx, query, key, value, bias, scaling):
        batch, heads, length, size = query.shape
        groups = key.shape[1]
        rows = (query * scaling).reshape(batch, groups, -1, size)
        scores = (rows @ key.transpose(-1, -2)).view(batch, groups, -1, length, length)
        scores += bias[:, :, None]
        p = torch._softmax(scores, -1, False).view(batch, groups, -1, length)  # torch.autocast would leave it in fp32
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
        d_scores = torch._softmax_backward_data(d_scores, p, -1, p.dtype)
        d_key = d_scores.transpose(-1, -2) @ rows  # the rows carry the scale
        d_query = (d_scores @ key).mul_(ctx.scaling).view(shape)
        return d_query, d_key, d_value, None, None


AttentionInterface.register("sdpa", _sdpa)
