"""Trackers: the fields of metrics.jsonl and sample episodes, sent to TensorBoard, Weights & Biases or Trackio as they are made.

Each line of metrics.jsonl is one step of the tracked run. OUT/track.json remembers the run and how many lines it has. So a
resumed run goes on in it, sends no step twice, and sends those that it lacks.
"""

from __future__ import annotations

import html
import importlib
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..files.objects import read_object, write_json

PROJECT = "tmem"
FILE = "track.json"
MOST = 20_000  # characters of a sample episode

Row = Mapping[str, Any]


class Tracker(Protocol):
    """One run of a tracking library. `send` returns when a kill no longer loses the step, as far as the library allows."""

    def send(self, numbers: dict[str, float], texts: dict[str, str], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in OUT/tensorboard."""

    def __init__(self, library: Any, out: Path, run: str, step: int, settings: dict):
        # Events from `step` on are of a process that was killed between them and track.json: TensorBoard leaves them out.
        self.writer = library.SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def send(self, numbers: dict[str, float], texts: dict[str, str], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        for name, text in texts.items():
            self.writer.add_text(name, text, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, with its files in OUT/wandb. Without a network: WANDB_MODE=offline."""

    def __init__(self, library: Any, out: Path, run: str, step: int, settings: dict):
        self.library = library
        self.run = library.init(
            project=PROJECT, name=out.name, id=run, resume="allow", dir=str(out), config=settings,
            settings=library.Settings(console="off"),
        )  # fmt: skip

    def send(self, numbers: dict[str, float], texts: dict[str, str], step: int) -> None:
        pages = {name: self.library.Html(f"<pre>{html.escape(text)}</pre>") for name, text in texts.items()}
        self.run.log({**numbers, **pages}, step=step, commit=True)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of Trackio, which keeps it on this machine, where `trackio show` finds it."""

    def __init__(self, library: Any, out: Path, run: str, step: int, settings: dict):
        self.library = library
        library.init(project=PROJECT, name=f"{out.name}-{run}", resume="allow", config=settings)

    def send(self, numbers: dict[str, float], texts: dict[str, str], step: int) -> None:
        pages = {name: self.library.Markdown(text) for name, text in texts.items()}
        self.library.log({**numbers, **pages}, step=step)

    def close(self) -> None:
        self.library.finish()


TRACKERS: dict[str, tuple[str, Callable[..., Tracker]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
    "trackio": ("trackio", Trackio),
}
"""By name: the module to import, and what uses it."""


def library(name: str) -> Any:
    """The module of a tracker. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(TRACKERS[name][0])
    except ImportError as error:
        raise ValueError(f"train: --track {name} needs {name}, which is not installed: pip install 'tmem[{name}]'.") from error


@contextmanager
def tracked(
    name: str, out: Path, settings: dict, warn: Callable[[str], None], lines: int | None = None
) -> Iterator[Callable[[Row], None]]:  # fmt: skip
    """A function that takes every line of metrics.jsonl in its order, those of before a resume first.

    lines: so many are left of before; those behind them were steps that others take the place of, which are sent as well.
    None: the steps that are taken again are the same.

    Training does not depend on it: what a tracker raises while training is under way is told to `warn` once, and a later resume
    sends what is missing. Raises ValueError where the tracker is not installed or cannot begin.
    """
    file, found = out / FILE, library(name)
    held = read_object(file) if file.exists() else {}
    mine = held.setdefault(name, {"run": uuid.uuid4().hex[:12], "lines": 0})
    mine["lines"] = mine["lines"] if lines is None else min(mine["lines"], lines)
    try:
        tracker = TRACKERS[name][1](found, out, mine["run"], mine["lines"], settings)
    except Exception as error:
        offline = "; without a network set WANDB_MODE=offline" if name == "wandb" else ""
        raise ValueError(f"train: --track {name} cannot begin ({_said(error)}){offline}.") from error
    seen, lost = 0, False

    def take(row: Row) -> None:
        nonlocal seen, lost
        seen += 1
        if lost or seen <= mine["lines"]:
            return
        try:
            tracker.send(numbers(row), texts(row, out), seen - 1)
            mine["lines"] = seen
            write_json(file, held)
        except Exception as error:
            lost = True
            warn(f"--track {name} failed ({_said(error)}); training goes on without it, and --resume sends what is missing")

    try:
        yield take
    finally:
        try:
            tracker.close()
        except Exception as error:
            warn(f"--track {name} could not end its run ({_said(error)})")


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers in a line of metrics.jsonl, by "phase/field", or "phase/mode/field" of an evaluation."""
    where = _where(row)
    fields = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in ("seconds", "trained")}
    return {f"{where}/{k}": v for k, v in fields.items() if math.isfinite(v) and not k.startswith("seconds_")}


def texts(row: Row, out: Path) -> dict[str, str]:
    """Of an evaluation the first episode, as Markdown."""
    phase, mode = row["phase"].removeprefix("eval_"), row.get("mode")
    file = out / "episodes" / f"{phase}-{mode}.md"
    if mode is None or not file.exists():
        return {}
    first, *_ = file.read_text(encoding="utf-8").split("\n\n# ", 1)
    return {f"{_where(row)}/episode": first[:MOST]}


def _where(row: Row) -> str:
    return "/".join([row["phase"], *([row["mode"]] if "mode" in row else [])])


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
