"""Ways to remember a stream, behind one interface: tmem, and what it is compared with.

A method reads episodes and keeps something of each (`Kept`); then the text is gone, and every question is asked with what was
kept: text in the prompt, fast weights, both or neither. All are asked in the same words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..adapters.bank import Snapshot
from ..agent.decode import decode
from ..agent.loop import Agent, Rollout, first_line, run
from ..episode import Episode, Question
from ..models.embed import dense
from .folds import notes, summary
from .retrieve import Lines

# All methods ask in the same words, so that they differ in the text that stands before them, if any, and in Δ.
ASKED = "Answer in a few words; if you do not know, answer: {unknown}.\n{question}"
CONTEXT = 2048  # tokens of text in a prompt, unless asked otherwise

Watch = Callable[[str, int, int], None]


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
    """

    state: int = 0
    text: str | Callable[[Question], str] | None = None
    delta: Snapshot | None = None
    said: str | None = None
    cost: Cost = field(default_factory=Cost)
    rollout: Rollout | None = None  # tmem and pairs: how the pairs came about


@dataclass(frozen=True)
class Said:
    """An answer, and the tokens of its prompt and of what was generated.

    read: tokens of the prompt that were read for it; the text that several questions share is read for the first of them.
    """

    text: str
    prompt: int = 0
    generated: int = 0
    read: int = 0


