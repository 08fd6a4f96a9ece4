"""lora_linear: a linear layer with one low-rank adapter per segment of rows, differentiable in x, w, bias, a and bt."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _autocast, _checks
from tmem.ops._once import once_differentiable
from tmem.ops._registry import define, differentiable


def _fake(x, w, bias, a, bt, seg_off, seg_slot, rank, scale, plan=None):
    rows = x.shape[:-1].numel()
    y = x.new_empty(*x.shape[:-1], w.shape[0])
    return y, x.new_empty(rows, a.shape[1], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


_op = define(
    "lora_linear(Tensor x, Tensor w, Tensor? bias, Tensor a, Tensor bt,"
    " Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor scale, Tensor? plan=None) -> (Tensor, Tensor)",
    reference.lora_linear,
    _fake,
    autocast=lambda x, w, bias, *rest: (*_autocast.linear(x, w, bias), *rest),
)


def _setup_context(ctx, inputs, output):
    x, w, _, a, bt, *descriptor = inputs
    need_x, need_w, _, need_a, need_bt = ctx.needs_input_grad[:5]
    if need_a:
        _refuse_shared_a(a, bt.shape[0])
    z = output[1]
    ctx.mark_non_differentiable(z)
    ctx.x_shape, ctx.a_dtype, ctx.bt_dtype = x.shape, a.dtype, bt.dtype
    # What a gradient depends on is saved even where its values are not used: see once_differentiable.
    ctx.save_for_backward(
        x if need_w or need_a or (need_x and need_bt) else None, w if need_x else None, a, bt,
        z if need_bt else None, *descriptor,
    )  # fmt: skip


@once_differentiable("lora_linear")
def _backward(ctx, saved, dy, _):
    x, w, a, bt, z, seg_off, seg_slot, rank, scale, plan = saved
    need_x, need_w, need_bias, need_a, need_bt = ctx.needs_input_grad[:5]
    seg = seg_off, seg_slot, rank
    ops = torch.ops.tmem
    dy = reference.rows_of(dy)
    rows = None if x is None else reference.rows_of(x)
    dx = dw = dbias = da = dbt = None
    if need_x or need_a:
        dz = ops.lora_shrink(dy, bt, *seg, scale, plan)
    if need_x:
        dx = dy @ w
        ops.lora_expand_(dx, dz, a, *seg, plan)
        dx = dx.view(ctx.x_shape)
    if need_w:
        dw = dy.T @ rows
    if need_bias:
        dbias = dy.sum(0)
    if need_a:
        da = ops.lora_gram(dz, rows, *seg, plan).to(ctx.a_dtype)
    if need_bt:
        dbt = ops.lora_gram(z, dy, *seg, plan).to(ctx.bt_dtype)
    return dx, dw, dbias, da, dbt, None, None, None, None, None


differentiable("lora_linear", _setup_context, _backward)


def _refuse_shared_a(a: Tensor, slots: int) -> None:
    if a.shape[0] != slots:
        raise ValueError(
            f"lora_linear: a [1, R, K] shared by {slots} slots must not require grad, as training it would couple them;"
            f" detach it, or give every slot its own a [{slots}, R, K]"
        )


@_checks.public
def lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, bt: Tensor,
    seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor, plan: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y = x Wᵀ + bias + (scale[slot]·x a[slot]ᵀ) bt[slot], slot = that of the row's segment; -1: the base alone.

    x [..., K], flattened to M rows; w [N,K] and bias [N] in x's dtype, fp32, bf16 or fp16; a [S,R,K], or [1,R,K] shared by
    all slots; bt [S,R,N]; a and bt fp32, bf16 or fp16, any strides; or all fp64. seg_off, seg_slot, rank, plan: see
    tmem.reference; scale fp32 [S]. Returns y [..., N] in x's dtype. Under torch.autocast x, w and bias are first cast to its
    dtype, as those of torch.nn.Linear are; the factors stay, all fp64 stays, and backward runs in the dtypes of forward.
    Differentiable in x, w, bias, a and bt; with z = shrink(x, a, scale) and dz = shrink(dy, bt, scale):
    dx = dy w + expand(dz, a), dbt = gram(z, dy), da = gram(dz, x), the last two in their factor's dtype.
    Raises ValueError or TypeError before anything is computed; a shared `a` that requires grad is refused.
    """
    op = "lora_linear"
    x, w, bias = _autocast.linear(x, w, bias)
    _checks.dtype(op, "x", x, *_checks.ACTIVATION)
    if x.dim() < 1 or w.dim() != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"{op}: x [..., K] and w [N, K] must agree in K, got {list(x.shape)} and {list(w.shape)}")
    n, k = w.shape
    _checks.dtype(op, "w", w, x.dtype)
    if bias is not None:
        _checks.dtype(op, "bias", bias, x.dtype)
        _checks.shape(op, "bias", bias, n)
    _checks.same_device(
        op, x, w=w, bias=bias, a=a, bt=bt, seg_off=seg_off, seg_slot=seg_slot, rank=rank, scale=scale, plan=plan
    )  # fmt: skip
    rows = x.shape[:-1].numel()
    _checks.shape(op, "a", a, None, None, k)
    _checks.segments(op, seg_off, seg_slot, rank, rows, a.shape[1])
    slots = rank.shape[0]
    _checks.factor(op, "a", a, x, slots, None, k)
    _checks.shape(op, "bt", bt, slots, a.shape[1], n)
    _checks.factor(op, "bt", bt, x, slots, a.shape[1], n)
    _checks.dtype(op, "scale", scale, torch.float32)
    _checks.shape(op, "scale", scale, slots)
    _checks.plan(op, plan, seg_slot, rank, rows)
    if a.requires_grad and torch.is_grad_enabled():
        _refuse_shared_a(a, slots)
    return _op(x, w, bias, a, bt, seg_off, seg_slot, rank, scale, plan)[0]
