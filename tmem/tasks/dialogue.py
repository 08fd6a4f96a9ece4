"""A conversation that a coroutine leads, as a scene: it says something, waits for the reply, and says the next thing.

The coroutine is somebody else's. It may hang, fail or say anything, which is counted as for tools (tmem.tasks.tool) and ends
the scene with a score of 0. It runs in a loop of its own, and only while a reply is being handed over.
"""

from __future__ import annotations

import asyncio
import math
import random
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..episode import Clip, Observation, Outcome, Scene
from .tool import Tool, is_text

__all__ = ["Ask", "Dialogue", "Lead", "Message"]

SCORE = "score"  # that every ending has
SECONDS = 30.0  # from one reply to what is said next
MESSAGE, WINDOW = 1000, 2000  # tokens of one message, and of a conversation, that are shown
_GRACE = 1.0  # seconds beyond the limit, for what ends when it is told to
_LABELS = {"system": "", "user": "User: ", "assistant": "Assistant: ", "tool": "Tool: "}
_NOTHING = "Nothing is asked."


class Message(NamedTuple):
    """One message of a conversation: who says it, "system", "user", "assistant" or "tool", and its text."""

    role: str
    text: str


Ask = Callable[[Sequence[Message]], Awaitable["str | None"]]
"""Puts a whole conversation to the agent and waits for its reply; None: it has no turn left."""

Lead = Callable[[Ask], Awaitable[Sequence[dict[str, float]]]]
"""Leads a conversation to its end and returns scores by name, `score` among them: one dict for each objective."""


class Reached(NamedTuple):
    """Where a coroutine stands: at the conversation that it asks about, or at its end with scores; and how it got there."""

    how: str  # "fine", or one of tool.FAILURES
    asked: Sequence[Message] | None = None
    rows: Sequence[dict[str, float]] | None = None


class Dialogue(Scene):
    """A conversation under way.

        lead     leads it
        clip     cuts a text to so many tokens
        seed     of the process-wide `random` and `numpy.random` that `lead` sees: every dialogue has its own
        turns    replies at most
        max_new  tokens of a reply
        seconds  that `lead` may take for what it does between two replies

    The beginning, as `lead` first asks, is always seen. Where a conversation is longer than WINDOW tokens, its oldest replies
    leave the context, each with what was said to it.
    """

    def __init__(self, lead: Lead, clip: Clip, *, seed: str, turns: int, max_new: int = 128, seconds: float = SECONDS):
        self.clip, self.turns, self.max_new, self.seconds = clip, turns, max_new, seconds
        self.replies = 0
        self.begun: list[Message] = []  # the conversation as it was first asked about
        self.since: list[list[Message]] = []  # the replies after that which are still seen, each with what was said to it
        self._heard: list[Message] = []  # all of it
        self._at: Reached | None = None
        self._leading = _Leading(lead, self._turn_left)
        number = zlib.crc32(seed.encode())
        self._chance = random.Random(number).getstate(), np.random.RandomState(number).get_state()

    def observe(self) -> Observation | None:
        """What was said and replied, as far as it is in the context."""
        if self._at is None:
            self._go_on("")
        if not self._over:
            return Observation(self._shown(), max_new=self.max_new)
        return None if self.replies else Observation(_NOTHING, max_new=1)  # one action, whose outcome says how it failed

    def act(self, said: str) -> Outcome:
        """Hand over a reply. What no longer fits leaves the context."""
        self.replies += 1
        if not self._over:
            self._go_on(said)
        return Outcome("" if self._over else self._left(), called=self._at.how)

    def scores(self) -> list[dict[str, float]]:
        """What `lead` returned; a `score` of 0 where it failed."""
        return [dict(row) for row in self._at.rows] if self._at and self._at.rows else [{SCORE: 0.0}]

    @property
    def _over(self) -> bool:
        return self._at is not None and self._at.asked is None

    def _turn_left(self) -> bool:
        return self.replies < self.turns

    # what is seen ----------------------------------------------------------------------------------------------------

    def _shown(self) -> str:
        return _text([*self.begun, *(message for exchange in self.since for message in exchange)])

    def _hear(self, asked: Sequence[Message]) -> None:
        """Take in what is asked: the conversation of before with more to it, or another one."""
        before, self._heard = self._heard, [Message(role, self.clip(text, MESSAGE)) for role, text in asked]
        if not before or self._heard[: len(before)] != before:
            self.begun, self.since = self._heard, []
            return
        for message in self._heard[len(before) :]:
            if message.role == "assistant" or not self.since:
                self.since.append([])
            self.since[-1].append(message)

    def _left(self) -> str:
        """What leaves the context: the oldest exchanges, until the others fit. The last one stays."""
        gone: list[Message] = []
        while len(self.since) > 1 and self.clip(self._shown(), WINDOW) != self._shown():
            gone += self.since.pop(0)
        return _text(gone)

    # the coroutine ---------------------------------------------------------------------------------------------------

    def _go_on(self, said: str) -> None:
        """Let `lead` go on to where it asks or ends."""
        with self._own_chance():
            found, how = Tool(partial(self._leading, seconds=self.seconds), self.seconds + _GRACE, lambda _: True)(said)
        self._at = found or Reached(how)
        self._leading.left = found is None
        if self._at.asked is not None:
            self._hear(self._at.asked)

    @contextmanager
    def _own_chance(self) -> Iterator[None]:
        """The process-wide generators as this dialogue left them, and then as they were."""
        before = random.getstate(), np.random.get_state()
        _draw_from(self._chance)
        try:
            yield
        finally:
            self._chance = random.getstate(), np.random.get_state()
            _draw_from(before)


