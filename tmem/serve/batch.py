"""The answers under way: prompts are let in at any step, and each leaves when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ..agent.decode import Decoding, Generation, Prompt, Row
from ..agent.sampling import Sampling
from ..store.kept import Kept
from ..store.slots import Asleep, NoSlot, Occupied
from ..store.store import MemoryStore


@dataclass(eq=False)
class Say:
    """A prompt to be answered.

    memory  whose Δ answers; None: the model alone
    prompt  makes the token ids, called with the memory while it has a slot; what it raises is the result
    tell    told of every token; True ends the answer
    most    tokens of the answer, at most
    how     its tokens are chosen
    asks    the question that it asks of the memory's Δ, see Agent.settled; nothing is settled where text waits in the memory
    done    the result, a tmem.agent.agent.Reply; of what is settled its text is the answer
    who     the tenant that asks
    """

    memory: str | None
    prompt: Callable[[Kept | None], list[int]]
    tell: Callable[[int], bool]
    most: int
    how: Sampling = Sampling()
    asks: str = ""
    done: Future = field(default_factory=Future)
    who: str = ""

    def heard(self, token: int) -> bool:
        """Tell of a token; ends also where nobody waits for the answer any more, or telling fails."""
        try:
            return self.done.done() or self.tell(token)
        except Exception as error:
            settle(self.done, error)
            return True


@dataclass(eq=False)
class _Guest:
    """An answer under way; its memory belongs to this thread until `left` is closed."""

    job: Say
    prompt: Prompt
    left: ExitStack
    settles: bool


class Batch:
    """Of one thread. A memory whose answers are under way is used by nobody else meanwhile.

    most  answers at once, at most
    wake  called with the name of a memory that has to learn again before it can answer
    """

    def __init__(self, store: MemoryStore, most: int, wake: Callable[[str], None]):
        self.store, self.most, self.wake = store, most, wake
        self._under_way: dict[Row, _Guest] = {}
        self._decoding: Decoding | None = None

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    @property
    def whose(self) -> list[str]:
        """The tenants whose answers are under way, one for each answer."""
        return [guest.job.who for guest in self._under_way.values()]

    def let_in(self, jobs: Sequence[Say]) -> list[Say]:
        """Begin answers, all at once. Gives those for whom there is no room, or whose memory cannot be had now: others use it,
        or all slots are taken."""
        guests: list[_Guest] = []
        later: list[Say] = []
        refused: set[str | None] = set()
        full = False  # whoever wants a slot waits behind the first who got none
        for job in jobs:
            if len(self) + len(guests) >= self.most or job.memory in refused or (full and job.memory is not None):
                later.append(job)
                continue
            with ExitStack() as left:
                try:
                    guests.append(self._guest(job, left))
                except Occupied as found:
                    later.append(job)
                    refused.add(job.memory)
                    full = full or isinstance(found, NoSlot)
                    if isinstance(found, Asleep) and job.memory is not None:
                        self.wake(job.memory)
                except Exception as error:
                    settle(job.done, error)
        if guests:
            self._join(guests)
            self._see_off()
        return later

    def _join(self, guests: list[_Guest]) -> None:
        """Where several cannot be read together, each by itself."""
        try:
            if self._decoding is None:
                self._decoding = self.store.agent.decoding()
            rows = self._decoding.join([guest.prompt for guest in guests])
        except Exception as error:
            if len(guests) > 1:
                for guest in guests:
                    self._join([guest])
                return
            guests[0].left.close()
            settle(guests[0].job.done, error)
        else:
            self._under_way.update(zip(rows, guests))

    def _guest(self, job: Say, left: ExitStack) -> _Guest:
        memory = None
        if job.memory is not None:
            (memory,) = left.enter_context(self.store.using([job.memory], wait=False))
        ids = job.prompt(memory)
        most = min(job.most, self.store.agent.model.config.max_position_embeddings - len(ids))
        prompt = Prompt(ids, max(1, most), -1 if memory is None else memory.row, 0, job.how, job.heard)
        return _Guest(job, prompt, left.pop_all(), bool(job.asks) and memory is not None and not memory.waiting)

    def step(self) -> None:
        """One more token of every answer."""
        if self._decoding is None:
            return
        try:
            self._decoding.step()
        except Exception as error:
            self.end(error)
        else:
            self._see_off()

    def _see_off(self) -> None:
        """Whoever has ended leaves, with an answer."""
        ended = [(self._under_way.pop(row), row.generation) for row in [row for row in self._under_way if row.ended]]
        try:
            self._answered(ended)
        finally:
            for guest, _ in ended:
                guest.left.close()
        if not self._under_way:
            self.end()

    def _answered(self, ended: Sequence[tuple[_Guest, Generation]]) -> None:
        """Give the answers. Where several cannot be settled together, each by itself."""
        agent, found = self.store.agent, []
        try:
            for guest, generation in ended:
                found.append((guest, agent.replied(guest.prompt.ids, generation)))
            asked = [(guest, reply) for guest, reply in found if guest.settles and not guest.job.done.done()]
            said = agent.settled([g.job.asks for g, _ in asked], [r for _, r in asked], [g.prompt.slot for g, _ in asked])
        except Exception as error:
            if len(ended) > 1:
                for one in ended:
                    self._answered([one])
            elif ended:
                settle(ended[0][0].job.done, error)
            return
        texts = {guest: text for (guest, _), text in zip(asked, said)}
        for guest, reply in found:
            settle(guest.job.done, replace(reply, text=texts.get(guest, reply.text)))

    def end(self, error: Exception | None = None) -> None:
        """Whoever is under way is answered with the error, or no longer."""
        for guest in self._under_way.values():
            guest.left.close()
            if error is None:
                guest.job.done.cancel()
            else:
                settle(guest.job.done, error)
        self._under_way.clear()
        if self._decoding is not None:
            self._decoding.close()
            self._decoding = None


def settle(future: Future, result: Any) -> None:
    """Give a result, or an error, to whoever still waits for it."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
