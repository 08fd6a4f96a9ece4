"""Credit of single actions, `rl_credit = "action"`: what each adds to the reward, instead of one advantage for a whole rollout.

    write   R - R without it. R is the mean floored token log-probability of the episode's right answers
            (tmem.agent.scored); R without it is that after the rollout's log was learned again, write by write, with this one
            left out. The other writes stay as they were, so what a write changes in later writes is not credited.
    answer  the reward of its question.

A write pays its own length and format terms. R without a write does not depend on it, so as a baseline it leaves the policy
gradient as it is (difference rewards: Wolpert and Tumer, Advances in Complex Systems 4, 2001; COMA, arXiv 1705.08926).

Several actions of one update, such as the replies of a write, share its credit in proportion to the pairs of theirs that were
learned, as if pairs added up. A reply without such a pair taught nothing: its credit is 0. A span and the question to it made
one pair, and each gets what the pair does.

The advantage is the credit less the mean of the group's actions at the same place: the same write, or the same question.
With `normalise` it is divided by the root mean square over all writes, or all answers, of the group. With one write an episode
it is the rollout's own advantage under that reward.

Cost: an episode of W writes is learned W times more, W - 1 writes each time, and asked as often; and once as a whole, unless
its rollout's answers were scored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from .. import words
from ..agent.agent import Agent
from ..agent.loop import Action, LogEntry, Rollout
from ..agent.scored import likelihoods
from ..agent.write import Written, asked_of, parse
from .config import TrainConfig
from .replay import learned_again
from .rollout import Scores, rewarded

Place = tuple[str, int]  # "write" or "answer", and which of its rollout


def advantages(
    agent: Agent, groups: Sequence[tuple[Sequence[Rollout], Sequence[Scores]]], config: TrainConfig
) -> list[list[float]]:  # fmt: skip
    """One for each action of every rollout, of one group after another."""
    added = iter(added_by_writes(agent, [r for rollouts, _ in groups for r in rollouts]))
    out = []
    for rollouts, found in groups:
        credits = [credit(agent, r, next(added), s, config) for r, s in zip(rollouts, found)]
        out += relative(credits, [[(a.kind, a.place) for a in r.actions] for r in rollouts], normalise=config.normalise)
    return out


def added_by_writes(agent: Agent, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """R - R without it, nats, of every entry of the rollouts' logs. As many are learned at once as the bank has free slots.

    An entry that taught nothing added 0, and nothing is learned again for it.
    """
    spots: list[tuple[int, int | None]] = []  # a rollout, and the entry that is left out
    for i, rollout in enumerate(rollouts):
        spots += [(i, j) for j, entry in enumerate(rollout.log) if entry.taught]
        spots += [] if rollout.likely else [(i, None)]
    logs = [[e.written.pairs for j, e in enumerate(rollouts[i].log) if j != out] for i, out in spots]
    found = dict(zip(spots, _rewards(agent, logs, [rollouts[i] for i, _ in spots])))
    whole = [_mean([x.logp for x in r.likely]) if r.likely else found[i, None] for i, r in enumerate(rollouts)]
    return [[all_ - found.get((i, j), all_) for j in range(len(rollouts[i].log))] for i, all_ in enumerate(whole)]


def _rewards(agent: Agent, logs: Sequence, rollouts: Sequence[Rollout]) -> list[float]:
    """R of rollouts[i]'s questions after logs[i], the pairs of its writes, was learned."""
    out: list[float] = []
    while len(out) < len(logs):
        with agent.bank.borrowed(len(logs) - len(out), 1) as slots:
            part = slice(len(out), len(out) + len(slots))
            for _ in learned_again(agent, logs[part], slots):
                pass
            asked = [(q, slot) for r, slot in zip(rollouts[part], slots) for q in r.episode.questions]
            found = iter(likelihoods(agent, [q for q, _ in asked], [slot for _, slot in asked]))
            out += [_mean([next(found).logp for _ in r.episode.questions]) for r in rollouts[part]]
    return out


