"""Ways to remember, by name: tmem, and what it is compared with. `METHODS` is the one list of them.

A method of a task that is read has two parts: `read` says what it keeps of episodes, and `ask` answers questions with that
(tmem.methods.reader). In a search it has a `State` instead, which the search's own loop carries along (tmem.methods.search).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..agent.agent import Agent
from ..agent.loop import Rollout
from ..agent.teach import Lesson
from ..episode import Episode, Pair, Question
from ..models.embed import dense
from ..tasks.names import answerable
from ..tasks.search import CONSTANT
from . import prompts
from .folds import notes, summary
from .reader import CONTEXT, Cost, Kept, Reader, Said, Settings, ask
from .retrieve import Lines, headed
from .states import State, nearest, newest, noted, stored, summarised, written

TEXT = "text"  # asked in the form that serves text in a prompt best

# What is kept of each episode, in their order. Every question is asked once, so its cost may be counted beforehand.
Read = Callable[[Reader, Sequence[Episode]], list[Kept]]
Ask = Callable[[Agent, Sequence[tuple[Kept, Question]], Settings], list[Said]]


@dataclass(frozen=True)
class Method:
    """One way to remember. read: None where it has none but a search's. search: None where a search has nothing for it.

    form: how it is asked, see tmem.methods.prompts; TEXT as the evaluation chooses, None for one that asks no model.
    """

    read: Read | None
    search: State | None
    ask: Ask = ask
    form: str | None = TEXT


def nothing(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """The question alone: what the model knows or guesses without having read."""
    return [Kept() for _ in episodes]


def constant(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """Always abstains, without a model: the score to beat where many questions have no answer in the text."""
    return [Kept(said=reader.settings.abstention) for _ in episodes]


def full(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """The history in the prompt, cut to its last `context` tokens where it is longer."""
    return [_fixed(reader.agent.chat.clip("\n\n".join(e.chunks), reader.settings.context)) for e in episodes]


def oracle(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """The passages that the task names as evidence, each under its session's date, and no others, in the prompt: what perfect
    retrieval is worth."""

    def shown(episode: Episode, question: Question) -> str:
        passages = dict.fromkeys(headed(episode.chunks[e.chunk], e.text) for e in question.evidence)
        return reader.agent.chat.clip("\n".join(passages), reader.settings.context)

    return [Kept(size("\n\n".join(e.chunks)), partial(shown, e)) for e in episodes]


def retrieval(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """The lines that BM25 finds for the question, best first until `budget` tokens are used, in order of the text."""
    return [_found(reader, Lines.of(e)) for e in episodes]


def dense_retrieval(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """The lines whose embeddings are nearest to the question's; the extra `tmem[dense]`."""
    out = []
    for e in episodes:
        lines = Lines.of(e, dense())
        out.append(_found(reader, lines))
        out[-1].cost.embedded = lines.embedded + sum(lines.tokens([q.text]) for q in e.questions)
    return out


