"""A slot as a PEFT adapter folder, out and in.

PEFT wraps the tensors of experts one in another: the last that is adapted has the name of the module, and each one before it
`.base_layer` more. Its lora_A.weight is [E · r, K], one expert below the other, and its lora_B.weight [N, r · E], where column
j · E + e is expert e's. So a linear layer is the case E = 1.

In a mixture PEFT takes names of projections among target_modules for those of experts, in linear layers as well. There these
are given as target_parameters too, by the names of their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from ..files.objects import object_in
from ..models.experts import PROJECTIONS
from ..models.families import FUSED
from ..models.lora import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    has_parameter,
    is_named,
    lora_files,
    plain_lora,
    read_folder,
    tensors_in,
    write_folder,
)
from .attach import Site
from .bank import AdapterBank

_PROJECTIONS = tuple(f".{name}" for name in (*FUSED["gate_up_proj"], "down_proj"))
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
    parameters = {s: s.name for s in bank.sites if s.parameter is not None}
    names = _names(bank, {"target_parameters": [*parameters.values()]})
    if parameters:
        parameters |= {s: f"{s.name}.weight" for s in bank.sites if s.name.endswith(_PROJECTIONS) and s not in parameters}
    layers = [s.name for s in bank.sites if s not in parameters]
    pairs = {}
    for site in bank.sites:
        a = (site.of(site.a, slot) if bank.train_a else site.a)[:, :rank].expand(site.experts, -1, -1)
        b = site.of(site.bt, slot)[:, :rank]
        pairs[names[site]] = a.flatten(0, 1), b.permute(2, 1, 0).flatten(1)
    base = getattr(bank.model.config, "_name_or_path", "") or None
    return lora_files(pairs, rank, scale, base, {"subspace": bank.subspace}, layers, [*parameters.values()])


def _names(bank: AdapterBank, config: Mapping) -> dict[Site, str]:
    """Under which name PEFT has the factors of each site; sites that an adapter with this config does not wrap are left out."""
    wrapped: dict[nn.Module, list[str]] = {}
    for site in bank.sites:
        if site.parameter is not None:
            module = site.name.removesuffix(f".{site.parameter}")
            wrapped[site.module] = [name for name in PROJECTIONS if has_parameter(f"{module}.{name}", config)]
    found = {}
    for site in bank.sites:
        if site.parameter is None:
            found[site] = site.name
        elif site.parameter in wrapped[site.module]:
            inner = wrapped[site.module][::-1].index(site.parameter)
            found[site] = site.name.removesuffix(f".{site.parameter}") + ".base_layer" * inner
    return found


def load_adapter(bank: AdapterBank, path: str | Path, files: Mapping[str, bytes] | None = None) -> int:
    """Read a PEFT LoRA adapter folder, or its two `files`, into a new slot and return it.

    Everything is checked before the slot is taken. Raises FileNotFoundError for a missing file, ValueError if the adapter
    does not fit: another rank, layers that this bank lacks, or an A of its own while this bank shares one frozen A (use
    train_a=True).
    """
    path = Path(path)
    files = files or read_folder(path, (CONFIG, WEIGHTS))
    config = object_in(files[CONFIG], path / CONFIG)
    rank, scale = plain_lora(config, path / CONFIG, parameters=any(site.parameter is not None for site in bank.sites))
    if rank > bank.max_rank:
        raise ValueError(f"load: {path} has rank {rank!r:.40}, this bank stores {bank.max_rank}; build it with a larger rank.")
    names = _names(bank, config)
    pairs = _pairs(bank, names, tensors_in(files[WEIGHTS], path / WEIGHTS), rank, path / WEIGHTS)
    for site in bank.sites:
        by_weight = site in names if site.parameter is not None else has_parameter(f"{site.name}.weight", config)
        by_module = site.parameter is None and is_named(site.name, config)
        if (by_weight or by_module) and site not in pairs:
            field = "target_parameters" if by_weight else "target_modules"
            raise ValueError(f"load: {path / WEIGHTS} lacks {site.name}, which {field} names; save the adapter again.")
    slot = bank.alloc(rank, alpha=scale * rank)
    for site, (a, b) in pairs.items():
        site.of(site.bt, slot)[:, :rank].copy_(b)
        if bank.train_a:
            site.of(site.a, slot)[:, :rank].copy_(a)
    bank.written(slot)
    return slot


def _pairs(
    bank: AdapterBank, names: Mapping[Site, str], tensors: dict[str, Tensor], rank: int, file: Path
) -> dict[Site, tuple[Tensor, Tensor]]:
    """A [E, rank, K] and Bt [E, rank, N] by site, whose name in the file is in `names`; E = 1 for a linear layer.

    Raises ValueError for a tensor that is left over, alone, or of another shape.
    """
    pairs = {}
    for site, name in names.items():
        keys = [f"{PREFIX}{name}.lora_{x}.weight" for x in "AB"]
        have = [k for k in keys if k in tensors]
        if len(have) == 1:
            lacks = next(k for k in keys if k not in tensors)
            raise ValueError(f"load: {file} holds {have[0]} but no {lacks}; save the adapter again.")
        if have:
            a, b = (tensors.pop(k) for k in keys)
            want = (rank * site.experts, site.inputs), (site.outputs, rank * site.experts)
            if (tuple(a.shape), tuple(b.shape)) != want:
                raise ValueError(f"load: {site.name}: expected A, B of {want}, got {tuple(a.shape)}, {tuple(b.shape)}.")
            a, b = a.unflatten(0, (site.experts, rank)), b.unflatten(1, (rank, site.experts)).permute(2, 1, 0)
            shared = site.a[:1, :rank].float().cpu().expand(a.shape)
            if not bank.train_a and (a.float() - shared).norm() > _SAME * shared.norm():
                raise ValueError(
                    f"load: {site.name} has another A than this bank, which shares one frozen A; load it under the model, "
                    f"targets and init that it was made with, or into AdapterBank(..., train_a=True)."
                )
            pairs[site] = (a, b)
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