def credit(agent: Agent, rollout: Rollout, added: Sequence[float], found: Scores, config: TrainConfig) -> list[float]:
    """That of each action of a rollout; added[j]: what entry j of its log added."""
    paid = dict(_paid(agent, rollout, added, config))
    rewards = [question[rewarded(config)] for question in found.questions]
    return [paid[k] if a.kind == "write" else rewards[a.place] for k, a in enumerate(rollout.actions)]


def _paid(agent: Agent, rollout: Rollout, added: Sequence[float], config: TrainConfig) -> Iterator[tuple[int, float]]:
    """(number of the action, its credit) of every write."""
    for j, entry in enumerate(rollout.log):
        mine = {k: a for k, a in enumerate(rollout.actions) if a.kind == "write" and a.place == j}
        makers = _makers(list(mine.values()))
        written = [_alone(agent, action) for action in makers]
        learned = dict(zip(map(id, makers), pairs_of(written, entry)))
        dropped = dict(zip(map(id, makers), (own.dropped for own in written)))
        for k, action in mine.items():
            maker = id(_maker(action, makers))
            count = learned[maker]
            lost = dropped[maker] if agent.config.write.replies == 1 else int(not count)
            cost = config.length_cost * len(action.generation.ids) / 100 + config.format_cost * lost
            yield k, added[j] * count / max(1, sum(learned.values())) - cost


def _makers(actions: Sequence[Action]) -> list[Action]:
    """The actions that end a pair: all but the spans that a question goes on from."""
    return [a for a in actions if not any(_goes_on(b, a) for b in actions)]


def _maker(action: Action, makers: Sequence[Action]) -> Action:
    """The action that ends this one's pair: itself, or the question to it."""
    return next((m for m in makers if m is action), None) or next(m for m in makers if _goes_on(m, action))


def _goes_on(question: Action, span: Action) -> bool:
    begun = [*span.prompt, *span.generation.ids]
    return question is not span and question.prompt[: len(begun)] == begun


def _alone(agent: Agent, action: Action) -> Written:
    """What one action wrote by itself: of a question to a span a pair without an answer."""
    config, text, finished = agent.config.write, agent.chat.text(action.generation.ids), action.generation.finished
    if config.replies > 1:
        return asked_of([""], [text], [finished])
    return parse(text, finished=finished, limit=config.max_pairs)


def pairs_of(written: Sequence[Written], entry: LogEntry) -> list[int]:
    """How many of an entry's pairs each of its actions wrote. A question counts for the first one that asked it."""
    left, out = {words.identity(p.question) for p in entry.written.pairs}, []
    for own in written:
        mine = left & {words.identity(p.question) for p in own.pairs}
        left -= mine
        out.append(len(mine))
    return out


def relative(
    credits: Sequence[Sequence[float]], places: Sequence[Sequence[Place]], *, normalise: bool = True, eps: float = 1e-6
) -> list[list[float]]:  # fmt: skip
    """Advantages of the actions of one group: credits[g][k] of action k of rollout g, which stands at places[g][k].

    Credits that are the same at one place give zeros.
    """
    flat = list(zip(itertools.chain(*places), itertools.chain(*credits)))
    at: dict[Place, list[float]] = {}
    for place, value in flat:
        at.setdefault(place, []).append(value)
    centred = [0.0 if len(set(at[place])) == 1 else value - _mean(at[place]) for place, value in flat]
    if normalise:
        scale = {
            kind: math.sqrt(_mean([c * c for (place, _), c in zip(flat, centred) if place[0] == kind])) + eps
            for kind in {place[0] for place, _ in flat}
        }
        centred = [c / scale[place[0]] for (place, _), c in zip(flat, centred)]
    values = iter(centred)
    return [[next(values) for _ in row] for row in credits]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
