"""Talk and work take turns on one model: an answer waits for one step of learning at most, and both get the same time.

A step is what runs inside `turn`: a token of all answers, prompts that are read, a minibatch that is learned. In a thread that
takes part in nobody's turns it costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

_mine: ContextVar[Callable[[], AbstractContextManager]] = ContextVar("turn", default=nullcontext)


@contextmanager
def turn() -> Iterator[None]:
    """One step of whatever part this thread has; it waits for its turn. A step within a step is part of it."""
    with _mine.get()():
        token = _mine.set(nullcontext)
        try:
            yield
        finally:
            _mine.reset(token)


class Turns:
    """Whose turn it is: of one thread that talks, or of one of those that work.

    After a step of work, talk has as much time as that step took, if it has that much to do. So a step of talk waits for one
    step of work at most, and work that never ends takes half of the time. Those that work follow each other in the order in
    which they came.

    talking: whether there is anything to be said; work does not wait for a thread that has nothing to say.
    """

    def __init__(self) -> None:
        self.talking = False
        self._changed = threading.Condition()
        self._taken = False
        self._line: deque[object] = deque()  # those that wait to work, first come first
        self._owed = 0.0  # seconds that talk has left before the next step of work

    def talks(self) -> None:
        """This thread talks."""
        _mine.set(self._talk)

    def works(self) -> None:
        """This thread works."""
        _mine.set(self._work)

    @contextmanager
    def _talk(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not (self._line and self._owed <= 0.0))
            self._taken = True
        began = time.monotonic()
        try:
            yield
        finally:
            self._end(max(0.0, self._owed - (time.monotonic() - began)))

    @contextmanager
    def _work(self) -> Iterator[None]:
        me = object()
        with self._changed:
            self._line.append(me)
            self._changed.wait_for(lambda: not self._taken and self._line[0] is me and (not self.talking or self._owed <= 0.0))
            self._line.popleft()
            self._taken = True
        began = time.monotonic()
        try:
            yield
        finally:
            self._end(time.monotonic() - began)

    def _end(self, owed: float) -> None:
        with self._changed:
            self._taken, self._owed = False, owed
            self._changed.notify_all()

    def silent(self) -> None:
        """There is nothing to be said for now."""
        with self._changed:
            self.talking = False
            self._changed.notify_all()
