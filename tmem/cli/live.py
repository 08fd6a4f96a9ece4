"""What a person sees while long work runs: bars with the time left, or lines now and then; and how to stop it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..terminal.plain import Terminal
from ..terminal.progress import Log, lines_for, printed

LOG = "log.txt"  # in --out: the lines that a pipe would show, with the time

Tell = Callable[[str, int, int | None, str], None]  # phase, done, total, note

console = Terminal()

quiet = click.option("--quiet", is_flag=True, help="Show no progress, only warnings and the result; log.txt has it.")

# What a live view of training shows, by field of metrics.jsonl.
WATCHED = {
    "reward": "reward", "split_half": "its halves agree, r", "recall": "gold facts written",
    "pairs_per_write": "pairs per write", "grounded": "pairs found in the text",
    "copied": "questions copied with a guess", "dropped": "lines dropped", "held": "own pairs held", "norm": "‖ΔW‖", "kl": "KL",
    "entropy": "entropy, nats", "dead_groups": "dead groups", "dlogp": "|Δ log p|", "neutral_nll": "neutral text, nats",
}  # fmt: skip


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last `width` values as blocks between their own least and largest."""
    values = list(values)[-width:]
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[int(7.99 * (v - low) / (high - low)) if high > low else 3] for v in values)


class Steps:
    """RL's steps so far as a table that redraws itself: each measure at first, now, and its way there."""

    def __init__(self):
        self.rows: list[dict] = []

    def __rich__(self) -> Table | str:
        if not self.rows:
            return ""
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column, justify in (("", "left"), ("first", "right"), ("now", "right"), (f"{len(self.rows)} steps", "left")):
            grid.add_column(column, justify=justify)
        for key, name in WATCHED.items():
            values = [r[key] for r in self.rows if r.get(key) is not None]
            if values:
                grid.add_row(name, f"{values[0]:.3g}", f"{values[-1]:.3g}", sparkline(values))
        return grid


@contextmanager
def bars(out: Path, *under, each: bool = False, quiet: bool = False) -> Iterator[Tell]:
    """A bar for each phase, and below them `under`, which redraws itself. Without a terminal: lines, now and then, or if `each`
    for every step. If `quiet`: neither.

    The lines also go into out/log.txt.
    """
    log = Log(out / LOG)
    if quiet or not console.is_terminal:
        with lines_for(*([] if quiet else [printed(console)]), log, each=each) as tell:
            yield tell
        return
    progress = Progress(*_columns(), console=console)
    with lines_for(log, each=each) as lines, Live(Group(progress, *under), console=console, refresh_per_second=4):
        show = _bars(progress)

        def tell(phase: str, done: int, total: int | None, note: str) -> None:
            show(phase, done, total, note)
            lines(phase, done, total, note)

        yield tell


def _bars(progress: Progress) -> Tell:
    tasks: dict[str, int] = {}

    def tell(phase: str, done: int, total: int | None, note: str) -> None:
        if phase not in tasks:
            tasks[phase] = progress.add_task(phase, total=total, note=note)
        progress.update(tasks[phase], completed=done, total=total, note=note)

    return tell


def _columns():
    return (
        SpinnerColumn(), TextColumn("{task.description:18}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip


def warn(sentence: str) -> None:
    """A warning on the console, above the bars."""
    console.print(f"warning: {sentence}", style="yellow", highlight=False)


@contextmanager
def stop_on_ctrl_c() -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks the work to stop at its next safe point, the second interrupts at once.

    Yields the list of signals received so far.
    """
    asked: list[int] = []

    def handle(number, _):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("stopping after this step; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(asked: Sequence[int]) -> SystemExit:
    """Exit codes as of a shell: 130 after Ctrl-C, 143 after SIGTERM; another rank may have been asked."""
    return SystemExit(128 + (asked[0] if asked else signal.SIGINT))
