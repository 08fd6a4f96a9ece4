"""Memories of text that a model writes while it reads: a state is folded over the segments of a stream.

All episodes go in lock step, over the same segments that tmem writes from.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..episode import Episode
from .decode import decode
from .episode import Agent, segments
from .write import normalise

SUMMARY = (
    "Notes so far:\n{state}\n\nNew text:\n{segment}\n\n"
    "Write the notes anew, short: keep every fact that may be asked about later, with names and dates, and add those of the "
    "new text."
)
NOTES = "{segment}\n\nList each fact above as one short sentence that names the person, one sentence on a line."
_KNOWN = "\nWhat will be asked later: {question}"


def summary(agent: Agent, episodes: Sequence[Episode], budget: int, known: bool, costs, watch) -> list[str]:
    """Per episode a text of at most `budget` tokens that the model overwrites with every segment."""
    states = [""] * len(episodes)
    for due, texts in _said(agent, episodes, lambda i, s: SUMMARY.format(state=states[i] or "(none)", segment=s),
                            budget, known, costs, watch):  # fmt: skip
        for i, text in zip(due, texts):
            states[i] = text
    return states


def notes(agent: Agent, episodes: Sequence[Episode], budget: int, known: bool, costs, watch) -> list[str]:
    """Per episode lines of text, those of every segment after those before; a line that is already there is left out."""
    states: list[dict[str, str]] = [{} for _ in episodes]
    for due, texts in _said(agent, episodes, lambda i, s: NOTES.format(segment=s), budget, known, costs, watch):
        for i, text in zip(due, texts):
            for line in map(str.strip, text.splitlines()):
                if key := normalise(line):
                    states[i].setdefault(key, line)
    return ["\n".join(state.values()) for state in states]


def _said(agent: Agent, episodes, prompt, max_new: int, known: bool, costs, watch):
    """Round by round (episodes that have a segment, what the model said to it)."""
    plans = [segments(agent.chat, e.chunks, agent.config.write.window) for e in episodes]
    rounds = max(map(len, plans), default=0)
    for j in range(rounds):
        watch("read", j, rounds)
        due = [i for i, plan in enumerate(plans) if j < len(plan)]
        texts = [prompt(i, plans[i][j].strip()) for i in due]
        if known:
            texts = [t + _KNOWN.format(question=" ".join(q.text for q in episodes[i].questions)) for i, t in zip(due, texts)]
        prompts = [agent.chat.prompt(t) for t in texts]
        found = decode(agent.model, prompts, end=agent.chat.end, max_new=max_new)
        for i, p, generation in zip(due, prompts, found):
            costs[i].add(len(p), len(generation.ids))
        yield due, [agent.chat.text(g.ids) for g in found]
