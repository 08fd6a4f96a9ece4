"""The Triton kernels as the dispatcher's choice on a GPU. Sizes are checked here, before a pointer is taken; the values of a
descriptor are not read, which would wait for the device: see tmem.triton_kernels.plan for what becomes of bad ones.

fp64, which no matrix unit multiplies as these kernels need it, goes to the reference.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops.attend import WIDEST


def _kernels(stem: str) -> ModuleType:
    """tmem.triton_kernels.<stem>, imported when first needed: Triton takes a second to import."""
    return importlib.import_module(f"tmem.triton_kernels.{stem}")


def _lines(x: Tensor) -> Tensor:
    """An input whose last dimension is contiguous, and whose ranks lie within 2^31 elements: itself, or a copy."""
    near = x.dim() < 3 or (x.shape[1] - 1) * x.stride(1) < 2**31
    return x if near and (x.shape[-1] <= 1 or x.stride(-1) == 1) else x.contiguous()


def _on_one_device(op, like, *others) -> None:
    for x in others:
        if x.device != like.device:
            raise ValueError(f"{op}: all tensors must be on {like.device} as the first argument is, got {x.device}")


def _column(op, name, x, dtype, size) -> Tensor:
    _checks.dtype(op, name, x, dtype)
    _checks.shape(op, name, x, size)
    return x.contiguous()


def _segments(op, rows, ranks, seg_off, seg_slot, rank, plan, like, *others):
    """The descriptor with its plan, all of one device, contiguous; `ranks` within what the kernels hold."""
    for name, x in (("seg_off", seg_off), ("seg_slot", seg_slot), ("rank", rank)):
        _checks.dtype(op, name, x, torch.int32)
        _checks.shape(op, name, x, None)
    _checks.shape(op, "seg_off", seg_off, seg_slot.shape[0] + 1)
    _on_one_device(op, like, seg_off, seg_slot, rank, *others)
    if ranks:
        _kernels("configs").padded_rank(ranks)
    seg = seg_off.contiguous(), seg_slot.contiguous(), rank.contiguous()
    if plan is None:
        plan = lora_plan(*seg, rows)
    _checks.plan(op, plan, seg_slot, rank, rows)
    return seg, plan


def _scale(op, scale, rank) -> Tensor:
    return _column(op, "scale", scale, torch.float32, rank.shape[0])


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
    shrink, most = _kernels("shrink").shrink, _kernels("shrink").most(f[0].shape[1] or 1)
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


def lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale, plan=None, fresh=False, squares=None):
    op = "lora_backward_"
    if dy.dtype == torch.float64:
        return reference.lora_backward_(g, z, dy, bt, seg_off, seg_slot, rank, scale, plan, fresh, squares)
    _gradient(op, g, z, dy, rank, squares)
    _checks.shape(op, "bt", bt, rank.shape[0], z.shape[1], dy.shape[1])
    _checks.factor(op, "bt", bt, dy, rank.shape[0], z.shape[1], dy.shape[1])
    seg, plan = _segments(op, *z.shape, seg_off, seg_slot, rank, plan, g, z, dy, bt, scale)
    out = _lines(g)
    with _summed(squares) as sums:
        inputs = _lines(z), _lines(dy), _lines(bt), *seg, _scale(op, scale, rank)
        dz = _kernels("backward").backward(out, *inputs, plan, fresh, sums)
    if out is not g:
        g.copy_(out)
    return dz


def lora_gram_(g, z, v, seg_off, seg_slot, rank, plan=None, fresh=False, squares=None, op="lora_gram_"):
    if v.dtype == torch.float64:
        return reference.lora_gram_(g, z, v, seg_off, seg_slot, rank, plan, fresh, squares)
    _gradient(op, g, z, v, rank, squares)
    seg, plan = _segments(op, *z.shape, seg_off, seg_slot, rank, plan, g, z, v)
    out = _lines(g)
    with _summed(squares) as sums:
        _kernels("gram").gram(out, _lines(z), _lines(v), *seg, plan, fresh, sums)
    if out is not g:
        g.copy_(out)


def lora_gram(z, v, seg_off, seg_slot, rank, plan=None):
    g = z.new_zeros(rank.shape[0], z.shape[1], v.shape[1])
    lora_gram_(g, z, v, seg_off, seg_slot, rank, plan, op="lora_gram")
    return g


def lora_gram_step_(param, m, v, step, hyper, z, dy, seg_off, seg_slot, rank, plan=None, copy=None, squares=None):
    op = "lora_gram_step_"
    if dy.dtype == torch.float64:
        return reference.lora_gram_step_(
            param, m, v, step, hyper, z, dy, seg_off, seg_slot, rank, plan, copy, squares
        )  # fmt: skip
    _checks.moments(op, m, v)
    _gradient(op, param, z, dy, rank, squares, "param", "dy")
    matrices = {"param": param, "m": m, "v": v, "copy": copy}
    for name, x in matrices.items():
        if x is not None:
            _checks.dtype(op, name, x, *(_checks.HALF if name == "copy" else (torch.float32,)))
            _checks.shape(op, name, x, *param.shape)
    _checks.settings(op, step, hyper, rank.shape[0])
    given = [x for x in (m, v, copy, step, hyper, z, dy) if x is not None]
    seg, plan = _segments(op, *z.shape, seg_off, seg_slot, rank, plan, param, *given)
    lines = {name: None if x is None else _lines(x) for name, x in matrices.items()}
    with _summed(squares) as sums:
        moments, copied = (lines["param"], lines["m"], lines["v"]), lines["copy"]
        rows = _lines(hyper), _lines(z), _lines(dy)
        _kernels("gram_step").gram_step(*moments, step.contiguous(), *rows, *seg, plan, copied, sums)
    for given, written in zip(matrices.values(), lines.values()):
        if written is not given:
            given.copy_(written)


@contextlib.contextmanager
def _summed(squares: Tensor | None) -> Iterator[Tensor | None]:
    """squares as kernels write it, contiguous: itself, or a copy that is written back."""
    if squares is None:
        yield None
        return
    sums = squares.contiguous()
    yield sums
    if sums is not squares:
        squares.copy_(sums)


def _gradient(op, g, z, v, rank, squares, name="g", rows="v") -> None:
    _checks.shape(op, rows, v, None, None)
    _checks.dtype(op, rows, v, *_checks.FACTOR)
    _checks.shape(op, "z", z, v.shape[0], None)
    _checks.dtype(op, "z", z, torch.float32)
    _checks.shape(op, name, g, rank.shape[0], z.shape[1], v.shape[1])
    _checks.dtype(op, name, g, torch.float32)
    _checks.squares(op, squares, g)
    if squares is not None:
        _on_one_device(op, g, squares)


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


def lora_decode_(y, x, a, bt, row_slot, rank, scale):
    op = "lora_decode_"
    if y.dtype == torch.float64:
        return reference.lora_decode_(y, x, a, bt, row_slot, rank, scale)
    _checks.shape(op, "y", y, None, None)
    _checks.dtype(op, "y", y, *_checks.FACTOR)
    _checks.shape(op, "x", x, y.shape[0], None)
    _checks.dtype(op, "x", x, y.dtype)
    _checks.shape(op, "rank", rank, None)
    slots = rank.shape[0]
    _checks.factor(op, "a", a, y, slots, None, x.shape[1])
    _checks.shape(op, "bt", bt, slots, a.shape[1], y.shape[1])
    _checks.factor(op, "bt", bt, y, slots, a.shape[1], y.shape[1])
    _on_one_device(op, y, x, a, bt, row_slot, rank, scale)
    named = _column(op, "row_slot", row_slot, torch.int32, y.shape[0]), _column(op, "rank", rank, torch.int32, slots)
    out = _lines(y)
    _kernels("decode").decode(out, _lines(x), _lines(a), _lines(bt), *named, _scale(op, scale, rank))
    if out is not y:
        y.copy_(out)


def _adapter_inputs(op, like, x, a, bt, row_slot, rank, scale):
    """x, the lists of factors, row_slot, rank and scale, as decode's kernels take them; without adapters nothing."""
    if not a:
        return None, [], [], None, None, None
    _checks.adapters(op, like, x, a, bt, row_slot, rank, scale, values=False)
    slots, rows = rank.shape[0], row_slot.shape[0]
    named = _column(op, "row_slot", row_slot, torch.int32, rows), _column(op, "rank", rank, torch.int32, slots)
    return _lines(x), [_lines(f) for f in a], [_lines(f) for f in bt], *named, _scale(op, scale, rank)


