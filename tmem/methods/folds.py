"""Memories of text that a model writes while it reads: a state is folded over the passages of a stream.

Over the same passages that tmem writes from, of all episodes together.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..agent.loop import WRITES
from ..agent.passages import cut
from ..episode import Episode
from ..words import normalise
from .reader import Cost, Reader

SUMMARY = (
    "Notes so far:\n{state}\n\nNew text:\n{passage}\n\n"
    "Write the notes anew, short: keep every fact that may be asked about later, with names and dates, and add those of the "
    "new text."
)
NOTES = "{passage}\n\nList each fact above as one short sentence that names the person, one sentence on a line."
_KNOWN = "\nWhat will be asked later: {question}"


def summary(reader: Reader, episodes: Sequence[Episode]) -> list[tuple[str, Cost]]:
    """Per episode a text of at most `budget` tokens that the model overwrites with every passage, and what that cost."""
    states, costs = [""] * len(episodes), [Cost() for _ in episodes]
    streams = _streams(reader, episodes)
    rounds = max(map(len, streams), default=0)
    for j in range(rounds):
        reader.watch("read", j, rounds)
        due = [i for i, passages in enumerate(streams) if j < len(passages)]
        spots = [(i, SUMMARY.format(state=states[i] or "(none)", passage=streams[i][j])) for i in due]
        for i, text in zip(due, _said(reader, episodes, spots, costs)):
            states[i] = text
    return list(zip(states, costs))


def notes(reader: Reader, episodes: Sequence[Episode]) -> list[tuple[str, Cost]]:
    """Per episode lines of text, those of every passage after those before, and what they cost. A line that is already there is
    left out.

    No passage's lines depend on another's, so many are taken at once.
    """
    states: list[dict[str, str]] = [{} for _ in episodes]
    costs = [Cost() for _ in episodes]
    spots = [(i, NOTES.format(passage=p)) for i, passages in enumerate(_streams(reader, episodes)) for p in passages]
    for at in range(0, len(spots), WRITES):
        reader.watch("read", at, len(spots))
        part = spots[at : at + WRITES]
        for (i, _), text in zip(part, _said(reader, episodes, part, costs)):
            for line in map(str.strip, text.splitlines()):
                if key := normalise(line):
                    states[i].setdefault(key, line)
    return [("\n".join(state.values()), cost) for state, cost in zip(states, costs)]


def _streams(reader: Reader, episodes: Sequence[Episode]) -> list[list[str]]:
    """The passages of each episode."""
    chat, window = reader.agent.chat, reader.agent.config.write.window
    return [[p.strip() for p in cut(chat, e.chunks, window)] for e in episodes]


def _said(reader: Reader, episodes: Sequence[Episode], spots: Sequence[tuple[int, str]], costs: Sequence[Cost]) -> list[str]:
    """What the model says to each (episode, prompt), in at most `budget` tokens."""
    if reader.settings.known:
        spots = [(i, t + _KNOWN.format(question=" ".join(q.text for q in episodes[i].questions))) for i, t in spots]
    replies = reader.agent.say([text for _, text in spots], max_new=reader.settings.budget)
    for (i, _), reply in zip(spots, replies):
        costs[i].add(reply.read, reply.generated)
    return [reply.text for reply in replies]
