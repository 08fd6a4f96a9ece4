"""rope_write_: q and k of one new token of every row rotated, k and v written to the cache."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(keys, values, q, k, v, cos, sin, at, q_weight, k_weight, eps, plus):
    size = keys.shape[3]
    return torch.empty(q.shape[0], q.shape[1] // size, size, dtype=q.dtype, device=q.device)


_op = define(
    "rope_write_(Tensor(a!) keys, Tensor(b!) values, Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor at,"
    " Tensor? q_weight, Tensor? k_weight, float eps, float plus) -> Tensor",
    reference.rope_write_,
    _fake,
)


@_checks.public
def rope_write_(
    keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, at: Tensor,
    q_weight: Tensor | None = None, k_weight: Tensor | None = None, eps: float = 0.0, plus: float = 0.0,
) -> Tensor:  # fmt: skip
    """The rotated q [M,H,D]; the rotated k, and v, are written to column at[m] of keys and values [M,G,L,D].

    Rotated: x·cos + (-x[D/2:], x[:D/2])·sin of every head, with cos and sin [M,D]. q [M,H·D], k and v [M,G·D]; with weights
    [D], q and k are first x·(mean(x²) + eps)^-1/2·(plus + weight) over D, which is even. q, k and v of one dtype, keys and
    values of one, cos, sin and weights of any: fp32, bf16, fp16 or fp64; at int64 [M]. Computed in fp32, rounded once. Not
    differentiable. A row whose column is not there writes nothing, and its q is NaN. A row's bits do not depend on its
    neighbours. Raises ValueError or TypeError before anything is written.
    """
    op = "rope_write_"
    _checks.shape(op, "keys", keys, None, None, None, None)
    rows, groups, _, size = keys.shape
    if size == 0 or size % 2:
        raise ValueError(f"{op}: keys must have heads of an even width, got {size}")
    _checks.shape(op, "values", values, *keys.shape)
    _checks.dtype(op, "keys", keys, *_checks.ACTIVATION)
    _checks.dtype(op, "values", values, keys.dtype)
    _checks.shape(op, "q", q, rows, None)
    if q.shape[1] % size:
        raise ValueError(f"{op}: q must have whole heads of {size}, got {q.shape[1]} columns")
    _checks.dtype(op, "q", q, *_checks.ACTIVATION)
    for name, x in (("k", k), ("v", v)):
        _checks.shape(op, name, x, rows, groups * size)
        _checks.dtype(op, name, x, q.dtype)
    for name, x in (("cos", cos), ("sin", sin)):
        _checks.shape(op, name, x, rows, size)
        _checks.dtype(op, name, x, *_checks.ACTIVATION)
    _checks.shape(op, "at", at, rows)
    _checks.dtype(op, "at", at, torch.int64)
    if (q_weight is None) != (k_weight is None):
        raise ValueError(f"{op}: q_weight and k_weight go together; give both or neither")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            _checks.shape(op, name, weight, size)
            _checks.dtype(op, name, weight, *_checks.ACTIVATION)
    inputs = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "at": at, "q_weight": q_weight, "k_weight": k_weight}
    _checks.same_device(op, keys, values=values, **inputs)
    _checks.written(op, {"keys": keys, "values": values}, inputs)
    out = _op(keys, values, q, k, v, cos, sin, at, q_weight, k_weight, eps, plus)
    _checks.changed(keys, values)
    return out
