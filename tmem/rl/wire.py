"""What travels between a training run and its workers: θ0, what is to be generated, and what was generated.

A message is a safetensors file with one JSON object as its metadata: it holds no code, and its numbers keep their bits. A
generation is a function of θ0, the Δ of its slot, its prompt and its noise key. All of these travel, θ0 by its version: so a
request may be made again, of any worker, and gives the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..adapters.bank import AdapterBank, Snapshot
from ..agent.decode import Generation
from ..files.objects import parsed
from ..files.shapes import check
from ..models.lora import PREFIX
from ..models.merge import Lora, stated

KIND = "application/octet-stream"  # of a message's body
_SAID = "said"
_THETA = {
    "base": str, "bits": (str, None), "rank": int, "scale": float, "subspace": str,
    "bank": {"rank": int, "targets": [str], "last_layers": (int, None), "train_a": bool},
}  # fmt: skip
_REQUEST = {
    "theta": str, "prompts": [[int]], "slots": ([int], None), "end": [int], "max_new": int, "begins": ([int], None),
    "temperature": float, "top_p": float, "keys": ([str], None), "ranks": ([int], None),
    "rows": [{"rank": int, "scale": float}],
}  # fmt: skip
_FOUND = {"generations": [{"ids": [int], "logprobs": [float], "finished": bool}]}


@dataclass(frozen=True)
class Theta:
    """θ0 as an adapter over the model as it came, and the bank whose Δ lie over both.

    lora      A [r, K] and B [N, r] fp32 by the layer's name, and the fingerprint of the model under them
    bank      its rank, targets, last_layers and train_a
    factors   its A of every adapted layer, [R, K] fp32
    subspace  the name of its layout and A
    """

    lora: Lora
    bank: Mapping[str, Any]
    factors: list[Tensor]
    subspace: str

    @classmethod
    def of(cls, lora: Lora, bank: AdapterBank) -> Theta:
        """An adapter with the bank that is over it."""
        sizes = {"rank": bank.max_rank, "targets": list(bank.targets), "last_layers": bank.last_layers, "train_a": bank.train_a}
        return cls(lora, sizes, bank.factors, bank.subspace)


def theta_bytes(theta: Theta) -> bytes:
    """θ0 as a file, the same bytes for the same numbers."""
    lora, tensors = theta.lora, {f"subspace/{i}": a for i, a in enumerate(theta.factors)}
    for name, factors in lora.pairs.items():
        tensors |= {f"{PREFIX}{name}.lora_{kind}.weight": factor for kind, factor in zip("AB", factors)}
    said = {
        "base": lora.base, "bits": lora.bits, "rank": lora.rank, "scale": lora.scale, "subspace": theta.subspace,
        "bank": theta.bank,
    }  # fmt: skip
    return _packed(said, tensors)


def theta_in(content: bytes) -> Theta:
    """What `theta_bytes` wrote. Raises ValueError for anything else."""
    said, tensors = _unpacked(content, _THETA, "θ0")
    count = sum(name.startswith("subspace/") for name in tensors)
    try:
        factors = [tensors.pop(f"subspace/{i}") for i in range(count)]
        names = [n.removeprefix(PREFIX).removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
        pairs = {name: tuple(tensors.pop(f"{PREFIX}{name}.lora_{kind}.weight") for kind in "AB") for name in names}
    except KeyError as error:
        raise ValueError(f"θ0: {error} is missing.") from error
    if tensors:
        raise ValueError(f"θ0: {min(tensors):.80} has no place in it.")
    for name, tensor in [*((n, t) for n, pair in pairs.items() for t in pair), *enumerate(factors)]:
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ValueError(f"θ0: {name}: expected finite numbers in float32.")
    if not factors or any(a.shape[:1] != (said["bank"]["rank"],) for a in factors):
        raise ValueError(f"θ0: expected A of rank {said['bank']['rank']} of every layer under the bank.")
    lora = Lora(pairs, said["rank"], said["scale"], said["base"], said["bits"])
    return Theta(lora, said["bank"], factors, said["subspace"])


def version_of(content: bytes) -> str:
    """The name of a θ0, by the bytes of its file."""
    return blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Request:
    """What is to be generated; the fields are the arguments of `decode`.

    theta  the version of θ0 that it is to be generated with
    slots  by prompt which of `rows` is its Δ, -1: none; None: there is no bank
    rows   Δ each, without the moments of an optimizer
    """

    theta: str
    prompts: list[list[int]]
    slots: list[int] | None
    end: list[int]
    max_new: int
    begins: list[int] | None
    temperature: float
    top_p: float
    keys: list[str] | None
    ranks: list[int] | None
    rows: list[Snapshot]

    def __post_init__(self):
        count, most = len(self.prompts), len(self.rows)
        for name in ("slots", "begins", "keys", "ranks"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"request: {name}: expected {count}, one a prompt, got {len(value)}.")
        if any(not -1 <= slot < most for slot in self.slots or ()):
            raise ValueError(f"request: slots: expected -1 to {most - 1}, a row each.")


def request_bytes(request: Request) -> bytes:
    """A request as a file."""
    said = {name: getattr(request, name) for name in _REQUEST if name != "rows"}
    said["rows"] = [{"rank": row.rank, "scale": row.scale} for row in request.rows]
    return _packed(said, {"rows": torch.stack([row.param for row in request.rows])} if request.rows else {})


def request_in(content: bytes, subspace: str) -> Request:
    """What `request_bytes` wrote, its rows in a bank's subspace. Raises ValueError for anything else."""
    said, tensors = _unpacked(content, _REQUEST, "request")
    params, each = tensors.get("rows", torch.empty(0, 0)), said.pop("rows")
    if params.dtype != torch.float32 or params.dim() != 2 or len(params) != len(each):
        raise ValueError(f"request: rows: expected float32 [{len(each)}, P], got {params.dtype} {list(params.shape)}.")
    rows = [Snapshot(param, row["rank"], row["scale"], subspace) for param, row in zip(params, each)]
    return Request(**{name: said[name] for name in _REQUEST if name != "rows"}, rows=rows)


