"""The record of a training run: a line for each step in metrics.jsonl, with its times in timings.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.journal import read_jsonl

# Training phases: name and shade behind the curves.
PHASES = {
    "warm": ("warm start", "#DDEBF5"),
    "rl": ("RL", "#FBE9D0"),
    "sft": ("control: supervised instead of RL", "#E9E9E9"),
}

# The shapes of a training run's lines.
TIMING = {"phase": str, "step": int, "trained": float, str: float}

STEP = {"phase": set(PHASES), "step": int, str: (float, None)}

HELD_OUT = {"phase": {f"eval_{p}" for p in ("base", *PHASES)}, "step": int, "mode": {"greedy", "sampled"}, str: (float, None)}


def _measured(row: Mapping[str, Any]) -> dict:
    return HELD_OUT if str(row.get("phase")).startswith("eval_") else STEP


def read_run(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a training run: metrics.jsonl with timings.jsonl beside it. "seconds" counts training from its start."""
    folder = Path(folder)
    metrics, timings = read_jsonl(folder / "metrics.jsonl", _measured), read_jsonl(folder / "timings.jsonl", TIMING)
    return [{**timing, **row, "seconds": timing["trained"]} for row, timing in zip(metrics, timings)]
