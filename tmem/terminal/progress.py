"""Word of long work for whoever sees no live bars: plain lines, now and then."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.journal import append_text
from .plain import printable

if TYPE_CHECKING:
    from rich.console import Console

FIRST, EVERY = 5.0, 30.0  # seconds until the first line of a phase, and between lines
LONG = 50

logger = logging.getLogger("tmem")


def tell(sentence: str) -> None:
    """Into the log `tmem`, level INFO; where no logging is set up, on stderr, unless that log's level is above INFO."""
    if logger.hasHandlers():
        logger.info(sentence)
    elif logger.level <= logging.INFO:
        print(sentence, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass
class _Phase:
    began: float
    first: int  # done when it began
    due: float  # when it is told of next
    told: int | None = None  # done when it was told of
    done: int = 0
    total: int | None = None
    note: str = ""


class Lines:
    """Tells how far each phase is: `write: 12 of 999, 3 pairs, 10 s gone, 14 min left`.

    A phase is first told of after FIRST seconds, or as soon as it begins with LONG and more to do, then every EVERY, and at
    its end if it was told of before. If `each`, whenever more of it is done as well.
    """

    def __init__(
        self, say: Callable[[str], None] = tell, clock: Callable[[], float] = time.monotonic, *, each: bool = False
    ):  # fmt: skip
        self.say, self.clock, self.each = say, clock, each
        self._phases: dict[str, _Phase] = {}
        self._last: str | None = None
        self._lock = threading.Lock()

    def __call__(self, phase: str, done: int, total: int | None, note: str = "") -> None:
        with self._lock:
            now = self.clock()
            begins = now if total is not None and total - done >= LONG else now + FIRST
            p = self._phases.setdefault(phase, _Phase(now, done, begins))
            p.done, p.total, p.note, self._last = done, total, note, phase
            line = self._line(phase, now)
        if line:
            self.say(line)

    def again(self) -> None:
        """Tell of the latest phase if a line is due."""
        with self._lock:
            line = None if self._last is None else self._line(self._last, self.clock())
        if line:
            self.say(line)

    def _line(self, phase: str, now: float) -> str | None:
        p = self._phases[phase]
        ended = p.total is not None and p.done >= p.total
        stepped = self.each and p.done > (p.first if p.told is None else p.told)
        if not stepped and (p.told == p.done if ended else now < p.due):
            return None
        if not stepped and ended and p.told is None:
            return None
        p.due, p.told = now + EVERY, p.done
        gone, made = now - p.began, p.done - p.first
        parts = [f"{phase}: {p.done}" + ("" if p.total is None else f" of {p.total}"), p.note, f"{duration(gone)} gone"]
        if p.total is not None and made > 0 and not ended:
            parts.append(f"{duration(gone / made * (p.total - p.done))} left")
        return ", ".join(part for part in parts if part)


class Log:
    """Adds lines, each with the time, to a file; one that cannot be written is given up with a word."""

    def __init__(self, path: Path):
        self.path, self.lost = path, False

    def __call__(self, line: str) -> None:
        if self.lost:
            return
        try:
            now, said = time.strftime("%Y-%m-%d %H:%M:%S"), printable(" ".join(line.split()))
            append_text(self.path, f"{now} {said}\n", sync=False)
        except OSError as error:
            self.lost = True
            logger.warning(f"{self.path} cannot be written ({error.strerror}); the work goes on without it")


def printed(console: Console) -> Callable[[str], None]:
    """Says a line on a console."""
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def lines_for(*say: Callable[[str], None], each: bool = False) -> Iterator[Lines]:
    """Lines for a log, or a console that is a pipe or a file: they come when they are due, however long the work itself says
    nothing; if `each`, for every step as well."""
    lines = Lines(lambda line: [one(line) for one in say], each=each)
    left = threading.Event()

    def tick() -> None:
        while not left.wait(1.0):
            lines.again()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        left.set()
        thread.join()
