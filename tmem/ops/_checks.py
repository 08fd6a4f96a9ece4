"""Argument checks shared by the public functions. Every message names the op, the tensor, what was expected, what came.

The values of a segment descriptor are read only where that costs nothing: on the CPU, outside tracing. On a GPU reading
them would wait for the device; there the kernels guard memory by themselves.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.autograd import forward_ad

from tmem import reference
from tmem.ops import _memory

HALF = (torch.bfloat16, torch.float16)
FACTOR = (torch.float32, *HALF)
ACTIVATION = (*FACTOR, torch.float64)


def public(function: Callable) -> Callable:
    """A public op: what its signature calls a Tensor, a whole number or a number is one, before anything else is looked at."""
    signature = inspect.signature(function)
    names = tuple(signature.parameters)
    kinds = {name: typing.get_args(p.annotation) or (p.annotation,) for name, p in signature.parameters.items()}
    checks = {name: _KINDS[kind[0]] for name, kind in kinds.items()}
    for name, p in signature.parameters.items():
        if typing.get_origin(p.annotation) in (list, Sequence):
            checks[name] = _several
    optional = {name for name, kind in kinds.items() if type(None) in kind}
    op = function.__name__

    @functools.wraps(function)
    def checked(*args, **named):
        for name, value in (*zip(names, args), *named.items()):
            if name in checks and not (value is None and name in optional):
                checks[name](op, name, value)
        return function(*args, **named)

    return checked


def _several(op: str, name: str, values: object) -> None:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{op}: {name} must be a list of tensors, got {type(values).__name__}")
    for i, value in enumerate(values):
        tensor(op, f"{name}[{i}]", value)


def tensor(op: str, name: str, x: object) -> None:
    """A dense tensor that holds its own numbers, which the ops can follow."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.is_nested or x.is_quantized or x.layout is not torch.strided:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else str(x.layout).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be a dense tensor, got a {kind} one; convert it first")
    followed(op, name, x)


def followed(op: str, name: str, x: Tensor) -> None:
    """x is under no transform, and carries no tangent, that the ops would drop."""
    if torch.compiler.is_compiling() or (forward_ad._current_level < 0 and peek_interpreter_stack() is None):
        return
    if is_functorch_wrapped_tensor(x):
        raise RuntimeError(
            f"{op}: {name} is under a transform of torch.func, which the ops do not follow; use torch.autograd, and segments"
            " in place of vmap"
        )
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise RuntimeError(f"{op}: {name} carries a forward-mode tangent, which the ops do not follow; use backward")


