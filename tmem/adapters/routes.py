"""Which routes are open here: in this context, a thread or a task, and nobody else's.

A thread starts without any, so its model is the base model. A task, or a thread that was handed a copy of the context
(asyncio.to_thread), goes on under the routes it began with while their blocks are open; then it is refused, for their slots
may be somebody else's by now. A generator has no context of its own: what it has open when it yields serves its caller, and
its next step runs in the context that asks for it. Where that one lacks its route, or has a later one open, it is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import _GeneratorContextManager, contextmanager
from contextvars import ContextVar, Token
from types import FrameType
from typing import Protocol


class Routed(Protocol):
    """A route, of which this module asks only whose layers it serves; see attach.Route."""

    @property
    def bank(self) -> object: ...

    def narrow(self, counts: Sequence[int], length: int) -> None: ...


class _Block:
    """One `with` block of one route, from whatever thread or task enters it to whatever leaves it.

    within: the generators that it is opened in. A block without a route hides those around it.
    """

    __slots__ = ("ended", "route", "token", "within")

    def __init__(self, route: Routed | None):
        self.route, self.ended, self.within = route, False, _generators()
        self.token: Token | None = None
        if self.within:
            _yielding.add(self)

    def end(self) -> None:
        self.ended, self.within = self.route is not None, frozenset()  # where nothing serves, nothing can be another's
        _yielding.discard(self)


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("tmem_routes", default=())
_yielding: set[_Block] = set()  # those that a generator may leave open while it waits for its next step


def opened() -> bool:
    """Whether a route may be open here: what a model without one pays per layer."""
    return bool(_blocks.get() or _yielding)


def _generators() -> frozenset[FrameType]:
    """The generators that are running here, but for those that are the block of a `with` statement just being entered."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        caller = frame.f_back
        if frame.f_code.co_flags & _GENERATOR and (caller is None or caller.f_code is not _ENTER):
            found.append(frame)
        frame = caller
    return frozenset(found)


_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_ENTER = _GeneratorContextManager.__enter__.__code__


@contextmanager
def serving(route: Routed) -> Iterator[Routed]:
    """Within the block `route` serves its bank's layers in this context."""
    block = _Block(route)
    block.token = _blocks.set((*_blocks.get(), block))
    try:
        yield route
    finally:
        block.end()
        _blocks.set(tuple(b for b in _blocks.get() if b is not block))


@contextmanager
def alone(routes: Sequence[Routed] = ()) -> Iterator[None]:
    """Within the block `routes` serve and none of those that are open around it."""
    blocks = tuple(map(_Block, (None, *routes)))
    token = _blocks.set(blocks)
    try:
        yield
    finally:
        for block in blocks:
            block.end()
        _blocks.reset(token)


def current(bank: object) -> Routed | None:
    """The route that serves the bank's layers in this context.

    Raises RuntimeError if its block has ended elsewhere, and in a generator whose own route is not the one that serves.
    """
    serves = None
    for block in reversed(_blocks.get()):
        if block.route is None or block.route.bank is bank:
            if not block.ended:
                serves = block
                break
            _leave(block)
    if _yielding:
        _refuse_passed_over(bank, serves)
    return None if serves is None else serves.route


def _refuse_passed_over(bank: object, serves: _Block | None) -> None:
    """A generator that is running here opened a route, and what serves here was not opened inside of it."""
    passed = [b for b in list(_yielding) if b is not serves and b.route is not None and b.route.bank is bank]
    if not passed:
        return
    here = _generators() - (frozenset() if serves is None else serves.within)
    if any(here & block.within for block in passed):
        raise RuntimeError(
            "route: a generator went on in another context than it opened its route in, or with a later route open; close the "
            "block before each yield, and open it again after."
        )


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


def here() -> list[Routed]:
    """The routes that are open here."""
    for block in _blocks.get():
        if block.ended:
            _leave(block)
    return [block.route for block in _blocks.get() if block.route is not None]


def kept() -> Callable[..., object]:
    """What calls a function under the routes that are open here now, wherever and whenever it is called."""
    routes = here()

    def call(function, *args):
        with alone(routes):
            return function(*args)

    return call
