"""What reading leaves behind, and how a question is asked with it.

A method reads episodes and keeps something of each (`Kept`); then the text is gone, and every question is asked with what was
kept: text in the prompt, fast weights, both or neither. In which words, tmem.methods.prompts says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..adapters.bank import Snapshot
from ..agent.agent import Agent
from ..agent.loop import Rollout, run
from ..agent.write import first_line
from ..episode import Episode, Question
from . import prompts

CONTEXT = 2048  # tokens of text in a prompt, unless asked otherwise

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What the methods of one evaluation have in common."""

    seed: int = 0
    context: int = CONTEXT  # tokens of text that a prompt may hold
    room: int = CONTEXT  # tokens of text that the model has room for; pairs, which leave none out, may fill it
    form: str = prompts.INSTRUCTION  # how questions are worded, see tmem.methods.prompts
    abstention: str = "unknown"  # the task's words for it
    max_new: int = 0  # tokens of an answer; 0: the preset's
    at_length: bool = False  # answers are whole texts, graded and not compared; else what stands on their first line
    probing: bool = False
    known: bool = False  # questions stand in the prompts that write, summarise and take notes

    @property
    def budget(self) -> int:
        """Tokens of text that retrieval and notes may show, and that a summary may be long."""
        return max(1, self.context // 4)


PLAIN = Settings()


@dataclass
class Reader:
    """An agent that reads for several methods alike; `watch` is told (phase, done, total).

    done: tmem's rollouts by key, run once for all methods that need them.
    """

    agent: Agent
    settings: Settings = PLAIN
    watch: Watch = lambda *_: None
    done: dict[str, Rollout] = field(default_factory=dict)

    def rollouts(self, episodes: Sequence[Episode]) -> list[Rollout]:
        """Every episode read, written and learned, with its Δ; nothing asked."""
        keys = [f"{self.settings.seed}/{e.id}" for e in episodes]
        new = [i for i, k in enumerate(keys) if k not in self.done]
        if new:
            found = run(
                self.agent, [episodes[i] for i in new], [keys[i] for i in new], answering="none",
                probing=self.settings.probing, known=self.settings.known, on_event=self.watch,
            )  # fmt: skip
            self.done.update({keys[i]: r for i, r in zip(new, found)})
        return [self.done[k] for k in keys]


@dataclass
class Cost:
    """Tokens: read as prompts, generated, learned (over all epochs), embedded by the small model of dense retrieval (lines and
    questions); peak: the longest prompt with its generation."""

    read: int = 0
    generated: int = 0
    learned: int = 0
    peak: int = 0
    embedded: int = 0

    def add(self, read: int, generated: int = 0, learned: int = 0) -> None:
        self.read, self.generated, self.learned = self.read + read, self.generated + generated, self.learned + learned
        self.peak = max(self.peak, read + generated)


@dataclass
class Kept:
    """What a method keeps of one episode when its text is gone.

    state: bytes kept, of text or of Δ. text: what the prompt shows before a question, itself where it is the same for all of
    them, else what finds it; None for the question alone. said: the answer where it is fixed beforehand. cost: of reading.
    lost: pairs that there was no room for, or whose write was rolled back.
    """

    state: int = 0
    text: str | Callable[[Question], str] | None = None
    delta: Snapshot | None = None
    said: str | None = None
    cost: Cost = field(default_factory=Cost)
    rollout: Rollout | None = None  # tmem and pairs: how the pairs came about
    lost: int = 0


@dataclass(frozen=True)
class Said:
    """An answer, and the tokens of its prompt and of what was generated.

    read: tokens of the prompt that were read for it; the text that several questions share is read for the first of them, and
    worked examples, which are the same in all prompts, for none.
    """

    text: str
    prompt: int = 0
    generated: int = 0
    read: int = 0


@dataclass(frozen=True)
class Prompt:
    """Token ids; `begin`: how many of them stand there whatever is asked; `examples`: how many of those are worked examples."""

    ids: list[int]
    begin: int
    examples: int


def prompt(agent: Agent, kept: Kept, question: Question, settings: Settings) -> Prompt:
    """The prompt of a question with what was kept."""
    text, chat, form = kept.text(question) if callable(kept.text) else kept.text, agent.chat, settings.form
    ids = prompts.ids(agent, form, text, question.text)
    bare = None if text is None else ""

    def begins(shown: str | None) -> int:
        return len(os.path.commonprefix([ids, prompts.shared(chat, form, shown)]))

    return Prompt(ids, begins(text if isinstance(kept.text, str) else bare), begins(bare))


def ask(agent: Agent, asked: Sequence[tuple[Kept, Question]], settings: Settings = PLAIN) -> list[Said]:
    """Greedy answers, each with what its episode's method kept; as many Δ at once as the bank has free slots.

    A text that is the same for all questions is read once for all that are asked together.
    """
    out: list[Said | None] = [Said(kept.said) if kept.said is not None else None for kept, _ in asked]
    todo = [i for i, said in enumerate(out) if said is None]
    deltas = [asked[i][0].delta for i in todo]
    put = [prompt(agent, *asked[i], settings) for i in todo]
    with agent.bank.holding(deltas) as slots:
        replies = agent.say(
            [p.ids for p in put], slots if any(d is not None for d in deltas) else None, begins=[p.begin for p in put],
            max_new=settings.max_new or agent.config.answer.max_new,
        )  # fmt: skip
        out_of_delta = [i for i, index in enumerate(todo) if deltas[i] is not None and asked[index][0].text is None]
        settled = dict(zip(out_of_delta, agent.settled(
            *([some[i] for i in out_of_delta] for some in ([asked[index][1].text for index in todo], replies, slots))
        )))  # fmt: skip
    begun: set[tuple] = set()
    for place, (i, delta, own, reply) in enumerate(zip(todo, deltas, put, replies)):
        beginning = (id(delta), *reply.prompt[: own.begin])
        read = reply.read - (own.begin if beginning in begun else own.examples)
        begun.add(beginning)
        said = settled[place] if place in settled else first_line(reply.text)
        text = reply.text if settings.at_length else said
        out[i] = Said(text, reply.read, reply.generated, read)
    return out
