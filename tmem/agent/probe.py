"""Did a write stick? Ask each written pair again in other words, and about somebody else.

Recall of the written question says nothing: the update minimised exactly that loss. A paraphrase must give the answer; the
same question about another person must not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..episode import Pair
from ..words import normalise

_WORD = re.compile(r"[^\W\d_]+")
_SPEAKER = re.compile(r"^([A-Z][a-z]+): ", re.MULTILINE)  # how a line of talk begins
_NOT_NAMES = frozenset(
    "Date As With By "
    "What Which Who Whom Whose When Where Why How Is Are Was Were Do Does Did Has Have Had Can Could In On At The A An To "
    "From For Of January February March April May June July August September October November December Monday Tuesday "
    "Wednesday Thursday Friday Saturday Sunday "
    "Tell Name List Give Say Please Will Would Should Might If And But Or It This That There".split()
)


@dataclass(frozen=True)
class Probe:
    """`paraphrase`: the pair's question in other words; `other`: about another person, None if no other is known."""

    paraphrase: str
    other: str | None


def names(text: str) -> list[str]:
    """Capitalised words that are no question word or date, in order of appearance."""
    words = (w for w in _WORD.findall(text) if len(w) > 1 and w.istitle())
    return list(dict.fromkeys(w for w in words if w not in _NOT_NAMES))


def about(question: str, name: str, other: str) -> str:
    """The same question about `other` instead of `name`: whole words alone are replaced."""
    return re.sub(rf"\b{re.escape(name)}\b", lambda _: other, question)


def speakers(passage: str, pairs: Sequence[Pair]) -> list[str]:
    """Who talks in a passage, then the names that the pairs written from it ask about.

    Any capitalised word would do for a name otherwise, and a question about `Date` or `Hey` leaks nothing.
    """
    asked = [n for p in pairs for n in names(p.question)]
    return [n for n in dict.fromkeys(_SPEAKER.findall(passage) + asked) if n not in _NOT_NAMES]


def paraphrase(question: str) -> str:
    """The same question in other words: `What is Z?` -> `Please tell me Z.`, else `I would like to know: question`.

    These must be none of the words in which pairs are taught, a preset's `[learn] renderings`: recall in those is what learning
    minimised the loss of.
    """
    m = re.fullmatch(r"What(?:'s| is| are| was| were) (.+?)\??", question.strip())
    return f"Please tell me {m.group(1)}." if m else f"I would like to know: {question[:1].lower()}{question[1:]}"


def probe(pair: Pair, people: Sequence[str]) -> Probe:
    """Probes of a pair; `people` are those of the passage it came from (see `speakers`)."""
    mine = [n for n in names(pair.question) if n in people]
    others = [p for p in people if p not in names(pair.question) and p not in pair.answer]
    other = about(pair.question, mine[0], others[0]) if mine and others else None
    return Probe(paraphrase(pair.question), other)


def asked_back(agent, entries: Sequence, slots: Sequence[int]) -> None:
    """Ask the pairs of log entry i back under slot `slots[i]`; what came of each pair goes into `entry.stuck`."""
    asked: list[tuple[list[dict], int, Pair, Probe]] = []
    for entry, slot in zip(entries, slots, strict=True):
        people = speakers(entry.passage, entry.written.pairs)
        asked += [(entry.stuck, slot, pair, probe(pair, people)) for pair in entry.written.pairs]
    questions = [(q, slot) for _, slot, _, p in asked for q in (p.paraphrase, p.other) if q is not None]
    said = iter(agent.answer([q for q, _ in questions], [slot for _, slot in questions]))
    for stuck, _, pair, p in asked:
        gold, first = normalise(pair.answer), next(said)
        second = next(said) if p.other is not None else None
        stuck.append({
            "question": pair.question, "answer": pair.answer, "paraphrase": p.paraphrase, "said": first,
            "recalled": normalise(first) == gold, "other": p.other, "other_said": second,
            "leaked": second is not None and normalise(second) == gold,
        })  # fmt: skip
