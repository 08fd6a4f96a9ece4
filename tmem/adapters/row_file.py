"""A row of the bank as a file, with all that learning goes on from, bit for bit. For exchange there is tmem.adapters.peft."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .bank import Snapshot

_NUMBERS = ("rank", "step", "scale")


def row_bytes(row: Snapshot) -> bytes:
    """The row in safetensors: param, m and v [P] where it has them, rank, step and scale, and the name of its subspace."""
    tensors = {name: t.detach().cpu().contiguous() for name in ("param", "m", "v") if (t := getattr(row, name)) is not None}
    tensors |= {name: torch.tensor(getattr(row, name), dtype=torch.float64) for name in _NUMBERS}
    return save(tensors | {"subspace": torch.tensor(list(row.subspace.encode()), dtype=torch.uint8)})


def row_in(content: bytes, where: str) -> Snapshot:
    """The row that `row_bytes` wrote. Raises ValueError, naming `where`, for anything else."""
    try:
        found = load(content)
        rank, step, scale = (found.pop(name).item() for name in _NUMBERS)
        subspace = bytes(found.pop("subspace").tolist()).decode()
        return Snapshot(found["param"], int(rank), float(scale), subspace, found.get("m"), found.get("v"), int(step))
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{where} is damaged: no row of a bank ({type(error).__name__}); restore it from a copy.") from error


def factors_bytes(factors: Sequence[Tensor]) -> bytes:
    """What all rows of a bank share, A of every adapted layer, in safetensors."""
    return save({str(i): a.detach().cpu().contiguous() for i, a in enumerate(factors)})


def factors_in(content: bytes, where: str) -> list[Tensor]:
    """The factors that `factors_bytes` wrote. Raises ValueError, naming `where`, for anything else."""
    try:
        found = load(content)
        return [found[str(i)] for i in range(len(found))]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{where} is damaged: no factors ({type(error).__name__}); restore it from a copy.") from error
