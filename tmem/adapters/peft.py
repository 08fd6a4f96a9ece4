"""A slot as a PEFT adapter folder (adapter_config.json + adapter_model.safetensors), out and in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..files.folders import atomic_folder, standing, whole
from ..files.objects import object_in
from .bank import AdapterBank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_SAME = 1e-3  # relative: an SVD on another machine, or with other threads, differs in the last bits of A
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Every field of peft's LoraConfig is in one of these three; what is in none is refused when it is set.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"}
IGNORED = {
    # of the file
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    # of training, or of how it began
    "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "runtime_config",
    # which layers: the names of the tensors say so, and those that are not of a linear layer are refused
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying",
    # says nothing without megatron_config, use_qalora
    "megatron_core", "qalora_group_size",
}  # fmt: skip
REFUSED = {
    "use_dora": "DoRA scales the columns of the sum",
    "alora_invocation_tokens": "aLoRA adapts only what follows its invocation tokens",
    "lora_bias": "B has a bias",
    "use_qalora": "A reads averages of its input",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA puts singular values between the factors and changes the base model",
    "monteclora_config": "its factors are sampled",
    "arrow_config": "Arrow chooses among several adapters for each token",
    "rank_pattern": "its layers differ in rank",
    "alpha_pattern": "its layers differ in alpha",
    "modules_to_save": "whole modules of the base model are replaced",
    "trainable_token_indices": "rows of the embeddings are replaced",
    "target_parameters": "it adapts parameters outside of linear layers",
    "layer_replication": "layers of the base model are repeated",
    "megatron_config": "it belongs to Megatron's layers",
    "fan_in_fan_out": "its base weights are transposed",
}
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")  # the base model stays as it is


def save_adapter(bank: AdapterBank, slot: int, path: str | Path, extra: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the slot as a PEFT adapter folder that `peft.PeftModel.from_pretrained` loads; atomic.

    extra: further text files of the folder, by name. Raises ValueError for a slot that is free or out of range.
    """
    bank.check(slot, "save")
    write_folder(Path(path), peft_files(bank, slot) | {name: text.encode() for name, text in extra.items()})


def peft_files(bank: AdapterBank, slot: int) -> dict[str, bytes]:
    """Δ = (alpha/r)·B A with lora_A.weight = A [r, K] and lora_B.weight = Btᵀ [N, r], both fp32: the folder's two files."""
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
    weights = save(tensors, metadata={"format": "pt", "subspace": bank.subspace})
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: weights}


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """An adapter folder of these files, by name; atomic."""
    with atomic_folder(path, CONFIG) as work:
        for name, content in files.items():
            (work / name).write_bytes(content)


