"""Rollouts of groups, their rewards, and the replay of every action under the Δ that produced it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .. import tasks
from ..agent.episode import Action, Agent, Rollout, run
from ..agent.probe import names
from ..agent.write import normalise
from ..episode import Episode, Pair
from .loss import policy_loss
from .supervised import micro_batches, padded, token_logits, under


@dataclass(frozen=True)
class Scores:
    """Means over an episode's questions, and what its writes were like."""

    f1: float
    em: float
    intrusion: float
    pairs_per_write: float
    dropped: int  # lines and pairs that the parser left out, for whatever reason
    recall: float  # share of the gold pairs of the stream that were written: same answer, same person


def sample(
    agent: Agent, episodes: Sequence[Episode], group: int, key: str, on_event: Callable | None = None
) -> list[Rollout]:
    """`group` rollouts of each episode at T=1 with their actions traced; rollout g of episode i is item i·group + g."""
    repeated = [e for e in episodes for _ in range(group)]
    keys = [f"{key}/{e.id}/{g}" for e in episodes for g in range(group)]
    return run(agent, repeated, keys, temperature=1.0, trace=True, on_event=on_event)


def scores(task: str, rollout: Rollout) -> Scores:
    """Score one rollout's answers and writes."""
    rows = [tasks.score(task, q, a) for q, a in zip(rollout.episode.questions, rollout.answers)]
    mean = {k: sum(r[k] for r in rows) / len(rows) for k in ("f1", "em", "intrusion")}
    gold = [p for pairs in rollout.episode.pairs for p in pairs]
    return Scores(
        **mean,
        pairs_per_write=len(rollout.pairs) / max(1, len(rollout.log)),
        dropped=sum(e.written.dropped for e in rollout.log),
        recall=recall(rollout.pairs, gold),
    )


def recall(written: Sequence[Pair], gold: Sequence[Pair]) -> float:
    """Share of gold pairs for which a written pair gives the same answer about the same person."""

    def same(w: Pair, g: Pair) -> bool:
        about = set(names(g.question))
        return normalise(w.answer) == normalise(g.answer) and (not about or bool(about & set(names(w.question))))

    return sum(any(same(w, g) for w in written) for g in gold) / len(gold) if gold else 0.0


@dataclass
class Replayed:
    """Totals of a policy update: loss, tokens, mean |ratio - 1| and share of clipped tokens."""

    loss: float = 0.0
    tokens: int = 0
    ratio_off: float = 0.0
    clipped: float = 0.0


def backward(agent: Agent, actions: Sequence[tuple[Action, float]], clip: float, micro_tokens: int) -> Replayed:
    """Accumulate the policy gradient of `(action, advantage)` pairs into the base model.

    Each action is scored under θ0 + sg(Δ), with Δ the snapshot that was in its slot when it was sampled.
    Actions whose advantage is 0 contribute nothing and are skipped, but their tokens count in Σ|o|.
    """
    total = sum(len(a.generation.ids) for a, _ in actions)
    live = [(a, adv) for a, adv in actions if adv != 0.0 and a.generation.ids]
    out = Replayed(tokens=sum(len(a.generation.ids) for a, _ in live))
    model, bank = agent.model, agent.bank
    deltas = [a.delta for a, _ in live]
    for group in micro_batches([a.prompt + a.generation.ids for a, _ in live], micro_tokens, deltas, bank):
        members = [live[i] for i in group]
        ids = padded([a.prompt + a.generation.ids for a, _ in members], bank.device)
        spots = [
            (r, len(a.prompt) + k - 1, token, old, adv)
            for r, (a, adv) in enumerate(members)
            for k, (token, old) in enumerate(zip(a.generation.ids, a.generation.logprobs))
        ]
        rows, columns, targets, old, adv = (list(x) for x in zip(*spots))
        with under(bank, [a.delta for a, _ in members]):
            logits = token_logits(model, ids, rows, columns)
            new = logits.log_softmax(-1).gather(-1, torch.tensor(targets, device=bank.device)[:, None])[:, 0]
            result = policy_loss(
                new,
                torch.tensor(old, device=bank.device, dtype=new.dtype),
                torch.tensor(adv, device=bank.device, dtype=new.dtype),
                torch.full_like(new, 1.0 / total).detach(),
                clip,
            )
            result.loss.backward()
        share = len(rows) / out.tokens
        out.loss += float(result.loss.detach())
        out.ratio_off += share * result.ratio_off
        out.clipped += share * result.clipped
    return out