def summarising(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """One text of `budget` tokens, written anew with every passage (MemAgent, arXiv 2507.02259)."""
    return [_fixed(text, cost) for text, cost in summary(reader, episodes)]


def noting(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """Facts as lines of text, added with every passage; BM25 chooses `budget` tokens of them (after Mem0, arXiv 2504.19413)."""
    return [
        Kept(size(text), Lines(text.splitlines()).finder(reader.agent, reader.settings.budget), cost=cost)
        for text, cost in notes(reader, episodes)
    ]


def pairs(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """All pairs that tmem wrote, as text in the prompt, without Δ: separates writing well from remembering in weights."""
    return [in_prompt(reader.agent, r, reader.settings.room) for r in reader.rollouts(episodes)]


def tmem(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """Write, learn, forget the text, answer from the fast weights."""
    return [_of_rollout(r) for r in reader.rollouts(episodes)]


def gold(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """Δ of the questions themselves with their right answers: what Δ can hold. It has seen the questions and is no rival.

    Taught in writes as large as the preset allows, with its rehearsal, in the words in which they are then asked. Questions
    that the text does not answer are not taught.
    """
    out: list[Kept] = []
    while len(out) < len(episodes):
        with reader.agent.bank.borrowed(len(episodes) - len(out), 1) as slots:
            out += _taught(reader, slots, [_gold_pairs(e) for e in episodes[len(out) : len(out) + len(slots)]])
    return out


def tmem_retrieval(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """tmem's fast weights and what `retrieval` finds, together."""
    out = tmem(reader, episodes)
    for kept, found in zip(out, retrieval(reader, episodes)):
        kept.text, kept.state = found.text, kept.state + found.state
    return out


METHODS: dict[str, Method] = {
    "none": Method(nothing, State(searches=False)),
    "constant": Method(constant, State(searches=False, fixed=CONSTANT), form=None),
    "full": Method(full, State(every=True, stays=True)),
    "mem1": Method(None, State(stays=True)),  # a search alone has turns
    "oracle": Method(oracle, State(searches=False, given=True)),
    "summary": Method(summarising, State(keep=(summarised,), text=newest)),
    "notes": Method(noting, State(keep=(noted,), text=nearest)),
    "retrieval": Method(retrieval, State(keep=(stored,), text=nearest)),
    "dense": Method(dense_retrieval, None),  # a search finds all documents by embeddings instead
    "pairs": Method(pairs, State(keep=(written,), text=newest)),
    "gold": Method(gold, None, form=prompts.AS_TAUGHT),
    "tmem": Method(tmem, State(keep=(written,), delta=True), form=prompts.AS_TAUGHT),
    "tmem+retrieval": Method(tmem_retrieval, State(keep=(written, stored), text=nearest, delta=True), form=prompts.AS_TAUGHT),
}
READ = tuple(name for name, method in METHODS.items() if method.read is not None)
SEARCHED = tuple(name for name, method in METHODS.items() if method.search is not None)


def methods_of(task: str) -> list[str]:
    """Names of the methods that a task has something for: CL-bench names no evidence for an oracle, and no answers."""
    if task == "search":
        return list(SEARCHED)
    return [name for name in READ if name not in ("oracle", "gold") or task != "clbench"]


def form_of(method: str, chosen: str, at_length: bool = False) -> str | None:
    """How a method's questions are worded (tmem.methods.prompts); None for one that asks no model.

    chosen: the form for text. at_length: answers are whole texts, and a question says itself what it wants.
    """
    form = METHODS[method].form
    if form is None or at_length:
        return form and prompts.ALONE
    return chosen if form == TEXT else form


def in_prompt(agent: Agent, rollout: Rollout, room: int = CONTEXT) -> Kept:
    """A rollout's pairs as text, without its Δ: all of them, or the newest that `room` tokens hold."""
    lines = [f"{p.question} {p.answer}" for p in rollout.pairs]
    first, used = len(lines), 0
    while first and (used := used + agent.chat.count(lines[first - 1]) + 1) <= room:
        first -= 1
    kept = _fixed("\n".join(lines[first:]), _reading(rollout), rollout)
    kept.lost = first
    return kept


def size(text: str) -> int:
    """Bytes of a text."""
    return len(text.encode())


def _fixed(text: str, cost: Cost | None = None, rollout: Rollout | None = None) -> Kept:
    return Kept(size(text), text, cost=cost or Cost(), rollout=rollout)


def _found(reader: Reader, lines: Lines) -> Kept:
    return Kept(lines.state, lines.finder(reader.agent, reader.settings.budget))


def _of_rollout(rollout: Rollout) -> Kept:
    delta = rollout.delta
    return Kept(delta.param.numel() * delta.param.element_size(), None, delta, cost=_reading(rollout), rollout=rollout)


def _gold_pairs(episode: Episode) -> list[Pair]:
    return [Pair(q.text, q.answers[0]) for q in episode.questions if answerable(q.kind, q.category)]


def _taught(reader: Reader, slots: Sequence[int], pairs: Sequence[Sequence[Pair]]) -> list[Kept]:
    """The Δ of each slot once it learned its pairs, write by write."""
    agent, at_once = reader.agent, reader.agent.config.write.max_pairs
    out, lessons = [Kept() for _ in slots], [Lesson() for _ in slots]
    most = max(map(len, pairs), default=0)
    for at in range(0, most, at_once):
        reader.watch("learn", at, most)
        due = [i for i, some in enumerate(pairs) if at < len(some)]
        writes = [pairs[i][at : at + at_once] for i in due]
        for i, write, learned in zip(due, writes, agent.teach([slots[i] for i in due], writes, [lessons[i] for i in due])):
            out[i].cost.learned += learned.tokens
            out[i].lost += 0 if learned.kept else len(write)
    for kept, slot in zip(out, slots):
        kept.delta = agent.bank.snapshot(slot, optimizer=False)
        kept.state = kept.delta.param.numel() * kept.delta.param.element_size()
    return out


def _reading(rollout: Rollout) -> Cost:
    cost = Cost()
    for entry in rollout.log:
        cost.add(entry.read, entry.tokens)
        cost.learned += entry.learned.tokens
    return cost
