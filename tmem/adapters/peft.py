"""A slot as a PEFT adapter folder, out and in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from ..files.objects import object_in
from ..models.lora import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    is_named,
    lora_files,
    plain_lora,
    read_folder,
    tensors_in,
    write_folder,
)
from .bank import AdapterBank

_SAME = 1e-3  # relative: an SVD on another machine, or with other threads, differs in the last bits of A


def save_adapter(bank: AdapterBank, slot: int, path: str | Path, extra: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the slot as a PEFT adapter folder that `peft.PeftModel.from_pretrained` loads; atomic.

    extra: further text files of the folder, by name. Raises ValueError for a slot that is free or out of range.
    """
    bank.check(slot, "save")
    write_folder(Path(path), peft_files(bank, slot) | {name: text.encode() for name, text in extra.items()})


def peft_files(bank: AdapterBank, slot: int) -> dict[str, bytes]:
    """Δ = (alpha/r)·B A with lora_A.weight = A [r, K] and lora_B.weight = Btᵀ [N, r], both fp32: the folder's two files."""
    rank, scale = int(bank.rank[slot]), float(bank.scale[slot])
    pairs = {s.name: (s.a[slot if bank.train_a else 0, :rank], s.bt[slot, :rank].T) for s in bank.sites}
    base = getattr(bank.model.config, "_name_or_path", "") or None
    return lora_files(pairs, rank, scale, base, {"subspace": bank.subspace})


def load_adapter(bank: AdapterBank, path: str | Path, files: Mapping[str, bytes] | None = None) -> int:
    """Read a PEFT LoRA adapter folder, or its two `files`, into a new slot and return it.

    Everything is checked before the slot is taken. Raises FileNotFoundError for a missing file, ValueError if the adapter
    does not fit: another rank, layers that this bank lacks, or an A of its own while this bank shares one frozen A (use
    train_a=True).
    """
    path = Path(path)
    files = files or read_folder(path, (CONFIG, WEIGHTS))
    config = object_in(files[CONFIG], path / CONFIG)
    rank, scale = plain_lora(config, path / CONFIG)
    if rank > bank.max_rank:
        raise ValueError(f"load: {path} has rank {rank!r:.40}, this bank stores {bank.max_rank}; build it with a larger rank.")
    pairs = _pairs(bank, tensors_in(files[WEIGHTS], path / WEIGHTS), rank, path / WEIGHTS)
    if absent := [s.name for s in bank.sites if s.name not in pairs and is_named(s.name, config)]:
        raise ValueError(f"load: {path / WEIGHTS} lacks {absent[0]}, which target_modules names; save the adapter again.")
    slot = bank.alloc(rank, alpha=scale * rank)
    for site in bank.sites:
        if site.name in pairs:
            a, b = pairs[site.name]
            site.bt[slot, :rank].copy_(b.T)
            if bank.train_a:
                site.a[slot, :rank].copy_(a)
    bank.written(slot)
    return slot


def _pairs(bank: AdapterBank, tensors: dict[str, Tensor], rank: int, file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A [rank, K] and B [N, rank] by site. Raises ValueError for a tensor that is left over, alone, or of another shape."""
    pairs = {}
    for site in bank.sites:
        keys = [f"{PREFIX}{site.name}.lora_{x}.weight" for x in "AB"]
        have = [k for k in keys if k in tensors]
        if len(have) == 1:
            lacks = next(k for k in keys if k not in tensors)
            raise ValueError(f"load: {file} holds {have[0]} but no {lacks}; save the adapter again.")
        if have:
            a, b = (tensors.pop(k) for k in keys)
            want = (rank, site.inputs), (site.outputs, rank)
            if (tuple(a.shape), tuple(b.shape)) != want:
                raise ValueError(f"load: {site.name}: expected A, B of {want}, got {tuple(a.shape)}, {tuple(b.shape)}.")
            shared = site.a[0, :rank].float().cpu()
            if not bank.train_a and (a.float() - shared).norm() > _SAME * shared.norm():
                raise ValueError(
                    f"load: {site.name} has another A than this bank, which shares one frozen A; load it under the model, "
                    f"targets and init that it was made with, or into AdapterBank(..., train_a=True)."
                )
            pairs[site.name] = (a, b)
    if tensors:
        raise ValueError(f"load: {file} {_left_over(bank, sorted(tensors)[0])}")
    return pairs


def _left_over(bank: AdapterBank, name: str) -> str:
    """What a tensor is that no site takes, and what to do."""
    module, found, factor = name.partition(".lora_")
    if not found or factor[:1] not in ("A", "B") or factor.endswith(".bias"):
        return f"holds {name}, which is no factor of a plain LoRA; only lora_A and lora_B of linear layers are read."
    standard = f".lora_{factor[:1]}.weight"
    site = next((s.name for s in bank.sites if f".{module}".endswith(f".{s.name}")), None) or next(
        (s.name for s in bank.sites if s.name.endswith(f".{module.removeprefix(PREFIX)}")), None
    )
    if site and name != f"{PREFIX}{site}{standard}":
        return f"names a tensor {name}, where PEFT's own files say {PREFIX}{site}{standard}; rename its tensors."
    return f"adapts {name}, which this bank does not; widen targets/last_layers, or open it with the model it was made for."
