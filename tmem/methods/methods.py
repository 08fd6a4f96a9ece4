"""Ways to remember, by name: tmem, and what it is compared with. `METHODS` is the one list of them.

A method of a task that is read has two parts: `read` says what it keeps of episodes, and `ask` answers questions with that
(tmem.methods.reader). In a search it has a `State` instead, which the search's own loop carries along (tmem.methods.search).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..agent.agent import Agent
from ..agent.loop import Rollout
from ..episode import Episode, Question
from ..models.embed import dense
from ..tasks.search import CONSTANT
from .folds import notes, summary
from .reader import CONTEXT, Cost, Kept, Reader, Said, Settings, ask
from .retrieve import Lines
from .states import State, nearest, newest, noted, stored, summarised, written

# What is kept of each episode, in their order. Every question is asked once, so its cost may be counted beforehand.
Read = Callable[[Reader, Sequence[Episode]], list[Kept]]
Ask = Callable[[Agent, Sequence[tuple[Kept, Question]], Settings], list[Said]]


@dataclass(frozen=True)
class Method:
    """One way to remember. read: None where it has none but a search's. search: None where a search has nothing for it."""

    read: Read | None
    search: State | None
    ask: Ask = ask


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
    """The passages that the task names as evidence, and no others, in the prompt: what perfect retrieval is worth."""

    def text(question: Question) -> str:
        passages = dict.fromkeys(e.text for e in question.evidence)
        return reader.agent.chat.clip("\n".join(passages), reader.settings.context)

    return [Kept(size("\n\n".join(e.chunks)), text) for e in episodes]


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
    """The pairs that tmem wrote, as text in the prompt, without Δ: separates writing well from remembering in weights."""
    return [in_prompt(reader.agent, r, reader.settings.context) for r in reader.rollouts(episodes)]


def tmem(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """Write, learn, forget the text, answer from the fast weights."""
    return [_of_rollout(r) for r in reader.rollouts(episodes)]


def tmem_retrieval(reader: Reader, episodes: Sequence[Episode]) -> list[Kept]:
    """tmem's fast weights and what `retrieval` finds, together."""
    out = tmem(reader, episodes)
    for kept, found in zip(out, retrieval(reader, episodes)):
        kept.text, kept.state = found.text, kept.state + found.state
    return out


METHODS: dict[str, Method] = {
    "none": Method(nothing, State(searches=False)),
    "constant": Method(constant, State(searches=False, fixed=CONSTANT)),
    "full": Method(full, State(every=True, stays=True)),
    "mem1": Method(None, State(stays=True)),  # a search alone has turns
    "oracle": Method(oracle, State(searches=False, given=True)),
    "summary": Method(summarising, State(keep=(summarised,), text=newest)),
    "notes": Method(noting, State(keep=(noted,), text=nearest)),
    "retrieval": Method(retrieval, State(keep=(stored,), text=nearest)),
    "dense": Method(dense_retrieval, None),  # a search finds all documents by embeddings instead
    "pairs": Method(pairs, State(keep=(written,), text=newest)),
    "tmem": Method(tmem, State(keep=(written,), delta=True)),
    "tmem+retrieval": Method(tmem_retrieval, State(keep=(written, stored), text=nearest, delta=True)),
}
READ = tuple(name for name, method in METHODS.items() if method.read is not None)
SEARCHED = tuple(name for name, method in METHODS.items() if method.search is not None)


def methods_of(task: str) -> list[str]:
    """Names of the methods that a task has something for: CL-bench names no evidence for an oracle."""
    if task == "search":
        return list(SEARCHED)
    return [name for name in READ if name != "oracle" or task != "clbench"]


def in_prompt(agent: Agent, rollout: Rollout, context: int = CONTEXT) -> Kept:
    """A rollout's pairs as text, without its Δ."""
    text = agent.chat.clip("\n".join(f"{p.question} {p.answer}" for p in rollout.pairs), context)
    return _fixed(text, _reading(rollout), rollout)


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


def _reading(rollout: Rollout) -> Cost:
    cost = Cost()
    for entry in rollout.log:
        cost.add(entry.read, entry.tokens)
        cost.learned += entry.learned.tokens
    return cost