class _Leading:
    """The coroutine in its loop, called in a thread that may be left behind: nothing here is read by the scene."""

    def __init__(self, lead: Lead, turn_left: Callable[[], bool]):
        self.lead, self.turn_left = lead, turn_left
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task | None = None
        self.reply: asyncio.Future | None = None  # that it waits for
        self.left = False  # behind, as its time was over: what it still asks is not answered

    def __call__(self, said: str, seconds: float) -> Reached:
        """Hand over a reply, and run until the next one is asked for, the end, or for so many seconds."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            self.loop.set_exception_handler(lambda *_: None)  # what fails is counted, not printed
        try:
            reached = self.loop.run_until_complete(self._reached(said, seconds))
        except BaseException:  # an exit, too, ends no more than the conversation
            reached = Reached("error")
        if reached.asked is None or self.left:
            _close(self.loop)
        return reached

    async def _reached(self, said: str, seconds: float) -> Reached:
        loop = asyncio.get_running_loop()
        self.asked = loop.create_future()
        if self.task is None:
            self.lock = asyncio.Lock()
            self.task = asyncio.ensure_future(self.lead(self._ask))
        else:
            self.reply.set_result(said)
        await asyncio.wait({self.task, self.asked}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            rows = self.task.result()
            return Reached("fine", rows=rows) if _are_scores(rows) else Reached("garbage")
        if not self.asked.done():
            return Reached("timeout")
        asked = self.asked.result()
        return Reached("fine", asked) if _is_conversation(asked) else Reached("garbage")

    async def _ask(self, conversation: Sequence[Message]) -> str | None:
        async with self.lock:  # one question at a time
            if not self.turn_left():
                return None
            self.reply = asyncio.get_running_loop().create_future()
            self.asked.set_result(conversation)
            return await self.reply


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End what still runs in a loop, and the loop; what does not end within a second is left."""
    try:
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=_GRACE / 2))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except BaseException:  # what ends badly has ended
        pass
    finally:
        loop.close()


def _draw_from(states: tuple) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])


def _text(messages: Sequence[Message]) -> str:
    """Messages as text. One alone beside the system's needs no name."""
    named = sum(role != "system" for role, _ in messages) > 1
    return "\n".join((_LABELS[role] if named else "") + text for role, text in messages)


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and all(isinstance(m, tuple) and len(m) == 2 and m[0] in _LABELS and isinstance(m[1], str) for m in value)
        and any(is_text(text) for _, text in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_scores(value: Any) -> bool:
    def sound(row: Any) -> bool:
        return isinstance(row, dict) and SCORE in row and all(map(_is_number, row.values()))

    return isinstance(value, Sequence) and len(value) > 0 and all(map(sound, value))
