"""attend_branches: attention of texts that share the beginning of a row, in a pass over labels; differentiable."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._once import once_differentiable
from tmem.ops._registry import define, differentiable


def _fake(q, k, v, runs, scale, window):
    rows, heads, tokens, size = q.shape
    sums = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(rows, tokens, heads, size), q.new_empty(rows, heads, tokens, dtype=sums)


def _fake_backward(d_o, q, k, v, o, lse, runs, scale, window):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


_op = define(
    "attend_branches(Tensor q, Tensor k, Tensor v, Tensor runs, float scale, int window) -> (Tensor, Tensor)",
    reference.attend_branches,
    _fake,
)
_op_backward = define(
    "attend_branches_backward(Tensor d_o, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor runs, float scale, "
    "int window) -> (Tensor, Tensor, Tensor)",
    reference.attend_branches_backward,
    _fake_backward,
)


def _setup_context(ctx, inputs, output):
    q, k, v, runs, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, runs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


@once_differentiable("attend_branches")
def _backward(ctx, saved, d_o, _):
    if d_o is None:
        return (None,) * 6
    q, k, v, o, lse, runs = saved
    return *_op_backward(d_o, q, k, v, o, lse, runs, *ctx.settings), None, None, None


differentiable("attend_branches", _setup_context, _backward)


@_checks.public
def attend_branches(q: Tensor, k: Tensor, v: Tensor, runs: Tensor, scale: float, window: int = 0) -> Tensor:
    """o[b,t,h] = Σ_c softmax_c(scale·q[b,h,t]·k[b,g,c]) v[b,g,c] over the tokens c that token t sees; head h reads key head
    g = h // (H/G). [B,T,H,D]

    q [B,H,T,D]; k and v [B,G,T,D], any strides, G a divisor of H; all of one dtype, fp32, bf16, fp16 (sums in fp32, rounded
    once at the end) or fp64. runs int32 [1 or B,N+1], from 0 and not decreasing: run r of a row is its tokens
    [runs[r], runs[r+1]). Run 0 is the beginning that the row's texts share. A token sees run 0, and itself and what precedes it
    in its own run; of these the last `window` alone, if that is not 0. What is behind the last run is padding, whose o is 0. In
    a batch of one, rows of texts may stand one behind another: runs [any,N+1] then has a row for each, from where it begins.
    What a token does not see is not read, but for what follows it in its own run, which must be finite. Differentiable in q, k
    and v; the logarithms of the softmax's sums are kept for that, [B,H,T].
    On a CPU a text has the bits that it has alone: they depend neither on what else is in its row, nor on how much of its
    beginning is shared, nor on threads. Memory grows as T. Raises ValueError or TypeError before anything is computed.
    """
    op = "attend_branches"
    _checks.shape(op, "q", q, None, None, None, None)
    _checks.dtype(op, "q", q, *_checks.ACTIVATION)
    rows, heads, tokens, size = q.shape
    _checks.shape(op, "k", k, rows, None, tokens, size)
    _checks.shape(op, "v", v, *k.shape)
    if k.shape[1] == 0 or heads == 0 or heads % k.shape[1]:
        raise ValueError(f"{op}: q must have a multiple of k's {k.shape[1]} heads, got {heads}")
    for name, x in (("k", k), ("v", v)):
        _checks.dtype(op, name, x, q.dtype)
    if window < 0:
        raise ValueError(f"{op}: window must be 0 (none) or more, got {window}")
    _checks.same_device(op, q, k=k, v=v, runs=runs)
    _checks.runs(op, runs, rows, tokens)
    return _op(q, k, v, runs, scale, window)[0]
