"""Put a bank under a Hugging Face model: find the linear layers, replace their `forward`, take it away again.

Only the instance attribute `forward` of each adapted `nn.Linear` changes; parameters, names and state dict stay as they
are. Without a route the replacement is one attribute test.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .bank import AdapterBank


@dataclass(eq=False)
class Site:
    """One adapted linear layer and its part of the bank: `a` [S or 1, R, K], `bt` [S, R, N] and their gradients."""

    name: str
    module: nn.Linear
    a: Tensor | None = None
    bt: Tensor | None = None
    a_grad: Tensor | None = None
    bt_grad: Tensor | None = None


def find_sites(model: nn.Module, targets: tuple[str, ...], last_layers: int | None) -> list[Site]:
    """The linear layers named in `targets` (last part of the module's name) within the last `last_layers` layers.

    Raises ValueError naming a target that no layer has, that is not a plain `nn.Linear` (quantised, convolution,
    fused), or whose weight is tied to another module: adapting it would silently adapt both.
    """
    modules = dict(model.named_modules())
    layer_of = {name: int(m.group(1)) for name in modules if (m := re.search(r"\.layers\.(\d+)\.", name))}
    if not layer_of:
        raise ValueError(f"attach: {type(model).__name__} has no `layers.<i>.` modules to adapt; expected a decoder.")
    count = max(layer_of.values()) + 1
    if last_layers is not None and not 1 <= last_layers <= count:
        raise ValueError(f"last_layers: expected 1..{count} for this model, got {last_layers}.")
    first = 0 if last_layers is None else count - last_layers
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for _, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    sites = []
    for target in targets:
        found = [n for n in modules if n.rsplit(".", 1)[-1] == target]
        if not found:
            fused = sorted({n.rsplit(".", 1)[-1] for n in modules if target.split("_")[0] in n.rsplit(".", 1)[-1]})
            hint = f" It looks fused into {', '.join(fused)}, which tmem cannot adapt." if fused else ""
            raise ValueError(f"targets: {type(model).__name__} has no module named {target!r}.{hint}")
        for name in found:
            module = modules[name]
            if type(module) is not nn.Linear:
                raise ValueError(f"targets: {name} is a {type(module).__name__}; tmem adapts plain nn.Linear only.")
            others = [o for o in owners[id(module.weight)] if o != name]
            if others:
                raise ValueError(f"targets: the weight of {name} is tied to {', '.join(others)}; leave it out.")
            if name not in layer_of:
                raise ValueError(f"targets: {name} is not inside a decoder layer; leave it out.")
            if layer_of[name] >= first:
                sites.append(Site(name, module))
    return sorted(sites, key=lambda s: (layer_of[s.name], s.name))


class Route:
    """Which slot serves each batch row, fixed while a `with bank.route(...)` block is open and for its backward."""

    def __init__(self, bank: AdapterBank, slots: list[int], learn: bool):
        self.bank, self.slots, self.learn = bank, slots, learn
        self.used = sorted({s for s in slots if s >= 0})
        self.versions = [bank.version[s] for s in self.used]
        self._segments: dict[int, tuple[Tensor, Tensor]] = {}
        # A leaf that requires grad makes autograd visit the adapters although neither x nor the base weight need it.
        self.handle = torch.zeros((), requires_grad=True) if learn else None

    def segments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`seg_off` int32 [B+1] and `seg_slot` int32 [B] of an input [B, ..., K]: one segment per batch row."""
        rows = len(self.slots)
        if x.dim() < 2 or x.shape[0] != rows:
            raise ValueError(
                f"route: the model saw a batch of {x.shape[0] if x.dim() > 1 else 1} rows, but {rows} slots are routed; "
                f"give one slot per row (num_return_sequences and beams multiply the rows)."
            )
        length = x.shape[1:-1].numel()
        if length not in self._segments:
            offsets = torch.arange(rows + 1, dtype=torch.int32, device=x.device) * length
            self._segments[length] = (offsets, torch.tensor(self.slots, dtype=torch.int32, device=x.device))
        return self._segments[length]

    def check(self) -> None:
        """Raise RuntimeError if a routed slot was written, freed or reset since the route was opened."""
        stale = [s for s, v in zip(self.used, self.versions) if self.bank.version[s] != v]
        if stale:
            raise RuntimeError(
                f"route: slot {stale[0]} was changed (step, reset, restore or free) between forward and backward; "
                f"run backward before changing the slot, or open a new route."
            )


class _BankLinear(torch.autograd.Function):
    """y = x Wᵀ + b + scale·(x Aᵀ) B; backward accumulates dB (and dA) into the bank's gradient rows, in place.

    The bank is no autograd leaf: dense gradients of views of one large leaf cost about ten times as much.
    """

    @staticmethod
    def forward(ctx, x, w, bias, handle, site, route):
        bank = route.bank
        seg = route.segments(x)
        y, z = torch.ops.tmem.lora_linear(x, w, bias, site.a, site.bt, *seg, bank.rank, bank.scale)
        ctx.site, ctx.route, ctx.seg = site, route, seg
        ctx.learn = route.learn and handle is not None
        need_x = w.requires_grad or (ctx.learn and bank.train_a)
        ctx.save_for_backward(x if need_x else None, w, z if ctx.learn else None)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, z = ctx.saved_tensors
        site, route, bank = ctx.site, ctx.route, ctx.route.bank
        need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
        route.check()
        rows = dy.reshape(-1, dy.shape[-1])
        train_a = ctx.learn and bank.train_a
        if need_dx or train_a:
            dz = torch.ops.tmem.lora_shrink(rows, site.bt, *ctx.seg, bank.rank, bank.scale)
        dx = dw = None
        if ctx.learn:
            torch.ops.tmem.lora_gram_(site.bt_grad, z, rows, *ctx.seg, bank.rank)
        if train_a:
            torch.ops.tmem.lora_gram_(site.a_grad, dz, x.reshape(-1, x.shape[-1]), *ctx.seg, bank.rank)
        if need_dx:
            dx = rows @ w
            torch.ops.tmem.lora_expand_(dx, dz, site.a, *ctx.seg, bank.rank)
            dx = dx.view(*dy.shape[:-1], w.shape[1])
        if need_dw:
            dw = rows.T @ x.reshape(-1, x.shape[-1])
        return dx, dw, rows.sum(0) if need_db else None, None, None, None


def _forward(bank: AdapterBank, site: Site, x: Tensor) -> Tensor:
    w, bias, route = site.module.weight, site.module.bias, bank.current_route
    if route is None:
        return F.linear(x, w, bias)
    if torch.is_grad_enabled() and (route.learn or x.requires_grad or w.requires_grad):
        return _BankLinear.apply(x, w, bias, route.handle, site, route)
    return torch.ops.tmem.lora_linear(x, w, bias, site.a, site.bt, *route.segments(x), bank.rank, bank.scale)[0]


def attach(bank: AdapterBank) -> None:
    """Replace `forward` of every site's module. Raises RuntimeError if a module already carries a bank."""
    taken = [s.name for s in bank.sites if "forward" in vars(s.module)]
    if taken:
        raise RuntimeError(f"attach: {taken[0]} already has a replaced forward; detach the other bank first.")
    for site in bank.sites:
        site.module.forward = functools.partial(_forward, bank, site)


def detach(bank: AdapterBank) -> None:
    """Give every module its own `forward` back; harmless when the bank is not attached."""
    for site in bank.sites:
        mine = vars(site.module).get("forward")
        if isinstance(mine, functools.partial) and mine.args[0] is bank:
            del site.module.forward
