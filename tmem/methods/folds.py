"""Memories of text that a model writes while it reads: a state is folded over the segments of a stream.

Over the same segments that tmem writes from, of all episodes together.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..agent.decode import decode
from ..agent.loop import WRITES, Agent
from ..agent.passages import cut
from ..episode import Episode
from ..words import normalise

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
    plans = _plans(agent, episodes)
    rounds = max(map(len, plans), default=0)
    for j in range(rounds):
        watch("read", j, rounds)
        spots = [(i, SUMMARY.format(state=states[i] or "(none)", segment=p[j])) for i, p in enumerate(plans) if j < len(p)]
        for (i, _), text in zip(spots, _said(agent, episodes, spots, budget, known, costs)):
            states[i] = text
    return states


def notes(agent: Agent, episodes: Sequence[Episode], budget: int, known: bool, costs, watch) -> list[str]:
    """Per episode lines of text, those of every segment after those before; a line that is already there is left out.

    No segment's lines depend on another's, so many are taken at once.
    """
    states: list[dict[str, str]] = [{} for _ in episodes]
    spots = [(i, NOTES.format(segment=segment)) for i, plan in enumerate(_plans(agent, episodes)) for segment in plan]
    for at in range(0, len(spots), WRITES):
        watch("read", at, len(spots))
        part = spots[at : at + WRITES]
        for (i, _), text in zip(part, _said(agent, episodes, part, budget, known, costs)):
            for line in map(str.strip, text.splitlines()):
                if key := normalise(line):
                    states[i].setdefault(key, line)
    return ["\n".join(state.values()) for state in states]


def _plans(agent: Agent, episodes: Sequence[Episode]) -> list[list[str]]:
    """The segments of each episode's stream."""
    return [[s.strip() for s in cut(agent.chat, e.chunks, agent.config.write.window)] for e in episodes]


def _said(agent: Agent, episodes, spots: Sequence[tuple[int, str]], max_new: int, known: bool, costs) -> list[str]:
    """What the model says to each (episode, prompt)."""
    if known:
        spots = [(i, t + _KNOWN.format(question=" ".join(q.text for q in episodes[i].questions))) for i, t in spots]
    prompts = [agent.chat.prompt(text) for _, text in spots]
    found = decode(agent.model, prompts, end=agent.chat.ends, max_new=max_new)
    for (i, _), prompt, generation in zip(spots, prompts, found):
        costs[i].add(len(prompt), len(generation.ids))
    return [agent.chat.text(g.ids) for g in found]