def read_folder(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files of an adapter folder as they stood at one moment. Raises FileNotFoundError for one that is missing."""
    folder = standing(path)
    if folder.exists() and not folder.is_dir():
        raise FileNotFoundError(f"load: {path} is a file; expected a PEFT adapter folder.")
    try:
        return whole(path, lambda folder: {name: (folder / name).read_bytes() for name in names})
    except FileNotFoundError as error:
        name = Path(error.filename).name if folder.exists() else names[0]
        raise FileNotFoundError(f"load: {path / name} is missing; {_expected(path)}.") from error


def _expected(path: Path) -> str:
    """What the folder should be, and the way there from what it holds."""
    if (path / "adapter_model.bin").is_file():
        return "its adapter_model.bin is a pickle, which may run code and is not read: save the adapter as safetensors"
    if inner := sorted(path.glob(f"*/{CONFIG}")):
        return f"expected a PEFT adapter folder, such as its subfolder {inner[0].parent.name}"
    return "expected a PEFT adapter folder saved as safetensors"


def load_adapter(bank: AdapterBank, path: str | Path, files: Mapping[str, bytes] | None = None) -> int:
    """Read a PEFT LoRA adapter folder, or its two `files`, into a new slot and return it.

    Everything is checked before the slot is taken. Raises FileNotFoundError for a missing file, ValueError if the adapter
    does not fit: another rank, layers that this bank lacks, or an A of its own while this bank shares one frozen A (use
    train_a=True).
    """
    path = Path(path)
    files = files or read_folder(path, (CONFIG, WEIGHTS))
    config = object_in(files[CONFIG], path / CONFIG)
    rank, scale = _plain_lora(config, path / CONFIG)
    if rank > bank.max_rank:
        raise ValueError(f"load: {path} has rank {rank!r:.40}, this bank stores {bank.max_rank}; build it with a larger rank.")
    pairs = _pairs(bank, _tensors(files[WEIGHTS], path / WEIGHTS), rank, path / WEIGHTS)
    if absent := [s.name for s in bank.sites if s.name not in pairs and _is_named(s.name, config)]:
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


def _plain_lora(config: Mapping, file: Path) -> tuple[int, float]:
    """r and the factor of B A. Raises ValueError for whatever is not plain LoRA, by its field."""
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        field = "peft_type" if config.get("peft_type") != "LORA" else "bias"
        raise ValueError(f"load: {file}: {field} is {config.get(field)!r}; only plain LoRA without bias is read.")
    for field, value in config.items():
        if value and field not in READ | IGNORED:
            why = REFUSED.get(field, "a field that tmem does not know")
            raise ValueError(f"load: {file} sets {field} ({why}); only plain LoRA is read.")
    init = config.get("init_lora_weights")
    if not any(init is plain or (init == plain and isinstance(init, str)) for plain in _PLAIN_INITS):
        raise ValueError(
            f"load: {file}: init_lora_weights is {init!r}, and such an adapter fits a base model that it changed when it "
            "began; save it from PEFT with path_initial_model_for_weight_conversion, which makes it plain LoRA."
        )
    r, alpha, rooted = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if type(r) is not int or r < 1 or type(alpha) not in (int, float) or not 0 < alpha < torch.finfo(torch.float32).max:
        got = f"r {r!r:.40} and lora_alpha {alpha!r:.40}"
        raise ValueError(f"load: {file}: expected r >= 1 and a number lora_alpha > 0, got {got}.")
    if rooted not in (True, False, None):
        raise ValueError(f"load: {file}: use_rslora is {rooted!r}, expected true or false.")
    return r, alpha / (r**0.5 if rooted else r)


def _is_named(module: str, config: Mapping) -> bool:
    """Whether target_modules lists the module. A pattern, or other fields that choose layers, leave it to the tensors."""
    targets = config.get("target_modules")
    chosen = any(config.get(k) for k in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    return isinstance(targets, list) and not chosen and any(f".{module}".endswith(f".{target}") for target in targets)


def _tensors(content: bytes, file: Path) -> dict[str, Tensor]:
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise ValueError(f"load: {file} is damaged ({error}); save the adapter again.") from error
    if not tensors:
        raise ValueError(f"load: {file} holds no weights; save the adapter again.")
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"load: {file}: {name} is {tensor.dtype}, expected float32, float16, bfloat16 or float64.")
        if not tensor.float().isfinite().all():
            raise ValueError(f"load: {file}: {name} holds values that are not finite; restore or train the adapter again.")
    return tensors


def _pairs(bank: AdapterBank, tensors: dict[str, Tensor], rank: int, file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A [rank, K] and B [N, rank] by site. Raises ValueError for a tensor that is left over, alone, or of another shape."""
    pairs = {}
    for site in bank.sites:
        keys = [f"{_PREFIX}{site.name}.lora_{x}.weight" for x in "AB"]
        have = [k for k in keys if k in tensors]
        if len(have) == 1:
            lacks = next(k for k in keys if k not in tensors)
            raise ValueError(f"load: {file} holds {have[0]} but no {lacks}; save the adapter again.")
        if have:
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
        raise ValueError(f"load: {file} {_left_over(bank, sorted(tensors)[0])}")
    return pairs


def _left_over(bank: AdapterBank, name: str) -> str:
    """What a tensor is that no site takes, and what to do."""
    module, found, factor = name.partition(".lora_")
    if not found or factor[:1] not in ("A", "B") or factor.endswith(".bias"):
        return f"holds {name}, which is no factor of a plain LoRA; only lora_A and lora_B of linear layers are read."
    standard = f".lora_{factor[:1]}.weight"
    site = next((s.name for s in bank.sites if f".{module}".endswith(f".{s.name}")), None) or next(
        (s.name for s in bank.sites if s.name.endswith(f".{module.removeprefix(_PREFIX)}")), None
    )
    if site and name != f"{_PREFIX}{site}{standard}":
        return f"names a tensor {name}, where PEFT's own files say {_PREFIX}{site}{standard}; rename its tensors."
    return f"adapts {name}, which this bank does not; widen targets/last_layers, or open it with the model it was made for."
