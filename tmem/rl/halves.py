"""Does the reward repeat itself? What one half of an episode's questions says of its rollouts against what the other half says.

An advantage is a difference within a group. Where two halves of the questions do not rank the same rollouts alike, these
differences are noise of the questions and of the answers, and an update follows the noise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

NOISY = 10  # steps whose mean correlation is judged at once: that of one step is a few dozen rollouts'

Halves = list[tuple[float, float]]


def halves(rewards: Sequence[Sequence[float]], key: str) -> Halves:
    """Per rollout of a group the mean reward of each half of its episode's questions, which are drawn by `key` for all alike.

    rewards[g][q] is what rollout g got for question q. Of an odd number the second half has one more. A single question has no
    halves, nor have rollouts of which one ended with other questions than the rest: then there are none of any rollout.
    """
    n = len(rewards[0]) if rewards else 0
    if n < 2 or any(len(row) != n for row in rewards):
        return []
    order = random.Random(key).sample(range(n), n)
    first, second = order[: n // 2], order[n // 2 :]
    return [(_mean([row[q] for q in first]), _mean([row[q] for q in second])) for row in rewards]


def correlation(groups: Sequence[Halves]) -> float | None:
    """r = Σ a b / sqrt(Σ a² Σ b²) over the rollouts of all groups: a and b are the halves' means less those of their group.

    Pearson's r of what is left when each group is centred: how good a group's episode is on the whole is no advantage of any
    rollout. Spearman and Brown's 2r / (1 + r) estimates the share of the reward's variance within groups that other questions
    would find again (Brown, British Journal of Psychology 3, 1910). None where a half says the same of all rollouts, or
    something that is not finite.
    """
    first = [a for group in groups for a in _centred([x for x, _ in group])]
    second = [b for group in groups for b in _centred([y for _, y in group])]
    scale = math.sqrt(math.fsum(a * a for a in first) * math.fsum(b * b for b in second))
    return math.fsum(a * b for a, b in zip(first, second)) / scale if 0 < scale < math.inf else None


def verdict(seen: list[float], found: float | None) -> str | None:
    """What to warn of once a step has found a correlation, after those `seen` before: a sentence, or nothing.

    After every NOISY of them they are judged by their mean, and `seen` is emptied.
    """
    seen += [] if found is None else [found]
    if len(seen) < NOISY:
        return None
    mean = _mean(seen)
    seen.clear()
    if mean > 0:
        return None
    return (
        f"in the last {NOISY} steps one half of the questions said nothing of what the other half says of the same rollouts "
        f"(split_half {mean:.2f} on average): training follows noise; ask more questions, or take another reward"
    )


def _centred(values: Sequence[float]) -> list[float]:
    """Less their mean; zeros where all are the same, which rounding would not give."""
    return [0.0] * len(values) if len(set(values)) == 1 else [v - _mean(values) for v in values]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
