"""Which routes are open here: in this context, a thread or a task, and nobody else's.

A thread starts without any, so its model is the base model. A task, or a thread that was handed a copy of the context
(asyncio.to_thread), goes on under the routes it began with while their blocks are open; then it is refused, for their slots
may be somebody else's by now. A generator shares its caller's context: what it has open when it yields serves the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attach import Route
    from .bank import AdapterBank


class _Block:
    """One `with` block of one route, from whatever thread or task enters it to whatever leaves it."""

    __slots__ = ("ended", "route", "token")

    def __init__(self, route: Route):
        self.route, self.ended = route, False
        self.token: Token | None = None


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("tmem_routes", default=())
opened = _blocks.get  # whether any route is open here: what a model without one pays per layer


@contextmanager
def serving(route: Route) -> Iterator[Route]:
    """Within the block `route` serves its bank's layers in this context."""
    block = _Block(route)
    block.token = _blocks.set((*_blocks.get(), block))
    try:
        yield route
    finally:
        block.ended = True
        _blocks.set(tuple(b for b in _blocks.get() if b is not block))


@contextmanager
def alone(routes: Sequence[Route] = ()) -> Iterator[None]:
    """Within the block `routes` serve and none of those that are open around it."""
    blocks = tuple(map(_Block, routes))
    token = _blocks.set(blocks)
    try:
        yield
    finally:
        for block in blocks:
            block.ended = True
        _blocks.reset(token)


def current(bank: AdapterBank) -> Route | None:
    """The route that serves the bank's layers in this context. Raises RuntimeError if its block has ended elsewhere."""
    for block in reversed(_blocks.get()):
        if block.route.bank is bank:
            if not block.ended:
                return block.route
            _leave(block)
    return None


def _leave(ended: _Block) -> None:
    """The context that entered the block goes on without it; one that was copied inside it does not know that it has ended."""
    blocks = _blocks.get()
    try:
        _blocks.reset(ended.token)  # a token is good only in its own context
    except (TypeError, ValueError):
        raise RuntimeError(
            "route: the block that opened this route has ended, and its slots may be somebody else's by now; "
            "wait inside the block for the tasks and threads that were started there, or let each open a route of its own."
        ) from None
    _blocks.set(tuple(b for b in blocks if b is not ended))


def kept() -> Callable[..., object]:
    """What calls a function under the routes that are open here now, wherever and whenever it is called."""
    for block in _blocks.get():
        if block.ended:
            _leave(block)
    routes = [block.route for block in _blocks.get()]

    def call(function, *args):
        with alone(routes):
            return function(*args)

    return call