def lora_decode_multi_(y, x, a, bt, row_slot, rank, scale):
    op = "lora_decode_multi_"
    if x.dtype == torch.float64:
        return reference.lora_decode_multi_(y, x, a, bt, row_slot, rank, scale)
    if not a or len(y) > 3:
        raise ValueError(f"{op}: y must hold 1 to 3 tensors, each with its factors, got {len(y)} and {len(a)} of a")
    for i, one in enumerate(y):
        _checks.shape(op, f"y[{i}]", one, x.shape[0], None)
        _checks.dtype(op, f"y[{i}]", one, x.dtype)
    inputs = _adapter_inputs(op, {f"y[{i}]": one for i, one in enumerate(y)}, x, a, bt, row_slot, rank, scale)
    out = [_lines(one) for one in y]
    _kernels("decode").decode_multi(out, *inputs)
    for given, made in zip(y, out):
        if made is not given:
            given.copy_(made)


def lora_norm(y, residual, before, weight, eps, plus, x, a, bt, row_slot, rank, scale):
    op = "lora_norm"
    if y.dtype == torch.float64:
        return reference.lora_norm(y, residual, before, weight, eps, plus, x, a, bt, row_slot, rank, scale)
    _checks.shape(op, "y", y, None, None)
    _checks.dtype(op, "y", y, *_checks.FACTOR)
    _checks.shape(op, "residual", residual, *y.shape)
    weights = [None if w is None else _column(op, "weight", w, w.dtype, y.shape[1]) for w in (before, weight)]
    _on_one_device(op, y, residual, *(w for w in weights if w is not None))
    x, a, bt, *named = _adapter_inputs(op, {"y": y}, x, a, bt, row_slot, rank, scale)
    factors = (a[0], bt[0]) if a else (None, None)
    return _kernels("norm").norm(_lines(y), _lines(residual), *weights, eps, plus, x, *factors, *named)


