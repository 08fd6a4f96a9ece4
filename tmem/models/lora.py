"""A PEFT adapter folder (adapter_config.json + adapter_model.safetensors): what it says, what it holds, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..files.folders import atomic_folder, standing, whole
from .bases import pieces

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

PREFIX = "base_model.model."
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
    "target_parameters": "it adapts parameters outside of linear layers, as of experts",
    "layer_replication": "layers of the base model are repeated",
    "megatron_config": "it belongs to Megatron's layers",
    "fan_in_fan_out": "its base weights are transposed",
}
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")  # the base model stays as it is


def lora_files(
    pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int, scale: float, base: str | None, metadata: Mapping[str, str],
    layers: Sequence[str] | None = None, parameters: Sequence[str] = (),
) -> dict[str, bytes]:  # fmt: skip
    """The folder's two files, of A [rank, K] and B [N, rank] by the name of the linear layer: ΔW = (alpha/rank)·B A, in fp32.

    base: the name of the base model. metadata: of the file with the weights. layers: the names of linear layers, None: all of
    `pairs`. parameters: those of tensors that are adapted by their names; `pairs` has their factors under the names that PEFT
    gives them.
    """
    tensors = {}
    for name, factors in pairs.items():
        for kind, factor in zip("AB", factors):
            tensors[f"{PREFIX}{name}.lora_{kind}.weight"] = factor.detach().float().cpu().contiguous().clone()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank * scale,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": list(pairs if layers is None else layers),
        **({"target_parameters": list(parameters)} if parameters else {}),
    }
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: save(tensors, metadata={"format": "pt", **metadata})}


def write_folder(path: Path, files: Mapping[str, bytes], marker: str = CONFIG) -> None:
    """An adapter folder of these files, by name; atomic. marker: the file by which a folder may be replaced."""
    with atomic_folder(path, marker) as work:
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


def plain_lora(config: Mapping, file: Path, *, parameters: bool = False) -> tuple[int, float]:
    """r and the factor of B A. Raises ValueError for whatever is not plain LoRA, by its field.

    parameters: tensors of experts may be adapted.
    """
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        field = "peft_type" if config.get("peft_type") != "LORA" else "bias"
        raise ValueError(f"load: {file}: {field} is {config.get(field)!r}; only plain LoRA without bias is read.")
    for field, value in config.items():
        if value and field not in READ | IGNORED | ({"target_parameters"} if parameters else set()):
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


def is_named(module: str, config: Mapping) -> bool:
    """Whether target_modules lists the module. A pattern, or other fields that choose layers, leave it to the tensors."""
    targets = config.get("target_modules")
    chosen = any(config.get(k) for k in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    return isinstance(targets, list) and not chosen and any(f".{module}".endswith(f".{target}") for target in targets)


def has_parameter(name: str, config: Mapping) -> bool:
    """Whether target_parameters names the tensor, as PEFT reads that list."""
    targets = config.get("target_parameters")
    return isinstance(targets, list) and any(f".{name}".endswith(f".{target}") for target in targets)


def tensors_in(content: bytes, file: Path) -> dict[str, Tensor]:
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


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of the first value of every row of every weight, in bf16: trained weights differ from those they began as."""
    return hashed(tensor for parameter in model.parameters() for tensor in pieces(parameter))


def hashed(rows: Iterable[Tensor]) -> str:
    """The fingerprint of weights that come in pieces: all rows of the first one, of the next, and so on."""
    digest = blake2b(digest_size=8)
    for piece in filter(torch.Tensor.numel, rows):
        first = piece.detach().reshape(piece.shape[0] if piece.dim() else 1, -1)[:, 0].to(torch.bfloat16)
        digest.update(first.view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()
