"""Text of others, of models, data, presets and file names, shown as what it is: on a terminal, and in Markdown."""

from __future__ import annotations

import re

from rich.console import Console
from rich.text import Text

# Characters that a terminal obeys, or that change the order in which others are read; not the line feed and the tab.
_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What begins a tag, an entity, code, emphasis, a cell, a formula, or makes a link, a definition or an alert of brackets.
_LIVE = re.compile(r"[\\`*_~|$<>&]|\](?=[(\[:])|(?<=\[)!")
# What at the start of a line makes it a heading, a list or a rule.
_BLOCK = re.compile(r"^(\d{0,9})([#+\-=.)]+)(?=\s|$)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# What a reader of Markdown would make a link of even without brackets.
_ADDRESS = re.compile(r"(?i)(?<=\bhttp):|(?<=\bhttps):|(?<=\bftp):|(?<=\bmailto):|(?<=\bxmpp):|(?<=www)\.|(?<=\w)@(?=\w)")


def printable(text: str) -> str:
    """`text` with every character that a terminal would obey written out, as \\x1b."""
    return _OBEYED.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def in_markdown(text: str) -> str:
    """`text` as one line of Markdown, for a table's cell or behind a mark of ours: no tag, link, picture or code works."""
    line = _LIVE.sub(lambda m: _ENTITIES.get(m[0], f"\\{m[0]}"), " ".join(printable(text).split()))
    return _ADDRESS.sub(lambda m: f"&#{ord(m[0])};", _BLOCK.sub(r"\1\\\2", line))


def fenced(text: str) -> str:
    """`text` as a block of code in Markdown, whatever it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{printable(text)}\n{fence}"


class Terminal(Console):
    """A console on which text stands for itself: no markup, no emoji codes, no escape sequences."""

    def __init__(self, **options):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options) -> Text:
        return super().render_str(printable(text), **options)
