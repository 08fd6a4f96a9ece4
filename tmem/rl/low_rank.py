"""θ0 as W + s · B A under training: the model is frozen, and an adapter on all linear layers of its decoder is trained. The
experts of a mixture are none.

The model holds the sum, rounded to its dtype. So rollouts, online updates, the policy's update and a model that is loaded
later compute with one θ0, bit for bit, and none of them pays for the adapter. Weights in few bits cannot hold the sum: the
adapter lies beside them, in all of these (QLoRA, arXiv 2305.14314). With dy the gradient of a layer's output, that of W
would be dyᵀ x, and so

    dB = s · dyᵀ (x Aᵀ),   dA = s · (dy B)ᵀ x,

which takes no product of the size of W. Source of the form: LoRA, arXiv 2106.09685. The rounding is passed over, as it is where
fp32 copies of whole weights are trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.attach import find_sites
from ..models.bases import device_of
from ..models.families import trainable
from ..models.lora import fingerprint
from ..models.merge import Lora, place, read_lora, save_lora
from .policy import Averaged
from .world import ALONE, World

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SCALE = 2.0  # alpha = 2 · rank


class LowRank(Averaged):
    """A [rank, K] ~ N(0, 1/K) and B [N, rank] = 0 of every linear layer, in fp32, over a model in bf16 or fp32.

    4 (model and W) bytes a parameter in bf16, 16 of the adapter's. start: the folder of an adapter to go on from, of at most
    this rank. bits: those of the model, where they are few. Raises ValueError for an adapter that does not fit.
    """

    hooks: tuple = ()  # while gradients are wanted

    def __init__(
        self, model: nn.Module, rank: int, seed: int, world: World = ALONE, start: Path | None = None, bits: str | None = None
    ):
        trainable(model.config, bits, adapter=True)
        self.base, self.rank, self.bits = fingerprint(model), rank, bits
        self.name = model.config._name_or_path.removesuffix(f" in {bits}")
        # Experts stay as they are: what is trained of a mixture is its attention, and dense layers where it has some.
        self.layers = {site.name: site.module for site in find_sites(model, TARGETS, None) if site.parameter is None}
        factors = _begun(self.layers, rank, seed)
        if start is not None:
            _go_on_from(read_lora(start, model), factors, rank, start)
        self.places = [place(model, module, rank) for module in self.layers.values()]
        self.pairs = [(nn.Parameter(a), nn.Parameter(b)) for a, b in factors.values()]
        names = [f"{name}.lora_{kind}.weight" for name in self.layers for kind in "AB"]
        super().__init__(model, names, [p for pair in self.pairs for p in pair], world)
        self._freeze()
        self.publish()

    def _thaw(self) -> None:
        self.hooks = tuple(
            module.register_forward_hook(partial(_trained, a, b)) for module, (a, b) in zip(self.layers.values(), self.pairs)
        )

    def _freeze(self) -> None:
        self.model.requires_grad_(False)
        for hook in self.hooks:
            hook.remove()
        self.hooks = ()

    @torch.no_grad()
    def publish(self) -> None:
        self._put(self.params)

    def _put(self, params: list[Tensor]) -> None:
        for held, a, b in zip(self.places, params[::2], params[1::2]):
            held.put(a, b, SCALE)

    def remember(self) -> None:
        self.reference = [p.detach().clone() for p in self.params]

    @contextmanager
    def referring(self) -> Iterator[None]:
        with torch.no_grad():
            self._put(self.reference)
        try:
            yield
        finally:
            self.publish()

    @property
    def lora(self) -> Lora:
        """The adapter as it is now; its tensors are the parameters themselves."""
        pairs = {name: (a.detach(), b.detach()) for name, (a, b) in zip(self.layers, self.pairs)}
        return Lora(pairs, self.rank, SCALE, self.base, self.bits)

    def save(self, tokenizer, path: Path, weights: dict[str, Tensor] | None) -> None:
        save_lora(path, self.lora, self.name or None)


def _begun(layers: dict[str, nn.Module], rank: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every layer at the start, the same on every machine."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for name, module in layers.items():
        a = torch.randn(rank, module.in_features, generator=generator) * module.in_features**-0.5
        device = device_of(module)
        out[name] = a.to(device), torch.zeros(module.out_features, rank, device=device)
    return out


def _go_on_from(lora: Lora, factors: dict[str, tuple[Tensor, Tensor]], rank: int, path: Path) -> None:
    """Write an adapter over the first rows of A and columns of B; the others stay, with B = 0."""
    if lora.rank > rank:
        raise ValueError(f"train: {path} has rank {lora.rank}, policy_rank is {rank}; set it to {lora.rank} or more.")
    if others := sorted(lora.pairs.keys() - factors.keys()):
        raise ValueError(f"train: {path} adapts {others[0]}; expected some of {', '.join(TARGETS)} alone.")
    for name, (a, b) in lora.pairs.items():
        factors[name][0][: lora.rank] = a
        factors[name][1][:, : lora.rank] = b * (lora.scale / SCALE)


def _trained(a: Tensor, b: Tensor, _module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
    """A forward hook: y as it is, and a path for the gradients of A and B, whatever Δ the layer had beside W."""
    return _Trained.apply(y, given[0].detach(), a, b) if torch.is_grad_enabled() else None


class _Trained(torch.autograd.Function):
    """y [..., N] -> y. Products in y's dtype, sums over tokens in fp32 where the machine has it so; gradients are fp32."""

    @staticmethod
    def forward(ctx, y, x, a, b):
        ctx.save_for_backward(x, a, b)
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, a, b = ctx.saved_tensors
        rows, seen = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        z, dz = seen @ a.to(seen.dtype).T, rows @ b.to(rows.dtype)
        return dy, None, SCALE * (dz.T @ seen).float(), SCALE * (rows.T @ z).float()
