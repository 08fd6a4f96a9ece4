"""A memory of a store: a Memory that has every change kept before the next one can begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..agent.agent import Agent
from ..agent.learn import Learned
from ..agent.loop import LogEntry
from ..agent.teach import Lesson
from ..episode import Pair
from ..memory import Memory
from .database import Write


@dataclass(frozen=True)
class Change:
    """What changed: an update's pairs and what it did, a write's entry where the model wrote them; neither: text waits."""

    pairs: Sequence[Pair] = ()
    learned: Learned | None = None
    entry: LogEntry | None = None


class Kept(Memory):
    """What a store holds of a memory while it has a slot. keep: called with each change, which is on the disk when it returns.

    source    what the text that waits is called
    telling   what the pairs are called that are told now
    messages  digests of messages that the next change has read
    done      the writes of the call that is under way
    whole     whether it is what the store has on the disk; if not, it is filled before it is used
    """

    def __init__(self, agent: Agent, name: str, keep: Callable[[Kept, Change], None]):
        super().__init__(agent)
        self.name, self.keep, self.whole = name, keep, False
        self.source, self.telling = "", ""
        self.messages: list[bytes] = []
        self.done: list[Write] = []

    @property
    def row(self) -> int:
        """Its slot."""
        return self._row

    @property
    def lock(self):
        """Held by whoever does several things in one."""
        return self._lock

    @property
    def lesson(self) -> Lesson:
        """What it was taught."""
        return self._lesson

    @property
    def waiting(self) -> list[str]:
        """The passages that wait to be written."""
        return self._context

    @property
    def sure(self) -> dict[str, float]:
        """Of known questions: how sure the learned answer is."""
        return self._sure

    def begin(self, lesson: Lesson, waiting: Sequence[str], source: str, sure: dict[str, float]) -> None:
        """Be what a store kept."""
        self._lesson, self._context, self.source, self._sure = lesson, list(waiting), source, dict(sure)

    def open_from(self, path: Path) -> None:
        """Be what a folder of `Memory.save` holds; errors as of `Memory.from_pretrained`."""
        self._load(path)

    def take(self, text: str, source: str) -> None:
        """Let text join what waits, without writing anything down. What waits under another name must be written before."""
        self.source = source
        self._take([text])

    def write_next(self) -> int:
        """Write and learn the next passages beyond the window; how many they were."""
        return self._write_next(1, ())

    def _changed(self, pairs: Sequence[Pair] = (), learned: Learned | None = None, entry: LogEntry | None = None) -> None:
        del self.log[:-1]  # the store has it
        self.keep(self, Change(pairs, learned, entry))
