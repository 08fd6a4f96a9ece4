"""θ0 as an adapter: W' = W + scale · B A of linear layers, which a frozen model holds as its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files.objects import object_in
from .lora import CONFIG, PREFIX, WEIGHTS, fingerprint, is_named, lora_files, plain_lora, read_folder, tensors_in, write_folder

BASE = "base"  # in the metadata of the file with the weights: the fingerprint of the model that the adapter is over


@dataclass(frozen=True)
class Lora:
    """scale · B A of linear layers: (A [rank, K], B [N, rank]) by the layer's name.

    base: the fingerprint of the weights that it was trained over; None: the file does not say.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    scale: float
    base: str | None = None


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale · B A in fp32, rounded once to W's dtype: W [N, K], A [r, K], B [N, r] -> [N, K]. B = 0 gives W itself."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale).to(weight.dtype)


@torch.no_grad()
def merge_(model: nn.Module, path: Path) -> None:
    """Write W' over the weights of a model. Raises as `read_lora` does, before any weight has changed."""
    lora = read_lora(path, model)
    modules = dict(model.named_modules())
    for name, (a, b) in lora.pairs.items():
        weight = modules[name].weight
        weight.copy_(merged(weight, a.to(weight.device), b.to(weight.device), lora.scale))


def read_lora(path: Path, model: nn.Module) -> Lora:
    """A PEFT LoRA folder that fits `model`, which holds the weights that it is over.

    Raises FileNotFoundError for a missing file, ValueError for what is no plain LoRA, is damaged or belongs to another model.
    """
    files = read_folder(path, (CONFIG, WEIGHTS))
    config = object_in(files[CONFIG], path / CONFIG)
    rank, scale = plain_lora(config, path / CONFIG)
    pairs = _pairs(tensors_in(files[WEIGHTS], path / WEIGHTS), path / WEIGHTS)
    base = stated(files[WEIGHTS]).get(BASE)
    _fits(model, pairs, rank, path)
    absent = [n for n, m in model.named_modules() if type(m) is nn.Linear and n not in pairs and is_named(n, config)]
    if absent:
        raise ValueError(f"load: {path / WEIGHTS} lacks {absent[0]}, which target_modules names; save the adapter again.")
    if base is not None and base != (mine := fingerprint(model)):
        raise ValueError(
            f"load: {path} was trained over weights with the fingerprint {base}, these have {mine}; "
            f"open it with the model that it was trained on, without another adapter."
        )
    return Lora(pairs, rank, scale, base)


def save_lora(path: Path, lora: Lora, base: str | None) -> None:
    """Write a PEFT LoRA folder; atomic. base: the name or folder of the model that it is over."""
    if base and Path(base).is_dir():
        base = str(Path(base).absolute())
    metadata = {} if lora.base is None else {BASE: lora.base}
    write_folder(path, lora_files(lora.pairs, lora.rank, lora.scale, base, metadata))


def stated(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that was read before: its header is JSON behind eight bytes that say its length."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__") or {}


def _pairs(tensors: Mapping[str, Tensor], file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the layer's name. Raises ValueError for a tensor that is neither, or alone."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        said = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if said is None:
            raise ValueError(f"load: {file} holds {name}, which is no factor of a plain LoRA as PEFT writes it; save it again.")
        found.setdefault(said[1], {})[said[2]] = tensor
    for name, factors in found.items():
        if len(factors) == 1:
            raise ValueError(f"load: {file} holds only lora_{[*factors][0]} of {name}; save the adapter again.")
    return {name: (factors["A"], factors["B"]) for name, factors in found.items()}


def _fits(model: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int, path: Path) -> None:
    """Raises ValueError for a layer that the model does not have, that shares its weight, or that has another shape."""
    modules, embeddings = dict(model.named_modules()), model.get_input_embeddings().weight
    for name, (a, b) in pairs.items():
        module = modules.get(name)
        if type(module) is not nn.Linear:
            raise ValueError(
                f"load: {path} adapts {name}, which is no linear layer of this {type(model).__name__}; "
                f"open it with the model it was made for."
            )
        if module.weight is embeddings:
            raise ValueError(
                f"load: {path} adapts {name}, whose weight is that of the embeddings; train it without this layer."
            )
        want, got = ((rank, module.in_features), (module.out_features, rank)), (tuple(a.shape), tuple(b.shape))
        if got != want:
            raise ValueError(
                f"load: {path}: {name}: expected A, B of {want}, got {got}; open it with the model it was made for."
            )