def lora_glu(gate, up, gelu, x, a, bt, row_slot, rank, scale):
    op = "lora_glu"
    if gate.dtype == torch.float64:
        return reference.lora_glu(gate, up, gelu, x, a, bt, row_slot, rank, scale)
    _checks.shape(op, "gate", gate, None, None)
    _checks.dtype(op, "gate", gate, *_checks.FACTOR)
    _checks.shape(op, "up", up, *gate.shape)
    _on_one_device(op, gate, up)
    inputs = _adapter_inputs(op, {"gate": gate, "up": up}, x, a, bt, row_slot, rank, scale)
    return _kernels("glu").glu(_lines(gate), _lines(up), gelu, *inputs)


def rope_write_(keys, values, q, k, v, cos, sin, at, q_weight, k_weight, eps, plus):
    op = "rope_write_"
    if q.dtype == torch.float64:
        return reference.rope_write_(keys, values, q, k, v, cos, sin, at, q_weight, k_weight, eps, plus)
    rows, groups, _, size = keys.shape
    _checks.shape(op, "values", values, *keys.shape)
    _checks.shape(op, "q", q, rows, None)
    for name, one, width in (("k", k, groups * size), ("v", v, groups * size), ("cos", cos, size), ("sin", sin, size)):
        _checks.shape(op, name, one, rows, width)
    weights = [None if w is None else _column(op, "weight", w, w.dtype, size) for w in (q_weight, k_weight)]
    _on_one_device(op, keys, values, q, k, v, cos, sin, at, *(w for w in weights if w is not None))
    caches, rest = [_lines(x) for x in (keys, values)], [_lines(x) for x in (q, k, v, cos, sin)]
    out = _kernels("rope").rope(*caches, *rest, _column(op, "at", at, torch.int64, rows), *weights, eps, plus)
    for given, made in zip((keys, values), caches):
        if made is not given:
            given.copy_(made)
    return out


