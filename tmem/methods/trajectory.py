"""One set of questions as a search works on it, and the limits of the work."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..agent.loop import LogEntry
from ..agent.teach import Lesson
from ..tasks import search as task
from ..tasks.search_scene import DOCUMENTS, OBSERVATION, SearchScene


@dataclass(frozen=True)
class SearchConfig:
    """Limits of a search; all but turns, documents and temperature in tokens. Raises ValueError for one below 1.

    turns: generations before the answer is asked for, once. max_new: of one turn. context: of a prompt. observation: of what
    one reply shows of documents. documents: how many a search finds. temperature: 0 is greedy. known: the questions stand in
    the prompts that write pairs (the paper's protocol). each: every question is asked by itself at the end, about text in this
    form (tmem.methods.prompts); None: a turn answers them all.
    """

    turns: int = 6
    max_new: int = 160
    context: int = 4096
    observation: int = OBSERVATION
    documents: int = DOCUMENTS
    temperature: float = 0.0
    known: bool = False
    each: str | None = None

    def __post_init__(self):
        for name in ("turns", "max_new", "context", "observation", "documents"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"search: {name} is {value}, expected at least 1.")

    @property
    def notes(self) -> int:
        """Tokens of text that a turn may be shown of what was kept, and that a summary may be long."""
        return max(1, self.context // 8)


@dataclass
class Trajectory:
    """One set of questions as it was worked on.

    notes: the lines of text that its state keeps, by what tells them apart. slot: of its Δ, while it is worked on, if its state
    has one. scene: its turns, likewise. lesson, log: what that was taught, its writes. sure: of known questions how sure the
    answer is that was written. state: bytes, the most that was kept from one turn to the next: the notes, the turns that are
    seen again, and Δ. seconds: an equal share of what its batch took.
    """

    task: task.Objectives
    key: str
    steps: list[task.Step] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    lesson: Lesson = field(default_factory=Lesson)
    notes: dict[str, str] = field(default_factory=dict)
    slot: int | None = None
    scene: SearchScene | None = None
    sure: dict[str, float] = field(default_factory=dict)
    answer: str | None = None
    state: int = 0
    seconds: float = 0.0

    def scores(self) -> dict[str, float]:
        """Scores of the answer and costs of the way there, by name; see tasks.search."""
        titles = [title for step in self.steps for title in step.titles]
        left_out = sum(step.left_out > 0 for step in self.steps)
        return {
            **task.score(self.task, self.answer),
            "recall": task.recall(self.task, titles),
            **task.costs(self.steps),
            "cut": left_out,  # steps whose context had no room for all earlier turns
            "seconds": self.seconds,
        }

    def transcript(self) -> str:
        """The trajectory for a reader."""
        lines = [f"# {self.task.id}", f"Questions: {self.task.question}"]
        for i, step in enumerate(self.steps):
            lines.append(f"\n## {i}: {step.kind}, {step.prompt} tokens read, {step.generated} generated")
            lines += [f"({step.left_out} earlier turns left out)"] * bool(step.left_out)
            lines.append(step.text)
            lines += [f"found: {title}" for title in step.titles]
            lines += [f"wrote: {question} {answer}" for question, answer in step.pairs]
        gold = "; ".join(" | ".join(hop.answers) for hop in self.task.hops)
        return "\n".join([*lines, f"\nAnswer: {self.answer}", f"Right: {gold}"])
