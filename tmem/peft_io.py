"""A slot as a PEFT adapter folder (adapter_config.json + adapter_model.safetensors), out and in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .folders import atomic_folder
from .journal import read_object

if TYPE_CHECKING:
    from .bank import AdapterBank

_PREFIX = "base_model.model."
_SAME = 1e-3  # relative: an SVD on another machine, or with other threads, differs in the last bits of A


def save_peft(bank: AdapterBank, slot: int, path: Path, extra: Mapping[str, str]) -> None:
    """Δ = (alpha/r)·B A with lora_A.weight = A [r, K] and lora_B.weight = Btᵀ [N, r], both fp32."""
    rank, scale = int(bank.rank[slot]), float(bank.scale[slot])
    tensors = {}
    for site in bank.sites:
        a = site.a[slot if bank.train_a else 0, :rank]
        tensors[f"{_PREFIX}{site.name}.lora_A.weight"] = a.detach().float().cpu().contiguous().clone()
        tensors[f"{_PREFIX}{site.name}.lora_B.weight"] = site.bt[slot, :rank].T.detach().float().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(bank.model.config, "_name_or_path", "") or None,
        "r": rank,
        "lora_alpha": rank * scale,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [s.name for s in bank.sites],
    }
    with atomic_folder(path, "adapter_config.json") as work:
        save_file(tensors, work / "adapter_model.safetensors", metadata={"format": "pt", "subspace": bank.subspace})
        (work / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        for name, text in extra.items():
            (work / name).write_text(text, encoding="utf-8")


def load_peft(bank: AdapterBank, path: Path) -> int:
    """Read an adapter folder into a new slot; everything is checked before the slot is taken."""
    files = [path / "adapter_config.json", path / "adapter_model.safetensors"]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"load: {file} is missing; expected a PEFT adapter folder saved as safetensors.")
    config = read_object(files[0])
    extras = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
    unsupported = [k for k in extras if config.get(k)]
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"] not in ("gaussian", "orthogonal"):
        unsupported.append(f"init_lora_weights {config['init_lora_weights']}, which changes the base model,")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unsupported:
        raise ValueError(
            f"load: {path} is not a plain LoRA adapter (peft_type {config.get('peft_type')}, "
            f"{', '.join(unsupported) or 'bias ' + str(config.get('bias'))}); only plain LoRA without bias is read."
        )
    if not (isinstance(config.get("r"), int) and config["r"] > 0 and isinstance(config.get("lora_alpha"), int | float)):
        raise ValueError(
            f"load: {files[0]}: expected r >= 1 and a number lora_alpha, "
            f"got r {config.get('r')!r} and lora_alpha {config.get('lora_alpha')!r}."
        )
    rank = config["r"]
    if rank > bank.max_rank:
        raise ValueError(f"load: {path} has rank {rank}, this bank stores {bank.max_rank}; build it with a larger rank.")
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    try:
        tensors = load_file(files[1])
    except SafetensorError as error:
        raise ValueError(f"load: {files[1]} is damaged ({error}); save the adapter again.") from error
    if not tensors:
        raise ValueError(f"load: {files[1]} holds no weights; save the adapter again.")
    pairs = {}
    for site in bank.sites:
        keys = [f"{_PREFIX}{site.name}.lora_{x}.weight" for x in "AB"]
        if all(k in tensors for k in keys):
            a, b = (tensors.pop(k) for k in keys)
            want = (rank, site.module.in_features), (site.module.out_features, rank)
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
        raise ValueError(f"load: {path} adapts {sorted(tensors)[0]}, which this bank does not; widen targets/last_layers.")
    slot = bank.alloc(rank, alpha=scale * rank)
    for site in bank.sites:
        if site.name in pairs:
            a, b = pairs[site.name]
            site.bt[slot, :rank].copy_(b.T)
            if bank.train_a:
                site.a[slot, :rank].copy_(a)
    bank._written(slot)
    return slot
