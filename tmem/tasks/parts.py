"""A passage as a chunk of a stream, and a long one cut into parts, each with the questions that it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from tmem.episode import Question
from tmem.tasks.squad import BOUNDARY, Passage
from tmem.words import content, normalise

__all__ = ["chunk", "cut", "dated", "standing"]

_SPOKEN = re.compile(r"\s*[^\s:][^:\n]{0,40}: ")  # a line of dialogue, whose sentences are nobody's without it
_DATE = re.compile(r"(?:session )?date: (\S.{0,99})", re.IGNORECASE)


def chunk(passage: Passage) -> str:
    """The passage as it is read: under its title where that is a name and no id, so where it begins with a capital letter.

    A first line that says when a session was stays the first line.
    """
    title = passage.title.replace("_", " ")
    return f"TITLE: {title}\n{passage.text}" if title[:1].isupper() and not dated(passage.text) else passage.text


def dated(text: str) -> str:
    """What the first line gives as the session's date, "" where it gives none."""
    found = _DATE.fullmatch(text.split("\n", 1)[0].strip())
    return found[1] if found else ""


def standing(text: str, question: Question) -> str:
    """The sentence, or the line of dialogue, that a question's answer stands in: of those with one of its answers, the one that
    shares most words with the question, and the first of several. What the reader found where none has one; "" if that is
    nothing."""
    if question.category == "abstention":
        return ""
    answers = [f" {normalise(answer)} " for answer in question.answers if normalise(answer)]
    asked = content(question.text)
    found = [(len(asked & words), sentence) for sentence, plain, words in _told(text) if any(a in plain for a in answers)]
    best = max(found, key=lambda match: match[0], default=(0, ""))[1]
    return best or "".join(e.text for e in question.evidence if e.text in text)


def cut(passage: Passage, words: int) -> list[Passage]:
    """The passage in parts of at most `words` words, each with the questions whose answer stands in it; 0: as it is.

    The cuts are at line ends, and at sentence ends within a line that is too long; a sentence is never cut. A first line with
    the session's date is the first line of every part. A question whose answer does not stand in the text is lost with a cut,
    for nobody can tell which part it belongs to.
    """
    if not words or len(passage.text.split()) <= words:
        return [passage]
    head, _, body = passage.text.partition("\n") if dated(passage.text) else ("", "", passage.text)
    where = [(q, standing(passage.text, q)) for q in passage.questions]
    out: list[Passage] = []
    for part in _packed(body, words - len(head.split())):
        here = [(q, sentence) for q, sentence in where if sentence and sentence in part]
        where = [(q, sentence) for q, sentence in where if (q, sentence) not in here]
        text = f"{head}\n{part}" if head else part
        out.append(replace(passage, text=text, questions=tuple(q for q, _ in here)))
    return out


def _packed(text: str, words: int) -> list[str]:
    pieces = [p for line in text.splitlines(keepends=True) for p in ([line] if _size(line) <= words else _sentences(line))]
    out: list[list[str]] = [[]]
    for piece in pieces:
        if _size("".join(out[-1])) and _size("".join(out[-1])) + _size(piece) > words:
            out.append([])
        out[-1].append(piece)
    return [part for pieces in out if (part := "".join(pieces).strip())]


@lru_cache(maxsize=4)
def _told(text: str) -> list[tuple[str, str, frozenset[str]]]:
    """Sentences and lines of dialogue: each as it is, in the form that is compared, and its words that carry meaning."""
    pieces = [p for line in text.splitlines() for p in ([line] if _SPOKEN.match(line) else _sentences(line))]
    return [(p.strip(), f" {normalise(p)} ", content(p)) for p in pieces]


def _size(text: str) -> int:
    return len(text.split())


def _sentences(text: str) -> Sequence[str]:
    """The text in sentences and lines, each with the space behind it."""
    cuts = [0, *(found.end() for found in BOUNDARY.finditer(text)), len(text)]
    return [text[a:b] for a, b in zip(cuts, cuts[1:]) if text[a:b].strip()]
