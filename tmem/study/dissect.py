"""What did training change, writing or answering? Told without training again, from two or more models on one set of streams.

A *writer* reads a stream and leaves pairs, write by write, under its own Δ. An *answerer* learns somebody's pairs, in the same
order, and answers. Crossing them, and putting gold pairs, nothing, another episode's Δ or plain text in the place of the
pairs, says which half is responsible. Everything is greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..agent.agent import Agent
from ..agent.loop import Rollout, run
from ..agent.probe import paraphrase
from ..agent.teach import Lesson
from ..episode import Episode, Pair
from ..evaluation.facts import strict
from ..methods.methods import in_prompt
from ..methods.reader import ask
from ..rl import neutral
from ..rl.rollout import means
from ..rl.supervised import passages
from ..tasks import metrics, stream
from ..words import identity, normalise

Writes = Sequence[Sequence[Pair]]  # of one episode, in order


@dataclass(frozen=True)
class Taught:
    """Some episodes in slots of the bank, after `writes` of their writes were learned."""

    indices: range
    slots: list[int]
    writes: int


def taught(agent: Agent, writes: Sequence[Writes], *, each: bool = False) -> Iterator[Taught]:
    """Learn every episode's writes, as many episodes at once as there are slots; yields after the last write, or after each.

    As in a rollout, each write is learned with earlier pairs of writes that were kept.
    """
    at = 0
    while at < len(writes):
        with agent.bank.borrowed(len(writes) - at, 1) as slots:
            indices = range(at, at + len(slots))
            at = indices.stop
            lessons = [Lesson() for _ in indices]
            rounds = max((len(writes[i]) for i in indices), default=0)
            for j in range(rounds):
                due = [k for k, i in enumerate(indices) if j < len(writes[i])]
                agent.teach([slots[k] for k in due], [writes[indices[k]][j] for k in due], [lessons[k] for k in due])
                if each:
                    yield Taught(indices, slots, j + 1)
            if not each:
                yield Taught(indices, slots, rounds)


def written(rollouts: Sequence[Rollout]) -> list[Writes]:
    """What each rollout wrote, write by write."""
    return [[entry.written.pairs for entry in r.log] for r in rollouts]


def gold(agent: Agent, episodes: Sequence[Episode]) -> list[Writes]:
    """What a perfect writer would have written, at the same places in the stream."""
    return [[pairs for _, pairs in passages(agent, e)] for e in episodes]


def dissect(
    models: Sequence[str], use: Callable[[str], Agent], episodes: Sequence[Episode],
    watch: Callable[[str], None] = lambda _: None,
) -> dict:  # fmt: skip
    """Rows per episode for every writer and answerer among `models`; `use(name)` gives the agent with that model's θ0.

    -> {"episodes": [ids], "crossing": {answerer: {condition: [scores per episode]}}, "writing": {writer: [...]},
    "recall": {model: matrix}, "ability": {model: {...}}}; a condition is a writer's name, "gold", "off" (Δ = 0), "foreign" (the
    next episode's Δ), "prompt" (the pairs as text, without Δ) or "rebuilt" (all pairs of its own log in one write).
    """
    out: dict = {"episodes": [e.id for e in episodes], "crossing": {}, "writing": {}, "recall": {}, "ability": {}}
    wrote: dict[str, list[Writes]] = {}
    rollouts: dict[str, list[Rollout]] = {}
    for name in models:
        agent = use(name)
        watch(f"{name} writes")
        rollouts[name] = run(agent, episodes, [e.id for e in episodes])
        wrote[name] = written(rollouts[name])
        out["writing"][name] = [strict(e, [p for w in ws for p in w]) for e, ws in zip(episodes, wrote[name])]
    for name in models:
        agent = use(name)
        conditions = {writer: wrote[writer] for writer in models} | {"gold": gold(agent, episodes)}
        conditions["rebuilt"] = [[[p for w in ws for p in w]] for ws in wrote[name]]
        rows = {}
        for condition, writes in conditions.items():
            watch(f"{name} answers, having learned {condition}")
            rows[condition] = _answered(agent, episodes, writes)
        watch(f"{name} answers without its memory")
        rows["foreign"] = _answered(agent, episodes, wrote[name], shift=1)
        rows["off"] = [_scored(e, agent.answer([q.text for q in e.questions])) for e in episodes]
        shown = [in_prompt(agent, r) for r in rollouts[name]]
        said = iter(ask(agent, [(k, q) for k, e in zip(shown, episodes) for q in e.questions]))
        rows["prompt"] = [_scored(e, [next(said).text for _ in e.questions]) for e in episodes]
        out["crossing"][name] = rows
        watch(f"{name} recalls")
        out["recall"][name] = recall_matrix(agent, wrote[name])
        out["ability"][name] = ability(agent) | _with_memory(agent, wrote[name])
    return out


def _answered(agent: Agent, episodes: Sequence[Episode], writes: Sequence[Writes], shift: int = 0) -> list[dict[str, float]]:
    """Scores of each episode's answers under the Δ of its writes; `shift`: under that of the episode so many places on."""
    out: list[dict[str, float]] = []
    for group in taught(agent, writes):
        slots = group.slots[shift:] + group.slots[:shift]
        asked = [(k, q) for k, i in enumerate(group.indices) for q in episodes[i].questions]
        said = iter(agent.answer([q.text for _, q in asked], [slots[k] for k, _ in asked]))
        out += [_scored(episodes[i], [next(said) for _ in episodes[i].questions]) for i in group.indices]
    return out


