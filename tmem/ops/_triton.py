"""The Triton kernels as the dispatcher's choice on a GPU. Sizes are checked here, before a pointer is taken; the values of a
descriptor are not read, which would wait for the device: see tmem.triton_kernels.plan for what becomes of bad ones.

fp64, which no matrix unit multiplies as these kernels need it, goes to the reference.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks


def _kernels(stem: str) -> ModuleType:
    """tmem.triton_kernels.<stem>, imported when first needed: Triton takes a second to import."""
    return importlib.import_module(f"tmem.triton_kernels.{stem}")


def _lines(x: Tensor) -> Tensor:
    """An input whose last dimension is contiguous: itself, or a copy."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _segments(op, rows, ranks, seg_off, seg_slot, rank, plan, like, *others):
    """The descriptor with its plan, all of one device, contiguous; `ranks` within what the kernels hold."""
    for name, x in (("seg_off", seg_off), ("seg_slot", seg_slot), ("rank", rank)):
        _checks.dtype(op, name, x, torch.int32)
        _checks.shape(op, name, x, None)
    _checks.shape(op, "seg_off", seg_off, seg_slot.shape[0] + 1)
    for x in (seg_off, seg_slot, rank, *others):
        if x.device != like.device:
            raise ValueError(f"{op}: all tensors must be on {like.device} as the first argument is, got {x.device}")
    if ranks:
        _kernels("configs").padded_rank(ranks)
    seg = seg_off.contiguous(), seg_slot.contiguous(), rank.contiguous()
    if plan is None:
        plan = lora_plan(*seg, rows)
    _checks.plan(op, plan, seg_slot, rank, rows)
    return seg, plan


def _scale(op, scale, rank) -> Tensor:
    _checks.dtype(op, "scale", scale, torch.float32)
    _checks.shape(op, "scale", scale, rank.shape[0])
    return scale.contiguous()


def lora_plan(seg_off, seg_slot, rank, rows):
    return _kernels("plan").plan(seg_off.contiguous(), seg_slot.contiguous(), rank.contiguous(), rows)


def lora_shrink_multi(v, f, seg_off, seg_slot, rank, scale, plan=None, op="lora_shrink_multi"):
    if v.dtype == torch.float64:
        return reference.lora_shrink_multi(v, f, seg_off, seg_slot, rank, scale)
    _checks.shape(op, "v", v, None, None)
    seg, plan = _segments(op, v.shape[0], f[0].shape[1], seg_off, seg_slot, rank, plan, v, scale, *f)
    for one in f:
        _checks.factor(op, "f", one, v, rank.shape[0], f[0].shape[1], v.shape[1])
    v, f, scale = _lines(v), [_lines(one) for one in f], _scale(op, scale, rank)
    shrink, most = _kernels("shrink").shrink, _kernels("shrink").MOST
    parts = [shrink(v, f[i : i + most], *seg, scale, plan) for i in range(0, len(f), most)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def lora_shrink(v, f, seg_off, seg_slot, rank, scale, plan=None):
    return lora_shrink_multi(v, [f], seg_off, seg_slot, rank, scale, plan, "lora_shrink")[0]


def lora_expand_(o, z, f, seg_off, seg_slot, rank, plan=None):
    op = "lora_expand_"
    if o.dtype == torch.float64:
        return reference.lora_expand_(o, z, f, seg_off, seg_slot, rank)
    _checks.shape(op, "o", o, None, None)
    _checks.shape(op, "z", z, o.shape[0], None)
    _checks.dtype(op, "z", z, torch.float32)
    _checks.factor(op, "f", f, o, rank.shape[0], z.shape[1], o.shape[1])
    seg, plan = _segments(op, o.shape[0], z.shape[1], seg_off, seg_slot, rank, plan, o, z, f)
    out = _lines(o)
    _kernels("expand").expand(out, _lines(z), _lines(f), *seg, plan)
    if out is not o:
        o.copy_(out)


def lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale, plan=None):
    op = "lora_backward_"
    if dy.dtype == torch.float64:
        return reference.lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale)
    _gradient(op, g, z, dy, rank)
    _checks.shape(op, "bt", bt, rank.shape[0], z.shape[1], dy.shape[1])
    _checks.factor(op, "bt", bt, dy, rank.shape[0], z.shape[1], dy.shape[1])
    seg, plan = _segments(op, *z.shape, seg_off, seg_slot, rank, plan, g, z, dy, bt, scale)
    # dy is read twice. One kernel that reads it once leaves dz in parts, one a stretch of columns, whose bytes cost more.
    out, dy = _lines(g), _lines(dy)
    _kernels("gram").gram(out, _lines(z), dy, *seg, plan)
    if out is not g:
        g.copy_(out)
    return _kernels("shrink").shrink(dy, [_lines(bt)], *seg, _scale(op, scale, rank), plan)[0]


def lora_gram_(g, z, v, seg_off, seg_slot, rank, plan=None, op="lora_gram_"):
    if v.dtype == torch.float64:
        return reference.lora_gram_(g, z, v, seg_off, seg_slot, rank)
    _gradient(op, g, z, v, rank)
    seg, plan = _segments(op, *z.shape, seg_off, seg_slot, rank, plan, g, z, v)
    out = _lines(g)
    _kernels("gram").gram(out, _lines(z), _lines(v), *seg, plan)
    if out is not g:
        g.copy_(out)


def lora_gram(z, v, seg_off, seg_slot, rank, plan=None):
    g = z.new_zeros(rank.shape[0], z.shape[1], v.shape[1])
    lora_gram_(g, z, v, seg_off, seg_slot, rank, plan, "lora_gram")
    return g


def _gradient(op, g, z, v, rank) -> None:
    _checks.shape(op, "v", v, None, None)
    _checks.dtype(op, "v", v, torch.float32, torch.bfloat16)
    _checks.shape(op, "z", z, v.shape[0], None)
    _checks.dtype(op, "z", z, torch.float32)
    _checks.shape(op, "g", g, rank.shape[0], z.shape[1], v.shape[1])
    _checks.dtype(op, "g", g, torch.float32)


def lora_linear(x, w, bias, a, bt, seg_off, seg_slot, rank, scale, plan=None):
    if x.dtype == torch.float64:
        return reference.lora_linear(x, w, bias, a, bt, seg_off, seg_slot, rank, scale)
    y = torch.nn.functional.linear(x, w, bias).contiguous()
    rows = reference.rows_of(x)
    if plan is None:
        plan = lora_plan(seg_off, seg_slot, rank, rows.shape[0])
    z = lora_shrink_multi(rows, [a], seg_off, seg_slot, rank, scale, plan, "lora_linear")[0]
    lora_expand_(reference.rows_of(y), z, bt, seg_off, seg_slot, rank, plan)
    return y, z


def _on_its_device(kernel: Callable) -> Callable:
    """Triton launches on the current device: make that the one of the first argument."""

    @functools.wraps(kernel)
    def launch(first, *rest):
        if first.get_device() == torch.cuda.current_device():
            return kernel(first, *rest)
        with torch.cuda.device(first.device):
            return kernel(first, *rest)

    return launch


def register(serve: Callable[[str, Callable], None]) -> None:
    """Hand every launcher to `serve`, with its op's name. No kernel is imported or run until a tensor on a GPU comes."""
    for kernel in (
        lora_plan, lora_shrink, lora_shrink_multi, lora_expand_, lora_gram_, lora_gram, lora_backward_, lora_linear,
    ):  # fmt: skip
        serve(kernel.__name__, _on_its_device(kernel))
