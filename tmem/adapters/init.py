"""Subspaces for the fast weights: what the shared factor A is made from. B starts at zero, so Δ = 0 exactly."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files.folders import atomic_file, cache_folder
from ..ops import batched_rsvd

INITS = ("sigma", "none", "sqrt", "unit_fro", "random", "orthogonal", "activation")
OF_WEIGHTS = ("sigma", "none", "sqrt", "unit_fro")

_RECIPE = 1  # counts changes of what the cache holds
_WORTH = 10_000_000  # elements of all weights together from which decompositions are kept on disk


def make_a(
    weights: Sequence[Tensor],
    rank: int,
    init: str = "sigma",
    seed: int = 0,
    *,
    inputs: Sequence[Tensor] | None = None,
    experts: Sequence[int] | None = None,
    cache: bool = True,
) -> list[Tensor]:
    """One factor A [rank, K] fp32 for every weight W [N, K] = U Σ Vᵀ, on its device.

    `sigma`       Σ_r V_rᵀ, the top right-singular directions times their singular values (arXiv 2606.04536)
    `none`        V_rᵀ, the same directions with rows of length 1
    `sqrt`        Σ_r^½ V_rᵀ
    `unit_fro`    Σ_r V_rᵀ / ‖Σ_r‖_F: `sigma` with ‖A‖_F = 1 in every layer
    `random`      Kaiming-uniform, as PEFT initialises lora_A: rows of length about 1/√3
    `orthogonal`  `rank` random orthonormal rows
    `activation`  the top right-singular directions of `inputs`, what the layer read on some texts ([tokens, K] each, see
                  `record_inputs`), with rows of length 1 (after EVA, arXiv 2410.07170)

    experts: of how many experts each weight is made, which lie one below the other in it. Of Σ then counts what is one expert's
    in the root mean square, Σ / √experts.

    Decompositions of weights on a CPU are kept in cache_folder()/svd under a hash of the weights; `cache=False` neither reads
    nor writes there. On a GPU they take less time than the hash. Raises ValueError for an unknown init, a rank above
    min(N, K), or inputs that are missing or too few.
    """
    if init not in INITS:
        raise ValueError(f"init: expected one of {', '.join(INITS)}, got {init!r}.")
    for w in weights:
        if not 1 <= rank <= min(w.shape):
            raise ValueError(f"rank: expected 1..{min(w.shape)} for a weight of shape {tuple(w.shape)}, got {rank}.")
    if init in ("random", "orthogonal"):
        return _drawn(weights, rank, init, seed)
    if init == "activation":
        return [found.Vh.contiguous().float() for found in _of_inputs(weights, rank, seed, inputs)]
    out = []
    for (s, v), count in zip(decompositions(weights, rank, seed, cache=cache), experts or [1] * len(weights)):
        s = s if count == 1 else s / count**0.5
        size = {"sigma": s, "none": torch.ones_like(s), "sqrt": s.sqrt(), "unit_fro": s / s.norm().clamp(min=1e-30)}[init]
        out.append((v * size).T.contiguous())
    return out


def decompositions(weights: Sequence[Tensor], rank: int, seed: int = 0, *, cache: bool = True) -> list[tuple[Tensor, Tensor]]:
    """(S [rank], V [K, rank]) fp32 of every weight, from the disk if it was computed before."""
    weights = [w.detach() for w in weights]
    cache = cache and sum(w.numel() for w in weights) >= _WORTH and all(w.device.type == "cpu" for w in weights)
    file = cache_folder() / "svd" / f"{_digest(weights, rank, seed)}.safetensors" if cache else None
    if file is not None and file.is_file():
        try:
            kept = load_file(file)
            return [(kept[f"s{i}"], kept[f"v{i}"]) for i in range(len(weights))]
        except (SafetensorError, KeyError) as error:
            warnings.warn(f"{file} is damaged ({error}); it is made anew.", stacklevel=2)
    found = batched_rsvd(weights, rank, seed=seed, compute=("S", "V"), out_dtype=torch.float32)
    out = [(s.to(torch.float32, copy=True), v.clone()) for _, s, v, _ in found]
    if file is not None:
        try:
            with atomic_file(file) as work:
                save_file({f"{name}{i}": x for i, pair in enumerate(out) for name, x in zip("sv", pair)}, work)
        except OSError as error:
            warnings.warn(f"{file} could not be written ({error}); set TMEM_CACHE to a folder that can.", stacklevel=2)
    return out


def _digest(weights: Sequence[Tensor], rank: int, seed: int) -> str:
    def one(w: Tensor) -> bytes:
        data = w.contiguous().view(torch.uint8).numpy()
        return hashlib.sha256(data).digest() + repr((tuple(w.shape), w.dtype)).encode()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = list(pool.map(one, weights))
    return hashlib.sha256(repr((_RECIPE, rank, seed)).encode() + b"".join(parts)).hexdigest()[:32]


def _drawn(weights: Sequence[Tensor], rank: int, init: str, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for w in weights:
        a = torch.empty(rank, w.shape[1])
        if init == "random":
            bound = 1 / math.sqrt(w.shape[1])
            a.uniform_(-bound, bound, generator=generator)
        else:
            nn.init.orthogonal_(a, generator=generator)
        out.append(a.to(w.device))
    return out


def _of_inputs(weights, rank: int, seed: int, inputs: Sequence[Tensor] | None):
    if inputs is None:
        raise ValueError("init: activation needs what the layers read; pass texts (token ids) to the bank.")
    for w, x in zip(weights, inputs, strict=True):
        if x.dim() != 2 or x.shape[1] != w.shape[1] or len(x) < rank:
            raise ValueError(
                f"init: activation needs inputs [tokens, {w.shape[1]}] of at least {rank} tokens, got {list(x.shape)}; "
                f"give more text."
            )
    return batched_rsvd(list(inputs), rank, seed=seed, compute=("V",))


@torch.no_grad()
def record_inputs(model: nn.Module, modules: Sequence[nn.Module], texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """What every module reads while the model reads the texts (token ids), [tokens, K] each.

    The first token of each text is left out: attention sinks there are hundreds of times larger than all else and would be
    every layer's first direction.
    """
    read: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}
    hooks = [m.register_forward_pre_hook(lambda m, args: read[m].append(args[0][0, 1:].detach())) for m in read]
    try:
        device = next(model.parameters()).device
        for ids in texts:
            if len(ids) > 1:
                model.base_model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(read[m]) if read[m] else next(m.parameters()).new_empty(0, m.in_features) for m in modules]
