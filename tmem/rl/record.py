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


def phases_of(rl_steps: int, control_steps: int) -> list[str]:
    """The phases of a run, in their order. RL without steps is left out. So is the control, which takes as many seconds as RL,
    unless its own steps are given."""
    steps = {"rl": rl_steps, "sft": rl_steps or control_steps}
    return [phase for phase in ("base", *PHASES) if steps.get(phase, True)]


def after_warm(rl_steps: int, control_steps: int) -> str:
    """What RL and the control are, in a sentence; "" of a run without them."""
    control = f"{control_steps} supervised steps" if control_steps else "supervised training for the seconds that RL took"
    if rl_steps:
        return f"RL and the control both start from the warm start; the control is {control}."
    return f"The control starts from the warm start and is {control}." if control_steps else ""


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