@dataclass
class Settings:
    """What the methods of one evaluation share; `lived` holds tmem's rollouts by key, lived once for all that need them."""

    seed: int = 0
    context: int = CONTEXT  # tokens of text that a prompt may hold
    constant: str = "unknown"  # the task's words for what it did not say; prompts ask for them
    max_new: int = 0  # tokens of an answer; 0: the preset's
    at_length: bool = False  # answers are whole texts, else what stands on their first line
    probing: bool = False
    known: bool = False  # questions stand in the prompts that write, summarise and take notes
    watch: Watch = lambda *_: None
    lived: dict[str, Rollout] = field(default_factory=dict)

    @property
    def budget(self) -> int:
        """Tokens of text that retrieval and notes may show, and that a summary may be long."""
        return max(1, self.context // 4)

    def rollouts(self, agent: Agent, episodes: Sequence[Episode]) -> list[Rollout]:
        """Every episode read, written and learned, with its Δ; nothing asked."""
        keys = [f"{self.seed}/{e.id}" for e in episodes]
        new = [i for i, k in enumerate(keys) if k not in self.lived]
        if new:
            found = run(
                agent, [episodes[i] for i in new], [keys[i] for i in new],
                answering="none", probing=self.probing, known=self.known, on_event=self.watch,
            )  # fmt: skip
            self.lived.update({keys[i]: r for i, r in zip(new, found)})
        return [self.lived[k] for k in keys]


Method = Callable[[Agent, Sequence[Episode], Settings], list[Kept]]


def none(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """The question alone: what the model knows or guesses without having read."""
    return [Kept() for _ in episodes]


def constant(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """Always the task's words for abstaining, without a model: what a score is worth that asks often about nothing."""
    return [Kept(said=settings.constant) for _ in episodes]


def full(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """The history in the prompt, cut to its last `context` tokens where it is longer."""
    return [_fixed(agent.chat.clip("\n\n".join(e.chunks), settings.context)) for e in episodes]


def oracle(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """The passages that the task names as evidence, and no others, in the prompt: what perfect retrieval is worth."""

    def text(question: Question) -> str:
        return agent.chat.clip("\n".join(dict.fromkeys(e.text for e in question.evidence)), settings.context)

    return [Kept(size("\n\n".join(e.chunks)), text) for e in episodes]


def retrieval(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """The lines that BM25 finds for the question, best first until `budget` tokens are used, in order of the text."""
    return [_found(agent, Lines.of(e), settings) for e in episodes]


def dense_retrieval(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """The lines whose embeddings are nearest to the question's; the extra `tmem[dense]`."""
    out = []
    for e in episodes:
        lines = Lines.of(e, dense())
        out.append(_found(agent, lines, settings))
        out[-1].cost.embedded = lines.embedded + sum(lines.tokens([q.text]) for q in e.questions)  # each is asked once
    return out


def summarised(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """One text of `budget` tokens, written anew with every segment (MemAgent, arXiv 2507.02259)."""
    return [_fixed(text, cost) for text, cost in _folded(agent, episodes, settings, summary)]


def noted(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """Facts as lines of text, added with every segment; BM25 chooses `budget` tokens of them (after Mem0, arXiv 2504.19413)."""
    return [
        Kept(size(text), Lines(text.splitlines()).finder(agent, settings.budget), cost=cost)
        for text, cost in _folded(agent, episodes, settings, notes)
    ]


def tmem(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """Write, learn, forget the text, answer from the fast weights."""
    return [_lived(r) for r in settings.rollouts(agent, episodes)]


def pairs(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """The pairs that tmem wrote, as text in the prompt, without Δ: separates writing well from remembering in weights."""
    return [in_prompt(agent, r, settings.context) for r in settings.rollouts(agent, episodes)]


def tmem_retrieval(agent: Agent, episodes: Sequence[Episode], settings: Settings) -> list[Kept]:
    """tmem's fast weights and what `retrieval` finds, together."""
    out = [_lived(r) for r in settings.rollouts(agent, episodes)]
    for kept, found in zip(out, retrieval(agent, episodes, settings)):
        kept.text, kept.state = found.text, kept.state + found.state
    return out


METHODS: dict[str, Method] = {
    "none": none,
    "constant": constant,
    "full": full,
    "oracle": oracle,
    "summary": summarised,
    "notes": noted,
    "retrieval": retrieval,
    "dense": dense_retrieval,
    "pairs": pairs,
    "tmem": tmem,
    "tmem+retrieval": tmem_retrieval,
}


def in_prompt(agent: Agent, rollout: Rollout, context: int = CONTEXT) -> Kept:
    """A rollout's pairs as text, without its Δ."""
    text = agent.chat.clip("\n".join(f"{p.question} {p.answer}" for p in rollout.pairs), context)
    return _fixed(text, _reading(rollout), rollout)


def prompt(kept: Kept, question: Question, unknown: str = "unknown", at_length: bool = False) -> str:
    """The user turn of a question: the text that was kept, if any, and the question in the words of `ASKED`.

    at_length: the answer is graded and not compared; the question says itself what it wants.
    """
    words = question.text if at_length else ASKED.format(unknown=unknown, question=question.text)
    if kept.text is None:
        return words
    return f"{kept.text if isinstance(kept.text, str) else kept.text(question)}\n\n{words}"


def ask(
    agent: Agent, asked: Sequence[tuple[Kept, Question]], *, unknown: str = "unknown", max_new: int = 0, at_length: bool = False
) -> list[Said]:
    """Greedy answers, each with what its episode's method kept; as many Δ at once as the bank has free slots.

    A text that is the same for all questions is read once for all that are asked together.
    unknown: Settings.constant. max_new, at_length: as in Settings.
    """
    prompts = [agent.chat.prompt(prompt(kept, q, unknown, at_length)) for kept, q in asked]
    out: list[Said | None] = [Said(kept.said) if kept.said is not None else None for kept, _ in asked]
    todo = [i for i, said in enumerate(out) if said is None]
    deltas = list({id(asked[i][0].delta): asked[i][0].delta for i in todo if asked[i][0].delta is not None}.values())
    begins = [_begin(agent, kept, ids) for (kept, _), ids in zip(asked, prompts)]
    with _slots(agent, deltas) as slots:
        found = decode(
            agent.model, [prompts[i] for i in todo], begins=[begins[i] for i in todo],
            bank=agent.bank if deltas else None,
            slots=[slots.get(id(asked[i][0].delta), -1) for i in todo] if deltas else None,
            end=agent.chat.ends, max_new=max_new or agent.config.answer.max_new,
        )  # fmt: skip
    begun: set[tuple] = set()
    for i, generation in zip(todo, found):
        text, beginning = agent.chat.text(generation.ids), (id(asked[i][0].delta), *prompts[i][: begins[i]])
        read = len(prompts[i]) - (begins[i] if beginning in begun else 0)
        begun.add(beginning)
        out[i] = Said(text if at_length else first_line(text), len(prompts[i]), len(generation.ids), read)
    return out


def _begin(agent: Agent, kept: Kept, ids: list[int]) -> int:
    """How many tokens of a prompt stand there whatever is asked."""
    return len(os.path.commonprefix([ids, agent.chat.prompt(kept.text)])) if isinstance(kept.text, str) else 0


@contextmanager
def _slots(agent: Agent, deltas: Sequence[Snapshot]) -> Iterator[dict[int, int]]:
    """A slot for every Δ, by the identity of its snapshot."""
    out: dict[int, int] = {}
    try:
        for delta in deltas:
            out[id(delta)] = agent.bank.alloc()
            agent.bank.restore(out[id(delta)], delta)
        yield out
    finally:
        for slot in out.values():
            agent.bank.free(slot)


def size(text: str) -> int:
    """Bytes of a text."""
    return len(text.encode())


def _fixed(text: str, cost: Cost | None = None, rollout: Rollout | None = None) -> Kept:
    return Kept(size(text), text, cost=cost or Cost(), rollout=rollout)


def _found(agent: Agent, lines: Lines, settings: Settings) -> Kept:
    return Kept(lines.state, lines.finder(agent, settings.budget))


def _folded(agent: Agent, episodes: Sequence[Episode], settings: Settings, fold) -> list[tuple[str, Cost]]:
    costs = [Cost() for _ in episodes]
    texts = fold(agent, episodes, settings.budget, settings.known, costs, settings.watch)
    return list(zip(texts, costs))


def _lived(rollout: Rollout) -> Kept:
    delta = rollout.delta
    return Kept(delta.param.numel() * delta.param.element_size(), None, delta, cost=_reading(rollout), rollout=rollout)


def _reading(rollout: Rollout) -> Cost:
    cost = Cost()
    for entry in rollout.log:
        cost.add(entry.read, entry.tokens)
        cost.learned += entry.learned.tokens
    return cost
