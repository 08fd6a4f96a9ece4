"""The weights in a folder's safetensors files, one after another: each is mapped when it is asked for, and takes memory only as
long as it is held."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

_PIECE = 1024  # rows
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Readable(Protocol):
    """What has the rows of a weight."""

    def rows(self, start: int, stop: int) -> Tensor: ...


class Stored:
    """A tensor in a file. Its mapping ends with the tensor: one of the whole file would keep all pages that were read."""

    def __init__(self, file: Path, name: str, kind: str):
        self.file, self.name, self.kind = file, name, kind

    def __getitem__(self, index) -> Tensor:
        with safe_open(self.file, framework="pt") as opened:
            return opened.get_tensor(self.name)[index]

    def rows(self, start: int, stop: int) -> Tensor:
        """Some rows alone, mapped."""
        with safe_open(self.file, framework="pt") as opened:
            return opened.get_slice(self.name)[start:stop]

    @property
    def shape(self) -> tuple[int, ...]:
        with safe_open(self.file, framework="pt") as opened:
            return tuple(opened.get_slice(self.name).get_shape())

    def get_dtype(self) -> str:
        """As safetensors names it, such as "BF16"."""
        return self.kind


def stored(folder: Path) -> dict[str, Stored]:
    """The tensors of a model's folder, by name. Raises FileNotFoundError where a file of weights is missing, OSError or
    safetensors' error for one that is damaged."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
    else:
        raise FileNotFoundError(f"{single.name} is missing, and so is {index.name}")
    out = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            out |= {name: Stored(file, name, opened.get_slice(name).get_dtype()) for name in opened.keys()}
    return out


@torch.no_grad()
def fill_(parts: Iterable[tuple[str, Tensor, int]], tensors: Mapping[str, Readable]) -> None:
    """Write into each part (name, rows, first row) those rows of the tensor in a file, in its own dtype and place."""
    for name, rows, first in parts:
        if len(rows):
            rows.copy_(tensors[name].rows(first, first + len(rows)))


def in_pieces(names: Iterable[str], tensors: Mapping[str, Stored]) -> Iterator[Tensor]:
    """The rows of these tensors, one after another in fp32, little at once."""
    for name in names:
        for start in range(0, tensors[name].shape[0], _PIECE):
            yield tensors[name].rows(start, start + _PIECE).float()


def common_dtype(tensors: dict[str, Stored]) -> torch.dtype | None:
    """The dtype of all tensors; None where they differ, or are no floats."""
    kinds = {tensor.get_dtype() for tensor in tensors.values()}
    return _DTYPES.get(kinds.pop()) if len(kinds) == 1 else None