def generations_bytes(found: Sequence[Generation]) -> bytes:
    """Generations as JSON, log-probabilities with all of their digits."""
    return json.dumps({"generations": [vars(g) for g in found]}).encode()


def generations_in(content: bytes, request: Request, vocabulary: int) -> list[Generation]:
    """What `generations_bytes` wrote of a request, in token ids below `vocabulary`. Raises ValueError for anything else."""
    try:
        said = parsed(content)
    except ValueError as error:
        raise ValueError("the reply is not JSON.") from error
    _check(said, _FOUND, "the reply")
    found = [Generation(g["ids"], g["logprobs"], g["finished"]) for g in said["generations"]]
    if len(found) != len(request.prompts):
        raise ValueError(f"the reply has {len(found)} generations, expected {len(request.prompts)}.")
    for g in found:
        if len(g.ids) != len(g.logprobs) or len(g.ids) > request.max_new or any(lp > 0.0 for lp in g.logprobs):
            raise ValueError("the reply has a generation whose log-probabilities are none of its tokens.")
        if any(not 0 <= token < vocabulary for token in g.ids):
            raise ValueError("the reply has a token that the model does not have.")
    return found


def _packed(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata={_SAID: json.dumps(said)})


def _unpacked(content: bytes, shape: Any, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        tensors = load(content)
        said = parsed(stated(content)[_SAID].encode())
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{where}: this is no safetensors file of a training run of tmem.") from error
    _check(said, shape, where)
    return said, tensors


def _check(said: Any, shape: Any, where: str) -> None:
    try:
        check(said, shape, where)
    except ValueError as error:
        raise ValueError(f"{str(error).partition(';')[0]}.") from error
