"""How likely the right answers are, in one forward pass without sampling.

Two numbers of a question are made of the same log-probabilities. `right` is the probability of a right answer: what sampling
many times would estimate. `logp` is the floored token log-probability. Under other questions of the same text it comes out
alike more often than the probability does, which is near 0 for most answers and decided by a few.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..episode import Question
from ..models import forward as fw
from .learn import MAX_TOKENS
from .turns import turn

FLOOR = -4.0  # nats: the least log-probability that a token counts with


class Likelihood(NamedTuple):
    """Of one question: the probability of a right answer, and the floored token log-probability of the best one, nats."""

    right: float
    logp: float


@torch.no_grad()
def log_probabilities(agent, prompts: Sequence[str], answers: Sequence[str], slots: Sequence[int]) -> list[list[float]]:
    """log π of each token of answers[i] and of the end of the turn, nats, after prompts[i] under slot `slots[i]`.

    Each has the same bits in any company.
    """
    chat, model, bank = agent.chat, agent.model, agent.bank
    by_length: dict[int, list[tuple[int, list[int], int]]] = {}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = chat.prompt(prompt)
        ids = start + chat.answer(answer)
        by_length.setdefault(fw.bucket(len(ids)), []).append((i, ids, len(start)))
    out: list[list[float]] = [[] for _ in prompts]
    for length, sequences in by_length.items():
        size = max(1, MAX_TOKENS // length)
        for part in (sequences[at : at + size] for at in range(0, len(sequences), size)):
            ids = fw.pad([ids for _, ids, _ in part], length, device=bank.device)
            spots = [(r, c, i, ids[c]) for r, (i, ids, start) in enumerate(part) for c in range(start, len(ids))]
            rows, columns, owners, said = (list(x) for x in zip(*spots))
            filling = [0] * (fw.filled(len(rows)) - len(rows))
            used = [slots[i] for i, _, _ in part] + [-1] * (len(ids) - len(part))
            with turn(), bank.route(used, learn=False):
                logits = fw.token_logits(model, ids, rows + filling, [c - 1 for c in columns] + filling)
            logp = logits[: len(said)].float().log_softmax(-1).gather(1, torch.tensor(said, device=bank.device)[:, None])
            for i, value in zip(owners, logp[:, 0].double().tolist()):
                out[i].append(value)
    return out


def floored(logp: Sequence[float]) -> float:
    """(1/n) Σ max(log p, FLOOR) over an answer's n tokens, nats.

    The floor stands on each token and not on their mean: one token that the model would never say costs 4 nats and hides
    nothing of the others.
    """
    return sum(max(value, FLOOR) for value in logp) / len(logp)


def likelihoods(agent, questions: Sequence[Question], slots: Sequence[int]) -> list[Likelihood]:
    """How likely the right answers to each question are under its slot.

    Right answers are different strings, so their probabilities add up; of the floored log-probabilities the best counts. A
    question without a right answer has probability 0 and FLOOR.
    """
    right = [list(dict.fromkeys(q.answers)) for q in questions]
    items = [(agent.asked(q.text), a, slot) for q, answers, slot in zip(questions, right, slots, strict=True) for a in answers]
    found = iter(log_probabilities(agent, *([item[k] for item in items] for k in range(3))))
    return [_likelihood([next(found) for _ in answers]) for answers in right]


def _likelihood(answers: Sequence[Sequence[float]]) -> Likelihood:
    """From the tokens' log-probabilities of every right answer."""
    right = sum(math.exp(functools.reduce(operator.add, logp)) for logp in answers)
    return Likelihood(min(1.0, right), max(map(floored, answers), default=FLOOR))
