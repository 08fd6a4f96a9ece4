"""Mixtures of experts under a bank: rows sorted by (expert, slot), so that each projection is one call of an op.

What the ops take for a slot is slot · E + expert, a row of the bank's matrix as [slots · E, P/E]: see `layout`. A slot's rows
of one expert are one segment, in the order of the batch. So its sums do not depend on who else chose the expert.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..models.experts import Adapt, Rows, compute, compute_each, fixed, sort
from ..ops import _checks
from . import routes
from .attach import Bank, Route, Segments, Site, add_, add_rows_, added, bits


def mixtures(bank: Bank) -> dict[nn.Module, Callable]:
    """What the modules with adapted experts, and those around them, call in place of their `forward`."""
    found: dict[nn.Module, Callable] = {}
    for name, module in bank.model.named_modules():
        sites = {site.parameter: site for site in bank.sites if site.parameter is not None and site.module is module}
        if sites:
            found[bank.model.get_submodule(name.rpartition(".")[0])] = _around
            found[module] = functools.partial(_forward, sites=sites)
    return found


@torch.compiler.disable
def _around(bank: Bank, module: nn.Module, x: Tensor, *args, **kwargs):
    """The module that has experts and what chooses among them: here a batch [B, T, D] still has its rows."""
    route = routes.current(bank) if routes.opened() else None
    if route is not None:
        route.segments(x)  # raises where they are not those of the route
    return type(module).forward(module, x, *args, **kwargs)


@torch.compiler.disable
def _forward(bank: Bank, module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor, sites: dict[str, Site]) -> Tensor:
    """hidden [M, D], index int64 [M, top], weights [M, top] -> [M, D]."""
    route = routes.current(bank) if routes.opened() else None
    if route is None:
        return type(module).forward(module, hidden, index, weights)
    _checks.followed("route", "the experts' input", hidden)
    if fixed():
        return compute_each(module, hidden, index, weights, _each(bank, route, hidden, index, module.down_proj.shape[0], sites))
    rows = sort(index, _owners(route, hidden), bank.rank.shape[0])
    seg = _segments(bank, rows, module.down_proj.shape[0], hidden.device)
    single = bank.decodes_rows and hidden.shape[0] == len(route.slots) and route.lengths is None

    def adapt(name: str, x: Tensor, y: Tensor) -> Tensor:
        site = sites.get(name)
        if site is None:
            return y
        x = x.to(y.dtype)
        if torch.is_grad_enabled() and (route.learn or x.requires_grad or y.requires_grad):
            return added(y, x, route.handle, site, route, seg, None)
        if single:
            slot = seg.slot.repeat_interleave(seg.off.diff(), output_size=y.shape[0])
            add_rows_(y, x, site, slot, seg.rank, seg.scale)
        else:
            add_(y, x, site, seg)
        return y

    return compute(module, hidden, weights, rows, adapt)


def _each(bank: Bank, route: Route, hidden: Tensor, index: Tensor, experts: int, sites: dict[str, Site]) -> Adapt:
    """Of rows that are the choices of single tokens: each has a slot, slot · E + expert, of its own."""
    owner = route.segments(hidden[:, None]).slot[:, None]
    slot = torch.where(owner < 0, -1, owner * experts + index).flatten().to(torch.int32)
    rank, scale = (x[:, None].expand(-1, experts).flatten() for x in (bank.rank, bank.scale))

    def adapt(name: str, x: Tensor, y: Tensor) -> Tensor:
        if (site := sites.get(name)) is not None:
            add_rows_(y, x.to(y.dtype), site, slot, rank, scale)
        return y

    return adapt


def _owners(route: Route, hidden: Tensor) -> Tensor:
    """int32 [M]: the slot of every token, -1 where it has none."""
    seg = route.segments(hidden.unflatten(0, (len(route.slots), -1)))
    return seg.slot.repeat_interleave(seg.off.diff(), output_size=hidden.shape[0])


def _segments(bank: Bank, rows: Rows, experts: int, device: torch.device) -> Segments:
    lengths = [count for *_, count in rows.segments]
    slots = [-1 if owner < 0 else owner * experts + expert for expert, owner, _ in rows.segments]
    used = sorted({owner for _, owner, _ in rows.segments if owner >= 0})
    there = set(slots)
    without = [v for owner in used for v in range(owner * experts, (owner + 1) * experts) if v not in there]
    off = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    slot = torch.tensor(slots, dtype=torch.int32, device=device)
    rank, scale = (x.repeat_interleave(experts) for x in (bank.rank, bank.scale))
    plan = torch.ops.tmem.lora_plan(off, slot, rank, sum(lengths)) if device.type == "cuda" else None
    none = torch.tensor(without, dtype=torch.int64, device=device)
    return Segments(off, slot, rank, scale, plan, bits(used), none)
