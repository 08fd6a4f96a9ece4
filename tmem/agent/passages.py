"""Where a stream is cut into passages: the texts that are written down one after another.

Every passage says when and who: a part of a session that is longer than the window begins with the session's date, and where it
goes on with a turn, with that turn's speaker.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ..models.chat import Chat
from ..tasks import dates

DATE = re.compile(r"(?:session )?date: \S.{0,99}", re.IGNORECASE)  # a chunk's first line where the session has one
# How a turn begins: with a role, or with a name of one to three capitalised words.
TURN = re.compile(r"((?:user|assistant|system)|[^\W\d_a-z][\w'.’-]*(?: [^\W\d_a-z][\w'.’-]*){0,2}): ")
ROLES = frozenset(("user", "assistant", "system"))


def cut(chat: Chat, chunks: Sequence[str], window: int) -> list[str]:
    """Cut a stream into the texts that are written: whole chunks until the context exceeds `window` tokens.

    A chunk longer than the window is cut at line ends (a longer line, at spaces). Where it begins with its date, every part
    does; a part that begins amid a turn says whose it is (see `speakers`). The rest at the end is written too, so that
    questions meet no raw text.
    """
    out, context, used = [], [], 0
    known = speakers(chunks)
    for piece in (p for chunk in chunks for p in _pieces(chat, chunk, window, known)):
        size = chat.count(piece)
        if context and used + size > window:
            out.append("\n\n".join(context))
            context, used = [], 0
        context.append(piece)
        used += size
    return out + (["\n\n".join(context)] if context else [])


def absolute(answer: str, passage: str) -> str:
    """An answer such as "yesterday" as the day that it was, by the last session's date above it; any other as it is.

    A passage goes, and with it the date that says when "yesterday" was.
    """
    at = passage.lower().find(answer.lower().strip(" .!,"))
    above = passage[:at].splitlines() if at >= 0 else []
    for line in reversed(above):
        if DATE.fullmatch(line):
            then = dates.when(line.partition(":")[2])
            return (then and dates.resolved(answer, then)) or answer
    return answer


def speakers(chunks: Sequence[str]) -> frozenset[str]:
    """Who talks in a stream: user, assistant and system where there are any, else the names that begin two lines or more.

    Beside roles a name at the beginning of a line is text, such as "Note: ..." in an assistant's list.
    """
    found = Counter(m[1] for chunk in chunks for line in _lines(chunk)[1] if (m := TURN.match(line)))
    return ROLES & found.keys() or frozenset(name for name, count in found.items() if count > 1)


def _lines(chunk: str) -> tuple[list[str], list[str]]:
    """A chunk's date, if it begins with one, and the lines after it."""
    lines = chunk.splitlines()
    dated = bool(lines and DATE.fullmatch(lines[0]))
    return lines[:dated], lines[dated:]


def _pieces(chat: Chat, chunk: str, window: int, known: frozenset[str]) -> list[str]:
    if chat.count(chunk) <= window:
        return [chunk] if chunk.strip() else []
    date, body = _lines(chunk)
    if date and 2 * chat.count(date[0]) >= window:
        date, body = [], date + body
    room = window - sum(chat.count(line) + 1 for line in date)
    label = max((chat.count(f"{name}: ") for name in known), default=0)
    if 2 * label >= room:
        known, label = frozenset(), 0
    out, lines, used = [], [], 0
    for who, line in _said(chat, body, room - label, known):
        size = chat.count(line) + 1
        if lines and used + size > room - label:
            out.append("\n".join(date + lines))
            lines, used = [], 0
        lines.append(f"{who}: {line.lstrip()}" if who and not lines else line)
        used += size
    return out + (["\n".join(date + lines)] if lines else [])


def _said(chat: Chat, lines: Sequence[str], room: int, known: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Lines, or parts of them of at most `room` tokens, each with whose turn it goes on with; "" where one begins."""
    speaker = ""
    for line in lines:
        found = TURN.match(line)
        begins = bool(found and found[1] in known)
        for i, part in enumerate(_halved(chat, line, room)):
            yield ("" if begins and not i else speaker), part
            if begins and not i:
                speaker = found[1]


def _halved(chat: Chat, line: str, window: int) -> list[str]:
    """A line in parts of at most `window` tokens, cut at the last space of the first half (at the middle of a word)."""
    if chat.count(line) <= window or len(line) < 2:
        return [line]
    middle = len(line) // 2
    at = line.rfind(" ", 1, middle + 1)
    at = at if at > 0 else middle
    return _halved(chat, line[:at], window) + _halved(chat, line[at:], window)
