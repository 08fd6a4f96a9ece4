"""What an evaluation is to do: loaded and checked, and not begun."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import machine
from ..agent.agent import Agent
from ..agent.config import AgentConfig
from ..episode import Question
from ..tasks import left_out
from .compute import Sizes
from .config import EvalConfig, Extent, recorded
from .inputs import inputs_of
from .record import Record

BESIDE = 96  # tokens kept for the chat's template and the instruction beside text and question
# Told the phase of the work, and how many questions were answered in it.
Tell = Callable[[str, int], None]
# Run a method on a group of items: those that the record does not hold, which then holds them.
RunGroup = Callable[[str, Record, Tell], None]


@dataclass
class Work(ABC):
    """One evaluation.

    config: with nothing left to the task, the preset or the model. settings: of the agent. data: by seed. left, notes: the
    questions left out; what a reader of the scores should know. embedder: parameters of the embedding model that methods use.
    """

    config: EvalConfig
    settings: AgentConfig
    network: Any
    tokenizer: Any
    data: dict[int, list]
    left: left_out.LeaveOut | None
    notes: list[str]
    embedder: int = 0

    AT_ONCE: ClassVar[int]  # items, where nobody says how many

    @classmethod
    @abstractmethod
    def prepare(cls, config: EvalConfig, methods: Sequence[str]) -> Work:
        """Read the data and the model. Raises ValueError, FileNotFoundError or ModelError in one sentence."""

    @property
    @abstractmethod
    def extent(self) -> Extent:
        """What was found in the data."""

    @property
    @abstractmethod
    def questions(self) -> dict[tuple[int, str], Question | None]:
        """All that are asked of a method, by seed and id."""

    @abstractmethod
    def items(self, seed: int) -> list:
        """What is run for a seed, one after another or several at once."""

    @abstractmethod
    def group(self, agent: Agent, seed: int, items: Sequence) -> RunGroup:
        """How the methods run some of a seed's items."""

    @abstractmethod
    def summary(self, record: Record, sizes: Sizes) -> dict:
        """What follows from a record's rows."""

    @abstractmethod
    def log(self, record: Record) -> list[str] | None:
        """Parts of episodes.md; None for no such file."""

    def results(self) -> dict:
        """The beginning of results.json."""
        return {
            "task": self.config.task,
            "config": recorded(self.config, inputs_of(self.config, self.settings, self.left), self.extent),
            **self.counts(),
            "notes": self.notes,
            "machine": machine.provenance(),  # of the first run; all are in "runs"
        }

    def counts(self) -> dict:
        """What stands beside the configuration."""
        return {}

    def agent(self, at_once: int | None) -> Agent:
        """The model with a bank that has a slot for every item that runs at once."""
        slots = min(at_once or self.AT_ONCE, len(self.items(self.config.seed)))
        return Agent.build(self.network, self.tokenizer, self.settings, slots=slots, seed=self.config.seed)

    def groups(self, size: int) -> Iterator[tuple[int, list]]:
        """A seed and `size` of its items, group by group."""
        for seed in self.data:
            items = self.items(seed)
            yield from ((seed, items[at : at + size]) for at in range(0, len(items), size))
