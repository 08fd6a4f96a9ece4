"""The lines that a training run writes: metrics.jsonl, timings.jsonl beside it, and segments.jsonl."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ..files.folders import atomic_file
from ..files.journal import append
from .world import World

COUNTED = {"metrics": "rows", "timings": "rows", "segments": "segments"}
"""Of every file, the number in the run's state that says how many of its lines a checkpoint holds. segments.jsonl has a line
for each RL step, with |Δ log p| of every action."""


class Log:
    """The files of one run in the folder `out`. Rank 0 writes them; the other ranks write nothing."""

    def __init__(self, out: Path, world: World):
        self.files = {name: out / f"{name}.jsonl" for name in COUNTED} if world.first else {}

    def cut(self, state: dict) -> None:
        """Drop the lines of steps that no checkpoint holds: they will be taken again."""
        for name, file in self.files.items():
            if file.exists():
                rows = file.read_bytes().splitlines(keepends=True)
                with atomic_file(file) as work:
                    work.write_bytes(b"".join(rows[: state[COUNTED[name]]]))

    def add(self, name: str, row: dict) -> None:
        """One more line of `NAME.jsonl`."""
        if name in self.files:
            append(self.files[name], [finite(row)], sync=False)

    def sync(self) -> None:
        """Until every line is on the disk."""
        for file in self.files.values():
            if file.exists():
                with file.open("ab") as lines:
                    os.fsync(lines.fileno())


def finite(value):
    """None for a number that JSON does not have, also inside of lists and dicts."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
