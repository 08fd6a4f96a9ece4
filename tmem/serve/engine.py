"""The engine of a server: one thread has the model. It answers what waits in one batch, and between two batches does
work, a step of it where that is long.

What a request is answered does not depend on who else is served: see tmem.agent.decode.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..store.database import Write
from ..store.kept import Kept
from ..store.store import MemoryStore, Missing, Telling

logger = logging.getLogger("tmem")

ROWS = 32  # requests that are answered in one batch, at most
TAUGHT = 8  # memories that learn in one update, at most: everybody waits for it
SHORT = 0.05  # seconds of work between two batches; a step that takes longer is the only one

Steps = Generator[None, None, Any]


class Full(RuntimeError):
    """As many requests wait as may. seconds: after how many to ask again."""

    def __init__(self, seconds: int):
        super().__init__(f"the server is busy and its queue is full; ask again in {seconds} s.")
        self.seconds = seconds


@dataclass(eq=False)
class Say:
    """A prompt to be answered.

    memory       whose Δ answers; None: the model alone
    prompt       makes the token ids, called with the memory while it has a slot; what it raises is the result
    tell         told of every token; True ends the answer
    most         tokens of the answer, at most
    key          of the noise
    how          it is sampled: temperature (0: greedy) and top_p
    done         the result, a tmem.agent.agent.Reply
    """

    memory: str | None
    prompt: Callable[[Kept | None], list[int]]
    tell: Callable[[int], bool]
    most: int
    key: str = ""
    how: tuple[float, float] = (0.0, 1.0)
    done: Future = field(default_factory=Future)

    def heard(self, token: int) -> bool:
        """Tell of a token; ends also where nobody waits for the answer any more."""
        return self.done.cancelled() or self.tell(token)


@dataclass(eq=False)
class Work:
    """Something to be done between batches, a step at a time: a generator, whose value is the result."""

    steps: Steps
    done: Future = field(default_factory=Future)


@dataclass(eq=False)
class Learn:
    """Pairs to be learned; those of several memories in one update, between batches. The result is the Write."""

    telling: Telling
    done: Future = field(default_factory=Future)


class Engine:
    """Runs until `close`. At most `most` requests wait; `submit` raises Full for one more.

    wrote: told of what was written because it was due.
    """

    def __init__(self, store: MemoryStore, most: int, wrote: Callable[[list[Write]], None]):
        self.store, self.most, self.wrote = store, most, wrote
        self._says: deque[Say] = deque()
        self._works: deque[Work | Learn] = deque()
        self._due: dict[str, None] = {}  # memories in which text waits that is to be written, in order
        self._wake = threading.Condition()
        self._open = True
        self._seconds = 1.0  # that a round takes, lately
        self._thread = threading.Thread(target=self._run, name="tmem engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._says) + len(self._works)

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._open and self._thread.is_alive()

    def submit(self, job: Say | Work | Learn, *, follows: bool = False) -> Future:
        """Have a job done; its result. Raises Full, and RuntimeError once closed.

        follows: it belongs to a request that was let in already, and is never one too many.
        """
        with self._wake:
            if not self._open:
                raise RuntimeError("the server is shutting down; ask again when it is back.")
            if self.waiting >= self.most and not follows:
                raise Full(max(1, math.ceil(self._seconds * (1 + self.waiting / ROWS))))
            (self._says if isinstance(job, Say) else self._works).append(job)  # type: ignore[attr-defined]
            self._wake.notify()
        return job.done

    def later(self, name: str) -> None:
        """Write what is due in this memory once nothing else waits."""
        with self._wake:
            self._due[name] = None
            self._wake.notify()

    def close(self) -> None:
        """End after the step that is under way; what still waits is cancelled."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._thread.join()
        for job in [*self._says, *self._works]:
            job.done.cancel()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: not self._open or self._says or self._works or self._due)
                if not self._open:
                    return
                says = self._batch()
            began = time.monotonic()
            if says:
                self._answer(says)
            self._work()
            self._seconds += 0.2 * (time.monotonic() - began - self._seconds)

    def _work(self) -> None:
        """Steps of work until they have taken SHORT seconds: reading many messages must not take a batch each, and one step
        that is long is the last."""
        ends = time.monotonic() + SHORT
        while time.monotonic() < ends:
            with self._wake:
                work = self._next_work() if self._open else None
            if work is None:
                return
            self._step(work)

    def _batch(self) -> list[Say]:
        """Those first in the queue that are sampled in one way and have a slot each, without the ones nobody waits for."""
        taken: list[Say] = []
        left: deque[Say] = deque()
        names: set[str] = set()
        for job in self._says:
            if job.done.cancelled():
                continue
            fits = len(taken) < ROWS and (not taken or job.how == taken[0].how)
            more = names if job.memory is None else names | {job.memory}
            if fits and len(more) <= self.store.slots:
                taken.append(job)
                names = more
            else:
                left.append(job)
        self._says = left
        return taken

    def _next_work(self) -> Work | list[Learn] | None:
        while self._works:
            work = self._works.popleft()
            if not work.done.cancelled():
                return self._with_others(work) if isinstance(work, Learn) else work
        if self._due and not self._says:
            name = next(iter(self._due))
            del self._due[name]
            return Work(self._write_due(name))
        return None

    def _with_others(self, first: Learn) -> list[Learn]:
        """What is to be learned, and what other memories are to learn, as many as do so in one update."""
        taken, left = {first.telling.memory: first}, deque()
        for work in self._works:
            fits = isinstance(work, Learn) and len(taken) < min(TAUGHT, self.store.slots) and not work.done.cancelled()
            if fits and work.telling.memory not in taken:
                taken[work.telling.memory] = work
            else:
                left.append(work)
        self._works = left
        return list(taken.values())

    def _write_due(self, name: str) -> Steps:
        try:
            while found := self.store.write_next(name):
                self.wrote(found)
                yield
        except Missing:  # deleted meanwhile
            pass
        except Exception as error:  # the text waits on; the next request for this memory tries again
            logger.error(f"what waits in a memory could not be written ({type(error).__name__})")

    def _teach(self, jobs: list[Learn]) -> None:
        found: list[Any]
        try:
            found = self.store.learn_together([job.telling for job in jobs])
        except Exception as error:  # nothing was learned; one of them cannot be had: each by itself
            if len(jobs) > 1:
                for job in jobs:
                    self._teach([job])
                return
            found = [error]
        for job, result in zip(jobs, found):
            _settle(job.done, result)

    def _step(self, work: Work | list[Learn]) -> None:
        if isinstance(work, list):
            return self._teach(work)
        try:
            next(work.steps)
        except StopIteration as end:
            _settle(work.done, end.value)
        except Exception as error:
            _settle(work.done, error)
        else:
            with self._wake:
                self._works.append(work)

    def _answer(self, jobs: list[Say]) -> None:
        began: list[Say] = []
        try:
            with self.store.using(list(dict.fromkeys(j.memory for j in jobs if j.memory is not None))) as memories:
                self._say(jobs, {m.name: m for m in memories}, began)
        except Exception as error:
            if len(jobs) > 1 and not began:  # one of them cannot be had: each by itself
                for job in jobs:
                    self._answer([job])
                return
            for job in jobs:
                _settle(job.done, error)

    def _say(self, jobs: list[Say], memories: dict[str, Kept], began: list[Say]) -> None:
        prompts, whose = [], []
        for job in jobs:
            memory = None if job.memory is None else memories[job.memory]
            try:
                prompts.append(job.prompt(memory))
            except Exception as error:
                _settle(job.done, error)
            else:
                began.append(job)
                whose.append(-1 if memory is None else memory.row)
        if began:
            temperature, top_p = began[0].how
            said = self.store.agent.say(
                prompts, whose, max_new=max(j.most for j in began), temperature=temperature, top_p=top_p,
                keys=[j.key for j in began], watch=lambda i, token: began[i].heard(token),
            )  # fmt: skip
            for job, reply in zip(began, said):
                _settle(job.done, reply)


def _settle(future: Future, result: Any) -> None:
    """Give a result, or an error, to whoever still waits for it."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
