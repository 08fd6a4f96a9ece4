"""Where a stream is cut into passages: the texts that are written down one after another."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..models.chat import Chat

DATE = re.compile(r"(?:session )?date: \S.{0,99}", re.IGNORECASE)  # a chunk's first line where the session has one


def cut(chat: Chat, chunks: Sequence[str], window: int) -> list[str]:
    """Cut a stream into the texts that are written: whole chunks until the context exceeds `window` tokens.

    A chunk longer than the window is cut at line ends (a longer line, at spaces); where it begins with its date, every part
    does. The rest at the end is written too, so that questions meet no raw text.
    """
    out, context, used = [], [], 0
    for piece in (p for chunk in chunks for p in _pieces(chat, chunk, window)):
        size = chat.count(piece)
        if context and used + size > window:
            out.append("\n\n".join(context))
            context, used = [], 0
        context.append(piece)
        used += size
    return out + (["\n\n".join(context)] if context else [])


def _pieces(chat: Chat, chunk: str, window: int) -> list[str]:
    if chat.count(chunk) <= window:
        return [chunk] if chunk.strip() else []
    texts = chunk.splitlines()
    date = texts[:1] if DATE.fullmatch(texts[0]) and 2 * chat.count(texts[0]) < window else []
    room = window - sum(chat.count(line) + 1 for line in date)
    out, lines, used = [], [], 0
    for line in (part for whole in texts[len(date) :] for part in _halved(chat, whole, room)):
        size = chat.count(line) + 1
        if lines and used + size > room:
            out.append("\n".join(date + lines))
            lines, used = [], 0
        lines.append(line)
        used += size
    return out + (["\n".join(date + lines)] if lines else [])


def _halved(chat: Chat, line: str, window: int) -> list[str]:
    """A line in parts of at most `window` tokens, cut at the last space of the first half (at the middle of a word)."""
    if chat.count(line) <= window or len(line) < 2:
        return [line]
    middle = len(line) // 2
    at = line.rfind(" ", 1, middle + 1)
    at = at if at > 0 else middle
    return _halved(chat, line[:at], window) + _halved(chat, line[at:], window)