def squares(op: str, squares: Tensor | None, g: Tensor) -> None:
    """What lora_gram_ leaves of the squares of g [S,R,D]."""
    if squares is not None:
        dtype(op, "squares", squares, torch.float64)
        shape(op, "squares", squares, g.shape[0], -(-g.shape[2] // reference.SQUARED))


def moments(op: str, m: Tensor | None, v: Tensor | None) -> None:
    """Those of AdamW, both or neither."""
    if (m is None) != (v is None):
        raise ValueError(f"{op}: give both m and v (AdamW) or neither (SGD), got only {'v' if m is None else 'm'}")


def settings(op: str, step: Tensor, hyper: Tensor, rows: int) -> None:
    """Steps taken and the settings of an optimizer, of each row."""
    dtype(op, "step", step, torch.int32)
    shape(op, "step", step, rows)
    dtype(op, "hyper", hyper, torch.float32, torch.float64)
    shape(op, "hyper", hyper, rows, len(reference.HYPER))


def unclipped(op: str, hyper: Tensor, seg_slot: Tensor) -> None:
    """No slot that a batch names asks for a clip."""
    if torch.compiler.is_compiling() or type(hyper) is not Tensor or not hyper.is_cpu:
        return
    clip = hyper[:, reference.HYPER.index("clip")].tolist()
    for slot in seg_slot.tolist():
        if slot >= 0 and clip[slot] > 0:
            raise ValueError(
                f"{op}: hyper must have no clip, which is of the norm of a whole row, got {clip[slot]} of slot {slot}; use"
                " lora_gram_ and bank_step_"
            )


def _whole(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be a whole number, got {_shown(value)}")


def _flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, (bool, torch.SymBool)):
        raise TypeError(f"{op}: {name} must be True or False, got {_shown(value)}")


def _number(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{op}: {name} must be a number, got {_shown(value)}")


def _shown(value: object) -> str:
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


_KINDS = {Tensor: tensor, bool: _flag, int: _whole, float: _number}


def shape(op: str, name: str, x: Tensor, *expected: int | None) -> None:
    """`x` has exactly these sizes; None = any."""
    if x.dim() != len(expected) or any(e is not None and e != n for e, n in zip(expected, x.shape)):
        want = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{op}: {name} must have shape [{want}], got {list(x.shape)}")


def dtype(op: str, name: str, x: Tensor, *expected: torch.dtype) -> None:
    if x.dtype not in expected:
        want = " or ".join(str(e).removeprefix("torch.") for e in expected)
        raise TypeError(f"{op}: {name} must be {want}, got {str(x.dtype).removeprefix('torch.')}")


def same_device(op: str, like: Tensor, **others: Tensor | None) -> None:
    """Every tensor lives where `like`, the op's first argument, lives."""
    for name, x in others.items():
        if x is not None and x.device != like.device:
            raise ValueError(f"{op}: {name} must be on {like.device} as the first argument is, got {x.device}")


def written(op: str, outputs: Mapping[str, Tensor | None], inputs: Mapping[str, Tensor | None]) -> None:
    """What is written in place may be written: by autograd's rules, each element once, and nothing else that the op takes."""
    if torch.compiler.is_compiling():
        return
    given = _given(outputs)
    for name, x in given.items():
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{op}: {name} is written in place, which autograd does not follow, and must not require grad; detach it,"
                " or call under torch.no_grad()"
            )
        if x.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"{op}: {name} is written in place and was made in inference mode; call there, or clone it outside"
            )
        if x.is_neg() or x.is_conj():
            raise ValueError(
                f"{op}: {name} is written in place and must be plain memory, got a negated or conjugated view; resolve it"
            )
        if _memory.overlaps_itself(x):
            raise ValueError(
                f"{op}: {name} is written in place and must own each element, got a view whose elements share memory; clone it"
            )
    one, other = _memory.first_shared(given, _given(inputs)) or (None, None)
    if one:
        raise ValueError(f"{op}: {one} is written in place and must not share memory with {other}; clone one of them")


def _given(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if x is not None}


def changed(*tensors: Tensor | None) -> None:
    """Tell autograd that these were written in place."""
    there = [x for x in tensors if x is not None]
    if not torch.compiler.is_compiling():
        there = [x for x in there if not x.is_inference()]  # which have no version
    torch.autograd.graph.increment_version(there)


def factor(op: str, name: str, f: Tensor, activation: Tensor, slots: int, ranks: int | None, width: int) -> None:
    """A factor [slots or 1, ranks, width]: fp32, bf16 or fp16, fp64 exactly when the activation is."""
    dtype(op, name, f, *((torch.float64,) if activation.dtype == torch.float64 else FACTOR))
    if f.dim() != 3 or f.shape[0] not in (1, slots):
        raise ValueError(f"{op}: {name} must have shape [1 or {slots}, ranks, {width}], got {list(f.shape)}")
    shape(op, name, f, None, ranks, width)


def named_factors(a: Sequence[Tensor], bt: Sequence[Tensor]) -> dict[str, Tensor]:
    """Factors by the names that messages have for them."""
    return {f"{name}[{i}]": f for name, several in (("a", a), ("bt", bt)) for i, f in enumerate(several)}


def adapters(
    op: str, y: Mapping[str, Tensor], x: Tensor | None, a: Sequence[Tensor], bt: Sequence[Tensor], row_slot: Tensor | None,
    rank: Tensor | None, scale: Tensor | None, values: bool = True,
) -> None:  # fmt: skip
    """What lora_decode_ takes, with a factor a and a factor bt for each y [M,N]; or none of it. values: of row_slot too."""
    if not a and not bt and x is row_slot is rank is scale is None:
        return
    like = next(iter(y.values()))
    if x is None or row_slot is None or rank is None or scale is None or not len(a) == len(bt) == len(y):
        raise ValueError(f"{op}: adapters are x, {len(y)} of a and of bt, row_slot, rank and scale; give all or none")
    factors = named_factors(a, bt)
    same_device(op, like, x=x, row_slot=row_slot, rank=rank, scale=scale, **factors)  # before values are read
    shape(op, "rank", rank, None)
    dtype(op, "x", x, like.dtype)
    shape(op, "x", x, like.shape[0], None)
    shape(op, "row_slot", row_slot, like.shape[0])
    shape(op, "a[0]", a[0], None, None, x.shape[1])
    if values:
        rows(op, row_slot, rank, a[0].shape[1])
    for i, one in enumerate(y.values()):
        factor(op, f"a[{i}]", a[i], x, rank.shape[0], a[0].shape[1], x.shape[1])
        dtype(op, f"a[{i}]", a[i], a[0].dtype)
        shape(op, f"bt[{i}]", bt[i], rank.shape[0], a[0].shape[1], one.shape[1])
        factor(op, f"bt[{i}]", bt[i], x, rank.shape[0], a[0].shape[1], one.shape[1])
        dtype(op, f"bt[{i}]", bt[i], bt[0].dtype)
    dtype(op, "scale", scale, torch.float32)
    shape(op, "scale", scale, rank.shape[0])


def plan(op: str, given: Tensor | None, seg_slot: Tensor, rank: Tensor, rows: int) -> None:
    """What lora_plan gave for a batch of this size."""
    if given is None:
        return
    dtype(op, "plan", given, torch.int32)
    if given.dim() != 1 or given.shape[0] != plan_size(rows, seg_slot.shape[0], rank.shape[0]):
        raise ValueError(
            f"{op}: plan must be lora_plan(seg_off, seg_slot, rank, {rows}) of these segments and slots, of shape"
            f" [{plan_size(rows, seg_slot.shape[0], rank.shape[0])}], got {list(given.shape)}"
        )


def plan_size(rows: int, segments: int, slots: int) -> int:
    """Elements of a plan: count, mark, sizes, tiles, slot_ptr, spans. See tmem.reference.lora_plan."""
    return 5 + 4 * (-(-rows // reference.TILE) + segments) + slots + 2 * segments


def segments(op: str, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, rows: int, stored: int) -> None:
    """A descriptor of `rows` rows: offsets 0 .. rows nondecreasing, slots in [-1, S), 1 <= rank <= stored if named."""
    dtype(op, "seg_off", seg_off, torch.int32)
    dtype(op, "seg_slot", seg_slot, torch.int32)
    dtype(op, "rank", rank, torch.int32)
    shape(op, "seg_slot", seg_slot, None)
    shape(op, "seg_off", seg_off, seg_slot.shape[0] + 1)
    shape(op, "rank", rank, None)
    if torch.compiler.is_compiling() or type(seg_off) is not Tensor or not seg_off.is_cpu:
        return
    offsets = seg_off.tolist()
    if offsets[0] != 0 or offsets[-1] != rows:
        raise ValueError(f"{op}: seg_off must run from 0 to {rows} (rows), got {offsets[0]} to {offsets[-1]}")
    for g in range(len(offsets) - 1):
        if offsets[g + 1] < offsets[g]:
            raise ValueError(f"{op}: seg_off must not decrease, got {offsets[g]} then {offsets[g + 1]} at segment {g}")
    _slots(op, "seg_slot", "segment", seg_slot, rank, stored)


def rows(op: str, row_slot: Tensor, rank: Tensor, stored: int) -> None:
    """One slot in [-1, S) per row, 1 <= rank <= stored if named."""
    dtype(op, "row_slot", row_slot, torch.int32)
    dtype(op, "rank", rank, torch.int32)
    shape(op, "rank", rank, None)
    if not torch.compiler.is_compiling() and type(row_slot) is Tensor and row_slot.is_cpu:
        _slots(op, "row_slot", "row", row_slot, rank, stored)


def _slots(op: str, name: str, item: str, slots: Tensor, rank: Tensor, stored: int) -> None:
    ranks = rank.tolist()
    for i, slot in enumerate(slots.tolist()):
        if not -1 <= slot < len(ranks):
            raise ValueError(f"{op}: {name} must be in [-1, {len(ranks)}), got slot {slot} at {item} {i}")
        if slot >= 0 and ranks[slot] == 0:
            raise ValueError(f"{op}: {name} names slot {slot} at {item} {i}, but that slot is freed (rank 0)")
        if slot >= 0 and not 1 <= ranks[slot] <= stored:
            raise ValueError(f"{op}: rank of slot {slot} must be in 1..{stored} (stored ranks), got {ranks[slot]}")


def runs(op: str, runs: Tensor, rows: int, tokens: int) -> None:
    """Offsets of the runs of every row, nondecreasing, from 0, or in a batch of one from where the row before ends, to at most
    `tokens`."""
    if runs.dim() != 2 or (runs.shape[0] not in (1, rows) and rows != 1) or runs.shape[1] < 2:
        many = "any" if rows == 1 else f"1 or {rows}"
        raise ValueError(f"{op}: runs must have shape [{many}, 2 or more], got {list(runs.shape)}")
    dtype(op, "runs", runs, torch.int32)
    if torch.compiler.is_compiling() or type(runs) is not Tensor or not runs.is_cpu:
        return
    before = 0
    for row, own in enumerate(runs.tolist()):
        follows = row > 0 and rows == 1
        if (own[0] < before if follows else own[0] != 0) or own[-1] > tokens:
            raise ValueError(f"{op}: runs must go from {before} to at most {tokens}, got {own[0]} to {own[-1]} in row {row}")
        for one, other in zip(own, own[1:]):
            if other < one:
                raise ValueError(f"{op}: runs must not decrease, got {one} then {other} in row {row}")
        before = own[-1] if rows == 1 else 0


def alike(op: str, pairs: Tensor, columns: int) -> None:
    """Of every row another, or itself, and how many of its columns."""
    if torch.compiler.is_compiling() or type(pairs) is not Tensor or not pairs.is_cpu:
        return
    for row, (other, count) in enumerate(pairs.tolist()):
        if not (0 <= other < len(pairs) and 0 <= count <= columns):
            most, got = f"a row below {len(pairs)} and at most {columns} columns", f"{other} and {count} in row {row}"
            raise ValueError(f"{op}: alike must name {most}, got {got}")


def below(op: str, name: str, x: Tensor, end: int) -> None:
    """Whole numbers from 0 on, below `end`."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cpu:
        return
    for row, one in enumerate(x.tolist()):
        if not 0 <= one < end:
            raise ValueError(f"{op}: {name} must be in 0..{end - 1}, got {one} in row {row}")
