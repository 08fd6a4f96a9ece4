"""θ0 as an adapter: W' = W + scale · B A of linear layers, which a frozen model holds as its weights. Weights in few bits
cannot hold the sum: there the adapter lies beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files.objects import object_in
from .bases import device_of, dtype_of, is_linear, plain_weight
from .lora import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    fingerprint,
    hashed,
    is_named,
    lora_files,
    plain_lora,
    read_folder,
    tensors_in,
    write_folder,
)  # fmt: skip
from .shards import Readable, Stored, in_pieces

# In the metadata of the file with the weights: the fingerprint of the model that the adapter is over, and its bits.
BASE, BITS = "base", "bits"
BESIDE = "beside"  # the name of an adapter inside of its layer


@dataclass(frozen=True)
class Lora:
    """scale · B A of linear layers: (A [rank, K], B [N, rank]) by the layer's name.

    base: the fingerprint of the weights that it was trained over; None: the file does not say.
    bits: of these weights, one of tmem.models.quantised.BITS; None: they were whole.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    scale: float
    base: str | None = None
    bits: str | None = None


class Merged:
    """W + scale · B A in the place of W, which is kept."""

    def __init__(self, module: nn.Linear):
        self.weight, self.frozen = module.weight, module.weight.detach().clone()

    def put(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.weight.copy_(merged(self.frozen, a, b, scale))


class Beside(nn.Module):
    """y + (x Aᵀ) (scale · B)ᵀ after a layer of y, A [r, K] and B [N, r] in the dtype in which the layer computes.

    Gradients go through it to x. Whatever the layer's `forward` is, this comes after it: so a bank's Δ lies over both.
    """

    def __init__(self, module: nn.Module, rank: int, dtype: torch.dtype):
        super().__init__()
        sizes, made = ((rank, module.in_features), (module.out_features, rank)), {"dtype": dtype, "device": device_of(module)}
        self.a, self.b = (nn.Parameter(torch.zeros(size, **made), requires_grad=False) for size in sizes)
        module.add_module(BESIDE, self)  # a part of the model, for whoever moves it or takes its fingerprint
        module.register_forward_hook(_added)

    def put(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.a.copy_(a)
        self.b.copy_(scale * b)


def _added(module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
    beside = module.get_submodule(BESIDE)
    return y + F.linear(F.linear(given[0].to(y.dtype), beside.a), beside.b)


def place(model: nn.Module, module: nn.Module, rank: int) -> Merged | Beside:
    """Where an adapter of a model's linear layer is put, as often as it changes."""
    return Beside(module, rank, dtype_of(model)) if plain_weight(module) is None else Merged(module)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale · B A in fp32, rounded once to W's dtype: W [N, K], A [r, K], B [N, r] -> [N, K]. B = 0 gives W itself."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale).to(weight.dtype)


@torch.no_grad()
def merge_(model: nn.Module, path: Path) -> None:
    """Write W' over the weights of a model, or put the adapter beside those in few bits. Raises as `read_lora` does, before any
    weight has changed."""
    lora = read_lora(path, model)
    modules = dict(model.named_modules())
    for name, (a, b) in lora.pairs.items():
        weight = plain_weight(modules[name])
        if weight is None:
            place(model, modules[name], lora.rank).put(a, b, lora.scale)
        else:
            weight.copy_(merged(weight, a.to(weight.device), b.to(weight.device), lora.scale))


class OverRows:
    """Rows of W + scale · B A in fp32, where W lies in a file."""

    def __init__(self, weight: Stored, a: Tensor, b: Tensor, scale: float):
        self.weight, self.a, self.b, self.scale = weight, a, b, scale

    def rows(self, start: int, stop: int) -> Tensor:
        return merged(self.weight.rows(start, stop).float(), self.a, self.b[start:stop], self.scale)


def over_rows(model: nn.Module, path: Path, weights: Mapping[str, Stored]) -> dict[str, Readable]:
    """The weights in a model's files under an adapter that is merged into whichever rows are read. model: without its weights.

    Raises as `read_lora` does.
    """
    lora = read_lora(path, model, weights)
    found: dict[str, Readable] = dict(weights)
    for name, (a, b) in lora.pairs.items():
        found[f"{name}.weight"] = OverRows(weights[f"{name}.weight"], a, b, lora.scale)
    return found


def read_lora(path: Path, model: nn.Module, weights: Mapping[str, Stored] | None = None) -> Lora:
    """A PEFT LoRA folder that fits `model`, which holds the weights that it is over; or they lie in files, by their names.

    Raises FileNotFoundError for a missing file, ValueError for what is no plain LoRA, is damaged or belongs to another model.
    """
    files = read_folder(path, (CONFIG, WEIGHTS))
    config = object_in(files[CONFIG], path / CONFIG)
    rank, scale = plain_lora(config, path / CONFIG)
    pairs = _pairs(tensors_in(files[WEIGHTS], path / WEIGHTS), path / WEIGHTS)
    said = stated(files[WEIGHTS])
    base = said.get(BASE)
    _fits(model, pairs, rank, path)
    absent = [n for n, m in model.named_modules() if is_linear(m) and n not in pairs and is_named(n, config)]
    if absent:
        raise ValueError(f"load: {path / WEIGHTS} lacks {absent[0]}, which target_modules names; save the adapter again.")
    if base is not None and base != (mine := _fingerprint(model, weights)):
        raise ValueError(
            f"load: {path} was trained over weights with the fingerprint {base}, these have {mine}; "
            f"open it with the model that it was trained on, in the same bits, without another adapter."
        )
    return Lora(pairs, rank, scale, base, said.get(BITS))


def _fingerprint(model: nn.Module, weights: Mapping[str, Stored] | None) -> str:
    return fingerprint(model) if weights is None else hashed(in_pieces(dict(model.named_parameters()), weights))


def bits_under(path: Path) -> str | None:
    """The bits of the weights that an adapter's folder was trained over; None: whole ones, or it does not say.

    Raises FileNotFoundError for a missing file, ValueError for one that is damaged.
    """
    content = read_folder(path, (WEIGHTS,))[WEIGHTS]
    tensors_in(content, path / WEIGHTS)
    return stated(content).get(BITS)


def save_lora(path: Path, lora: Lora, base: str | None) -> None:
    """Write a PEFT LoRA folder; atomic. base: the name or folder of the model that it is over."""
    if base and Path(base).is_dir():
        base = str(Path(base).absolute())
    said = {BASE: lora.base, BITS: lora.bits}
    metadata = {key: value for key, value in said.items() if value is not None}
    write_folder(path, lora_files(lora.pairs, lora.rank, lora.scale, base, metadata))


def stated(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that was read before: its header is JSON behind eight bytes that say its length."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__") or {}


def _pairs(tensors: Mapping[str, Tensor], file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the layer's name. Raises ValueError for a tensor that is neither, or alone."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):  # a file gives them in any order
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
        if not is_linear(module):
            raise ValueError(
                f"load: {path} adapts {name}, which is no linear layer of this {type(model).__name__}; "
                f"open it with the model it was made for."
            )
        if getattr(module, "weight", None) is embeddings:
            raise ValueError(
                f"load: {path} adapts {name}, whose weight is that of the embeddings; train it without this layer."
            )
        want, got = ((rank, module.in_features), (module.out_features, rank)), (tuple(a.shape), tuple(b.shape))
        if got != want:
            raise ValueError(
                f"load: {path}: {name}: expected A, B of {want}, got {got}; open it with the model it was made for."
            )