def _scored(episode: Episode, said: Sequence[str]) -> dict[str, float]:
    """Means over the questions: f1 and em of all, of those with an answer and of those without, intrusions; after a change, the
    share answered by the new value, by the old one, or by something of both."""
    rows = []
    for question, old, text in zip(episode.questions, stream.outdated(episode), said):
        row = {name: float(getattr(metrics, name)(text, question)) for name in ("f1", "em", "intrusion")}
        row["abstained" if question.kind == stream.UNKNOWN else "known"] = row["em"]
        if old:
            says_new, says_old = _says(text, question.answers), _says(text, old)
            row |= {"new": float(says_new and not says_old), "stale": float(says_old and not says_new)}
            row["mixed"] = float(says_old and says_new)
        rows.append(row)
    return means(rows)


def _says(text: str, values: Sequence[str]) -> bool:
    return any(f" {normalise(v)} " in f" {normalise(text)} " for v in values)


def recall_matrix(agent: Agent, writes: Sequence[Writes]) -> list[list[float | None]]:
    """[j][i]: after write j (from 0), the share of write i's pairs, i <= j, whose answer comes back to other words.

    What a later write destroys shows down a column. Pairs whose question was asked anew by a later write are left out.
    """
    size = max((len(w) for w in writes), default=0)
    found: list[list[list[bool]]] = [[[] for _ in range(size)] for _ in range(size)]
    for group in taught(agent, writes, each=True):
        j = group.writes - 1
        asked = []
        for k, e in enumerate(group.indices):
            if j < len(writes[e]):
                for i in range(j + 1):
                    later = {identity(p.question) for w in writes[e][i + 1 : j + 1] for p in w}
                    asked += [(k, i, p) for p in writes[e][i] if identity(p.question) not in later]
        said = agent.answer([paraphrase(p.question) for *_, p in asked], [group.slots[k] for k, *_ in asked])
        for (_, i, pair), text in zip(asked, said):
            found[j][i].append(normalise(text) == normalise(pair.answer))
    return [[sum(cell) / len(cell) if cell else None for cell in row[: j + 1]] for j, row in enumerate(found)]


def ability(agent: Agent) -> dict[str, float]:
    """Neutral text (nats per token) and plain questions (share right) under θ0."""
    return {"nll": neutral.nll(agent), "plain": neutral.plain(agent)}


def _with_memory(agent: Agent, writes: Sequence[Writes], count: int = 4) -> dict[str, float]:
    """The same under θ0 + Δ of `count` episodes."""
    deltas = []
    for group in taught(agent, writes[:count]):
        deltas += [agent.bank.snapshot(slot, optimizer=False) for slot in group.slots]
    return {
        "nll_with_memory": sum(neutral.nll(agent, d) for d in deltas) / len(deltas),
        "plain_with_memory": sum(neutral.plain(agent, d) for d in deltas) / len(deltas),
    }