def attend(q, k, v, mask, scale, alike=None):  # which saves nothing here
    op = "attend"
    if q.shape[-1] > WIDEST.get(q.dtype, 0):
        return reference.attend(q, k, v, mask, scale, alike)
    _checks.shape(op, "q", q, None, None, None)
    _checks.dtype(op, "q", q, *_checks.FACTOR)
    _checks.shape(op, "k", k, q.shape[0], None, None, q.shape[2])
    _checks.shape(op, "v", v, *k.shape)
    _checks.shape(op, "mask", mask, q.shape[0], k.shape[2])
    _checks.dtype(op, "mask", mask, torch.bool)
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{op}: q must have a multiple of k's {k.shape[1]} heads, got {q.shape[1]}")
    _on_one_device(op, q, k, v, mask)
    return _kernels("attend").attend(*(_lines(x) for x in (q, k, v, mask)), scale)


def bank_step_(param, grad, m, v, step, hyper, active, copy=None, clear=True, squares=None):
    op = "bank_step_"
    if param.dtype == torch.float64:
        return reference.bank_step_(param, grad, m, v, step, hyper, active, copy, clear, squares)
    _checks.moments(op, m, v)
    _checks.shape(op, "param", param, None, None)
    rows = param.shape[0]
    matrices = {"param": param, "grad": grad, "m": m, "v": v, "copy": copy}
    for name, x in matrices.items():
        if x is not None:
            _checks.dtype(op, name, x, *(_checks.HALF if name == "copy" else (torch.float32,)))
            _checks.shape(op, name, x, *param.shape)
    _checks.dtype(op, "hyper", hyper, torch.float32, torch.float64)
    _checks.shape(op, "hyper", hyper, rows, len(reference.HYPER))
    if squares is not None:
        _checks.dtype(op, "squares", squares, torch.float64)
        _checks.shape(op, "squares", squares, rows, None)
        squares = squares.contiguous()
    _on_one_device(op, param, *(x for x in (*matrices.values(), step, hyper, active, squares) if x is not None))
    count, flags = _column(op, "step", step, torch.int32, rows), _column(op, "active", active, torch.bool, rows)
    lines = {name: None if x is None else _lines(x) for name, x in matrices.items()}
    norms = _kernels("step").step(**lines, count=count, hyper=_lines(hyper), active=flags, clear=clear, sums=squares)
    for given, written in ((step, count), *zip(matrices.values(), lines.values())):
        if written is not given:
            given.copy_(written)
    return norms


def bank_copy_(matrices, source, target):
    op = "bank_copy_"
    if not matrices:
        raise ValueError(f"{op}: matrices must hold at least one tensor, got none")
    rows = matrices[0].shape[0] if matrices[0].dim() else None
    for i, matrix in enumerate(matrices):
        if matrix.dim() < 1 or matrix.shape[0] != rows:
            raise ValueError(f"{op}: matrices[{i}] must have the rows of the first, got shape {list(matrix.shape)}")
    _checks.shape(op, "source", source, None)
    pairs = [_column(op, n, x, torch.int32, source.shape[0]) for n, x in (("source", source), ("target", target))]
    _on_one_device(op, matrices[0], *matrices, *pairs)
    for matrix in matrices:
        if matrix.numel():
            dense = matrix if matrix[0].is_contiguous() else matrix.contiguous()
            line = dense.as_strided((rows, dense[0].numel()), (dense.stride(0), 1))
            _kernels("copy").copy(line.view(torch.uint8), *pairs)
            if dense is not matrix:
                matrix.copy_(dense)


def _on_its_device(kernel: Callable) -> Callable:
    """Triton launches on the current device: make that the one of the first argument, or of the first in it."""

    @functools.wraps(kernel)
    def launch(first, *rest):
        one = first if isinstance(first, Tensor) else first[0]
        if one.get_device() == torch.cuda.current_device():
            return kernel(first, *rest)
        with torch.cuda.device(one.device):
            return kernel(first, *rest)

    return launch


LAUNCHERS = (
    lora_plan, lora_shrink, lora_shrink_multi, lora_expand_, lora_gram_, lora_gram, lora_gram_step_, lora_backward_,
    lora_linear, lora_decode_, bank_step_, bank_copy_, lora_decode_multi_, lora_norm, lora_glu, rope_write_, attend,
)  # fmt: skip


def register(serve: Callable[[str, Callable], None]) -> None:
    """Hand every launcher to `serve`, with its op's name. No kernel is imported or run until a tensor on a GPU comes."""
    for kernel in LAUNCHERS:
        serve(kernel.__name__, _on_its_device(kernel))
