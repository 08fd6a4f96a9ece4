"""A tool as an agent calls it: it may hang, fail or return anything, and the episode goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

Result = TypeVar("Result")

FAILURES = ("timeout", "error", "garbage")


class Called(NamedTuple):
    """What a call returned, None where it failed, and how it went: "fine" or one of FAILURES."""

    result: Any
    how: str


def is_text(value: Any) -> bool:
    """Whether a value is text that has a character."""
    return isinstance(value, str) and bool(value.strip())


class Tool(Generic[Result]):
    """A function of a text, called under a time limit.

        function  the tool; it is called in a thread of its own
        seconds   it may take; a call that takes longer is left behind, as Python ends no thread
        sound     whether a value is one that the tool may return; any other is garbage

    Rollouts of a step wait for one call after another. A call that ends at its limit makes a run depend on the clock.
    """

    def __init__(self, function: Callable[[str], Result], seconds: float = 30.0, sound: Callable[[Any], bool] = is_text):
        self.function, self.seconds, self.sound = function, seconds, sound

    def __call__(self, argument: str) -> Called:
        """Call it. Raises nothing."""
        found: list[Called] = []

        def call() -> None:
            try:
                result = self.function(argument)
                found.append(Called(result, "fine") if self.sound(result) else Called(None, "garbage"))
            except Exception:  # whatever a tool raises is the tool's
                found.append(Called(None, "error"))

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(self.seconds)
        return found[0] if found else Called(None, "timeout")
