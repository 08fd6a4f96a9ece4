"""bank_copy_: rows of a bank copied within all its matrices, or set to zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(matrices, source, target):
    return None


_op = define("bank_copy_(Tensor(a!)[] matrices, Tensor source, Tensor target) -> ()", reference.bank_copy_, _fake)


@_checks.public
def bank_copy_(matrices: Sequence[Tensor], source: Tensor, target: Tensor) -> None:
    """Row target[i] of every matrix becomes its row source[i], or zero where source[i] is -1: fork, copy and reset.

    matrices: one or more tensors [S,...] of any dtypes; source and target int32 [n]; no row is written twice, or both
    written and read. One launch on a GPU, or one a matrix where tmem was built without nvcc. The values of source and target
    are not read there: rows out of range are left alone. Raises ValueError or TypeError before anything is written.
    """
    op = "bank_copy_"
    if not matrices:
        raise ValueError(f"{op}: matrices must hold at least one tensor, got none")
    outputs = {f"matrices[{i}]": matrix for i, matrix in enumerate(matrices)}
    rows = matrices[0].shape[0] if matrices[0].dim() else "some"
    for name, matrix in outputs.items():
        _checks.same_device(op, matrices[0], **{name: matrix})
        if matrix.dim() < 1 or matrix.shape[0] != rows:
            raise ValueError(f"{op}: {name} must have {rows} rows, as every matrix has, got shape {list(matrix.shape)}")
    _checks.same_device(op, matrices[0], source=source, target=target)
    _checks.dtype(op, "source", source, torch.int32)
    _checks.dtype(op, "target", target, torch.int32)
    _checks.shape(op, "source", source, None)
    _checks.shape(op, "target", target, source.shape[0])
    if not torch.compiler.is_compiling() and type(source) is Tensor and source.is_cpu:
        read, written = source.tolist(), target.tolist()
        for name, values, least in (("source", read, -1), ("target", written, 0)):
            for value in values:
                if not least <= value < rows:
                    raise ValueError(f"{op}: {name} must be in [{least}, {rows}), got {value}")
        if len(set(written)) < len(written) or set(written) & set(read):
            raise ValueError(f"{op}: target must not name a row twice or a row of source, got {written} from {read}")
    _checks.written(op, outputs, {"source": source, "target": target})
    _op(list(matrices), source, target)
    _checks.changed(*matrices)
