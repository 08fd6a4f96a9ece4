"""An answer while it is generated: its text so far, where it stops, and what of it may be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..models.chat import Chat


class Said:
    """Tokens go in through `add`; text comes out through `tell`, whole characters, and nothing that a stop text may begin in.

    most    tokens at most
    stops   texts at which the answer ends; they are not part of it
    raw     the answer goes on with the text of the tokens `before`, and space at its edges belongs to it
    """

    def __init__(
        self, chat: Chat, most: int, stops: Sequence[str], tell: Callable[[str], None] | None = None, *, raw: bool = False
    ):
        self.chat, self.most, self.stops, self.tell, self.raw = chat, most, stops, tell, raw
        self.before: list[int] = []
        self.ids: list[int] = []
        self.text, self.shown = "", ""
        self.reason = "length"

    def add(self, token: int) -> bool:
        """One more token; whether the answer ends with it."""
        self.ids.append(token)
        self.text = self.chat.text_after(self.before, self.ids) if self.raw else self.chat.text(self.ids)
        found = [at for stop in self.stops if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.reason = self._trimmed(self.text[: min(found)]), "stop"
        elif token in self.chat.ends:
            self.reason = "stop"
        ended = self.reason == "stop" or len(self.ids) >= self.most
        self._show(self.text if ended else self._safe())
        return ended

    def _trimmed(self, text: str) -> str:
        return text if self.raw else text.rstrip()

    def _safe(self) -> str:
        """The text without what may still change: half a character, the beginning of a stop text, space at the end."""
        text = self.text.rstrip("\ufffd")
        held = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return self._trimmed(text[: len(text) - held])

    def _show(self, text: str) -> None:
        if self.tell is not None and len(text) > len(self.shown) and text.startswith(self.shown):
            self.tell(text[len(self.shown) :])
            self.shown = text
