"""Whether Δ knows the question that it has just answered: asked back from the answer, it must make that question likelier.

A pair is also taught in reverse, its question from its answer. Whoever is asked what it was never told guesses an answer that
belongs to another question, and from there Δ leads to that one.

    gain = mean over the question's words of max(0, mean over the word's tokens of l(θ0+Δ) − l(θ0)),  l = max(log π, FLOOR)

in nats, over the words that carry its meaning. A word that Δ makes less likely counts 0: the question may have been taught in
other words.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..words import content
from .scored import FLOOR, log_probabilities


def gains(agent, questions: Sequence[str], answers: Sequence[str], slots: Sequence[int]) -> list[float]:
    """Of each question and its answer the gain above, under the Δ of its slot; the same bits in any company.

    agent: a tmem.agent.agent.Agent whose settings say how pairs are taught in reverse.
    """
    back, alone = [agent.asked_back(answer) for answer in answers], [-1] * len(slots)
    found = log_probabilities(agent, back * 2, [*questions] * 2, [*slots, *alone])
    return [
        gain(agent.chat.words(agent.chat.said(question)), under, without)
        for question, under, without in zip(questions, found[: len(back)], found[len(back) :])
    ]


def gain(words: Sequence[tuple[str, Sequence[int]]], under: Sequence[float], without: Sequence[float]) -> float:
    """The gain of a question whose words have their tokens at these places, from each token's log-probability with and without
    Δ; 0 of a question that holds no word of meaning."""
    each = [max(a, FLOOR) - max(b, FLOOR) for a, b in zip(under, without)]
    found = [max(0.0, sum(each[i] for i in at) / len(at)) for word, at in words if content(word)]
    return sum(found) / len(found) if found else 0.0
