"""bank_copy_: rows of a bank copied within all its matrices, or set to zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(matrices, source, target):
    return None


_op = define(
    "bank_copy_(Tensor(a!)[] matrices, Tensor source, Tensor target) -> ()", reference.bank_copy_, _fake
)


def bank_copy_(matrices: Sequence[Tensor], source: Tensor, target: Tensor) -> None:
    """Row target[i] of every matrix becomes its row source[i], or zero where source[i] is -1: fork, copy and reset.

    matrices: one or more tensors [S,...] of any dtypes; source and target int32 [n]; no row is written twice, or both
    written and read. One launch on a GPU, where the values of source and target are not read: rows out of range are left
    alone there. Raises ValueError or TypeError before anything is written.
    """
    op = "bank_copy_"
    if not matrices:
        raise ValueError(f"{op}: matrices must hold at least one tensor, got none")
    for i, matrix in enumerate(matrices):
        _checks.same_device(op, matrices[0], **{f"matrices[{i}]": matrix})
        _checks.writable(op, f"matrices[{i}]", matrix)
        if matrix.dim() < 1 or matrix.shape[0] != matrices[0].shape[0]:
            raise ValueError(
                f"{op}: matrices[{i}] must have {matrices[0].shape[0]} rows as matrices[0] has, got {list(matrix.shape)}"
            )
    _checks.same_device(op, matrices[0], source=source, target=target)
    _checks.dtype(op, "source", source, torch.int32)
    _checks.dtype(op, "target", target, torch.int32)
    _checks.shape(op, "source", source, None)
    _checks.shape(op, "target", target, source.shape[0])
    if not torch.compiler.is_compiling() and type(source) is Tensor and source.is_cpu:
        read, written, rows = source.tolist(), target.tolist(), matrices[0].shape[0]
        for name, values, least in (("source", read, -1), ("target", written, 0)):
            for value in values:
                if not least <= value < rows:
                    raise ValueError(f"{op}: {name} must be in [{least}, {rows}), got {value}")
        if len(set(written)) < len(written) or set(written) & set(read):
            raise ValueError(f"{op}: target must not name a row twice or a row of source, got {written} from {read}")
    _op(list(matrices), source, target)
    torch.autograd.graph.increment_version(list(matrices))
