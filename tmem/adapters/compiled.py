"""Layers under a bank as torch.compile sees them: one opaque op each, which finds its route when it runs."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..ops import _layer
from . import attach, routes

if TYPE_CHECKING:
    from .attach import Bank, Route, Site

KEPT = 256  # routes whose compiled backward may still come after their block has ended


class Compiled:
    """What a bank's layers need under torch.compile: a number each, and the routes that serve their backward."""

    def __init__(self, bank: Bank):
        self.routes: weakref.WeakValueDictionary[int, Route] = weakref.WeakValueDictionary()
        self.kept: deque[Route] = deque(maxlen=KEPT)
        self.lock, self._count = threading.Lock(), itertools.count()
        self.layers = {site.name: _Layer(bank, site, self) for site in bank.sites if site.parameter is None}
        self.numbers = {name: _layer.enter(layer) for name, layer in self.layers.items()}

    def number(self, route: Route) -> int:
        """What backward finds the route by."""
        with self.lock:
            if route.number is None:
                route.number = next(self._count)
                self.routes[route.number] = route
                self.kept.append(route)
            return route.number

    def route(self, number: int) -> Route:
        found = self.routes.get(number)
        if found is None:
            raise RuntimeError(
                f"route: a compiled backward belongs to a route after which {KEPT} others were opened; run backward sooner, or "
                "keep what `with bank.route(...) as route` gives."
            )
        return found


class _Layer:
    """One site: see tmem.ops._layer.Layer."""

    def __init__(self, bank: Bank, site: Site, compiled: Compiled):
        self._bank, self._compiled, self.site = weakref.ref(bank), weakref.ref(compiled), site
        self.ranks, self.reads_input = bank.max_rank, bank.train_a

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
        route = routes.current(self._bank()) if routes.opened() else None
        if route is None:
            return F.linear(x, w, bias), None, -1
        y, z = attach.adapted(self.site, None, x, w, bias, route.segments(x))
        return y, z, self._compiled().number(route)

    def backward(self, dy: Tensor, x: Tensor | None, w: Tensor, z: Tensor, route: int, need_dx: bool) -> Tensor | None:
        if route == -1:
            return dy @ w if need_dx else None
        served = self._compiled().route(route)
        return attach.gradients(self.site, served, served.segments(dy), served.learn, dy, x, w, z, need_dx)
