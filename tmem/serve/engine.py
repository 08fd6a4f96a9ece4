"""The engine of a server: threads that share one model. One answers, one learns, a few do other work; they take turns.

What a request is answered does not depend on who else is served, nor on when it came: see tmem.agent.decode.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..agent.turns import Turns
from ..store.database import Write
from ..store.store import MemoryStore, Missing, Telling
from .batch import Batch, Say, settle

logger = logging.getLogger("tmem")

ROWS = 32  # requests that are answered at once, at most
TAUGHT = 8  # memories that learn in one update, at most: a step of it is what an answer may have to wait for
WORKERS = 4  # threads for work that is not learning: short work does not wait behind long work
AGAIN = 0.02  # seconds after which a memory that others used is looked at again, at most

Steps = Generator[None, None, Any]


class Full(RuntimeError):
    """As many requests wait as may. seconds: after how many to ask again."""

    def __init__(self, seconds: int):
        super().__init__(f"the server is busy and its queue is full; ask again in {seconds} s.")
        self.seconds = seconds


@dataclass(eq=False)
class Work:
    """Something else to be done: a generator, whose value is the result. Between its steps other work has its turn."""

    steps: Steps
    done: Future = field(default_factory=Future)
    who: str = ""


@dataclass(eq=False)
class Learn:
    """Pairs to be learned; those of several memories in one update. The result is the Write."""

    telling: Telling
    done: Future = field(default_factory=Future)
    who: str = ""


def in_turns(jobs: Iterable[Any], served: Counter[str]) -> list:
    """Jobs that somebody still waits for, in the order in which they came, but each tenant's in turns with the others'.

    served: how many of each are served already.
    """
    kept = [job for job in jobs if not job.done.done()]
    ranks, counts = [], Counter(served)
    for job in kept:
        ranks.append(counts[job.who])
        counts[job.who] += 1
    return [job for _, job in sorted(zip(ranks, kept), key=lambda ranked: ranked[0])]


class Engine:
    """Runs until `close`. At most `most` requests wait; `submit` raises Full for one more.

    wrote: told of what was written because it was due.
    """

    def __init__(self, store: MemoryStore, most: int, wrote: Callable[[list[Write]], None]):
        self.store, self.most, self.wrote = store, most, wrote
        self._says: deque[Say] = deque()
        self._works: deque[Work] = deque()
        self._learns: deque[Learn] = deque()
        self._due: dict[str, None] = {}  # memories in which text waits that is to be written, in order
        self._batch, self._turns = Batch(store, ROWS, self._wake_up), Turns()
        self._came: list[Say] = []  # those that are just being let in
        self._waking: set[str] = set()
        self._failed: dict[str, Exception] = {}  # memories that could not be woken
        self._working: Counter[str] = Counter()  # tenants for whom a worker is at work
        self._wake = threading.Condition()
        self._open = True
        self._seconds = 1.0  # from when a request comes until it is done, lately
        loops = [("answers", self._answer), ("learns", self._learn), *[("works", self._work)] * WORKERS]
        self._threads = [threading.Thread(target=loop, name=f"tmem {name}", daemon=True) for name, loop in loops]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._says) + len(self._came) + len(self._works) + len(self._learns)

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._open and all(thread.is_alive() for thread in self._threads)

    def submit(self, job: Say | Work | Learn, *, who: str = "", follows: bool = False) -> Future:
        """Have a job done; its result. Raises Full, and RuntimeError once closed.

        who      the tenant that it is for. Tenants are served in turns, and one that has a name fills half of the queue at most
        follows  it belongs to a request that was let in already, and is never one too many
        """
        job.who = who
        with self._wake:
            if not self._open:
                raise RuntimeError("the server is shutting down; ask again when it is back.")
            if not follows and not self._room(who):
                raise Full(max(1, math.ceil(self._seconds)))
            # Chosen under the lock: whoever takes from a queue puts another one in its place.
            queue: deque = self._says if isinstance(job, Say) else self._learns if isinstance(job, Learn) else self._works
            queue.append(job)
            self._wake.notify_all()
        came = time.monotonic()
        job.done.add_done_callback(lambda _: self._took(time.monotonic() - came))
        return job.done

    def _room(self, who: str) -> bool:
        """Whether one more of this tenant's may wait."""
        own = sum(job.who == who for queue in (self._says, self._came, self._works, self._learns) for job in queue)
        return self.waiting < self.most and (not who or own < max(1, self.most // 2))

    def _took(self, seconds: float) -> None:
        self._seconds += 0.1 * (seconds - self._seconds)

    def later(self, name: str) -> None:
        """Write what is due in this memory once nothing else waits."""
        with self._wake:
            self._due[name] = None
            self._wake.notify_all()

    def close(self) -> None:
        """End after the steps that are under way; what still waits is cancelled."""
        with self._wake:
            self._open = False
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        for job in [*self._says, *self._works, *self._learns]:
            job.done.cancel()

    # answers -----------------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Let in who can be, have all take a step, and so on."""
        self._turns.talks()
        while self._open:
            with self._wake:
                if not self._batch and not self._says:
                    self._turns.silent()
                    self._wake.notify_all()  # what is due may be written now
                    self._wake.wait_for(lambda: not self._open or self._says)
                self._came, self._says = in_turns(self._says, Counter(self._batch.whose)), deque()
            self._turns.talking = True
            try:
                self._round()
            except Exception as error:  # nobody must wait for ever
                logger.error(f"answers failed: {type(error).__name__}", exc_info=error)
                for job in self._came:
                    settle(job.done, error)
                self._came = []
                self._batch.end(error)
        self._turns.silent()
        self._batch.end()

    def _round(self) -> None:
        later = self._batch.let_in(self._came)
        with self._wake:
            for job in later:
                if job.memory in self._failed:
                    settle(job.done, self._failed[job.memory])
            self._failed.clear()
            self._says.extendleft(reversed(later))
            self._came = []
            if later and not self._batch:
                self._turns.silent()
                self._wake.wait(AGAIN)
        self._batch.step()

    def _wake_up(self, name: str) -> None:
        """Have a memory learn again what it was told, so that it can answer."""
        with self._wake:
            if name not in self._waking:
                self._waking.add(name)
                self._works.append(Work(self._woken(name)))
                self._wake.notify_all()

    def _woken(self, name: str) -> Steps:
        try:
            with self.store.using([name]):
                return
        except Exception as error:
            with self._wake:
                self._failed[name] = error
        finally:
            self._waking.discard(name)
        yield

    # learning ----------------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        self._turns.works()
        while True:
            with self._wake:
                self._wake.notify_all()  # what is due may be written now
                self._wake.wait_for(lambda: not self._open or self._learns)
                if not self._open:
                    return
                jobs = self._together()
            self._teach(jobs)

    def _together(self) -> list[Learn]:
        """What is to be learned first, and what other memories are to learn, as many as do so in one update."""
        taken: dict[str, Learn] = {}
        left: deque[Learn] = deque()
        for job in in_turns(self._learns, Counter()):
            if job.telling.memory not in taken and len(taken) < min(TAUGHT, self.store.slots):
                taken[job.telling.memory] = job
            else:
                left.append(job)
        self._learns = left
        return list(taken.values())

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
            settle(job.done, result)

    # other work --------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._turns.works()
        while True:
            with self._wake:
                self._wake.wait_for(lambda: not self._open or self._works or self._idle_and_due())
                if not self._open:
                    return
                work = self._next_work()
                self._working[work.who] += 1
            if not work.done.cancelled():
                self._step(work)
            with self._wake:
                self._working[work.who] -= 1

    def _idle_and_due(self) -> bool:
        return bool(self._due) and not (self._says or self._came or self._batch or self._learns)

    def _next_work(self) -> Work:
        if self._works:
            work = min(self._works, key=lambda work: self._working[work.who])  # the first of who has least of it done now
            self._works.remove(work)
            return work
        name = next(iter(self._due))
        del self._due[name]
        return Work(self._write_due(name))

    def _step(self, work: Work) -> None:
        try:
            next(work.steps)
        except StopIteration as end:
            settle(work.done, end.value)
        except Exception as error:
            settle(work.done, error)
        else:
            with self._wake:
                self._works.append(work)
                self._wake.notify_all()

    def _write_due(self, name: str) -> Steps:
        try:
            while found := self.store.write_next(name):
                self.wrote(found)
                yield
        except Missing:  # deleted meanwhile
            pass
        except Exception as error:  # the text waits on; the next request for this memory tries again
            logger.error(f"what waits in a memory could not be written ({type(error).__name__})")
