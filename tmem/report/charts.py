"""Charts of one run: scores of methods, a training, a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..rl.record import PHASES
from ..tasks.names import METRICS
from .figure import figure, wrapped
from .tables import metrics_of


def bar_chart(path: str | Path, methods: Mapping[str, Mapping[str, Any]], *, title: str) -> None:
    """A PNG of grouped bars, one group for each method and one bar for each metric, with 95 % intervals.

    methods: those of results.json, {name: {"f1", "f1_ci": [low, high], "em", ..., "n"}}; a metric that a method lacks has no
    bar. The title should say task, n and seed. Raises ValueError when there is no method, or none has a score.
    """
    metrics = metrics_of(methods)
    if not metrics:
        raise ValueError("report: no method has a score, so there is no chart; expected at least one metric")
    width = 0.8 / len(metrics)
    with figure(path, (max(6.4, 1.2 + 1.3 * len(methods)), 4.0)) as picture:
        axes = picture.add_subplot()
        axes.grid(axis="y")
        for i, key in enumerate(metrics):
            label, colour = METRICS[key]
            scored = [(at, found) for at, found in enumerate(methods.values()) if key in found]
            at = np.array([at for at, _ in scored]) + (i - (len(metrics) - 1) / 2) * width
            means = [found[key] for _, found in scored]
            bounds = [found[f"{key}_ci"] for _, found in scored]
            spread = [(m - low, high - m) for m, (low, high) in zip(means, bounds, strict=True)]
            axes.bar(
                at, means, 0.92 * width, color=colour, label=label, yerr=np.clip(np.transpose(spread), 0, None),
                error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#333333"},
            )  # fmt: skip
            for x, mean, (_, high) in zip(at, means, bounds, strict=True):
                axes.annotate(f"{mean:.2f}", (x, max(mean, high)), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xticks(range(len(methods)), methods)
        bounds = [found[f"{key}_ci"] for found in methods.values() for key in metrics if key in found]
        highest = max([1.0, *(high for _, high in bounds)])  # sums may exceed 1
        axes.set_ylim(0, 1.08 * highest)
        axes.set_yticks(np.linspace(0, highest, 6))
        axes.set_ylabel("score, mean and 95 % interval")
        axes.set_title(wrapped(title, picture), pad=26)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(metrics), borderaxespad=0.2)


def curve(path: str | Path, rows: Sequence[Mapping[str, Any]], *, title: str = "Training") -> None:
    """A PNG of a training run over its seconds: reward above, supervised loss below, the phases marked.

    rows: those of metrics.jsonl, {"phase", "step", "seconds", ...}. "reward" and "loss" are drawn where a row has them;
    rows of phase "eval_*" are evaluations on held-out episodes, drawn as points of their "f1" by "mode". RL's loss is a
    policy gradient's and says nothing by itself: left out. A chart of nothing says so.
    """
    train = [row for row in rows if row["phase"] in PHASES]
    evals = [row for row in rows if row["phase"].startswith("eval_") and "f1" in row]
    with figure(path, (8.0, 5.2)) as picture:
        upper, lower = picture.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _shade_phases((upper, lower), train)
        _trace(upper, [row for row in train if "reward" in row], "reward", METRICS["f1"][1], "reward in training")
        for mode, colour, marker, label in (
            ("greedy", METRICS["intrusion"][1], "o", "held-out F1, greedy"),
            ("sampled", METRICS["official_f1"][1], "^", "held-out F1, T=1"),
        ):
            points = [(row["seconds"], row["f1"]) for row in evals if row.get("mode") == mode]
            if points:
                upper.plot(*zip(*points, strict=True), marker, color=colour, label=label, clip_on=False, zorder=4)
        _trace(
            lower,
            [row for row in train if "loss" in row and row["phase"] != "rl"],
            "loss",
            "#333333",
            "supervised loss",
        )
        upper.set_ylim(0, 1)
        upper.set_ylabel("score (0 to 1)")
        lower.set_ylim(bottom=0)
        lower.set_ylabel("loss (nats per token)")
        lower.set_xlabel("seconds of training (evaluations not counted)")
        for axes in (upper, lower):
            axes.grid(axis="y")
            axes.margins(x=0.01)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="best")
            else:
                axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color="#666666")
        upper.set_title(wrapped(title, picture), pad=20)


def study_chart(path: str | Path, summary: Mapping[str, Any], runs: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """A PNG of a study: every seed's reward and pairs per write over RL's steps, and held-out F1 phase by phase.

    summary: study.json; runs: per seed the rows of metrics.jsonl. Bars are t-intervals over seeds; a single seed has none.
    """
    steps = [[row for row in rows if row["phase"] == "rl"] for rows in runs]
    with figure(path, (9.6, 3.8)) as picture:
        reward, pairs, held_out = picture.subplots(1, 3)
        for axes, key, label in ((reward, "reward", "reward in training"), (pairs, "pairs_per_write", "pairs per write")):
            for rows in steps:
                axes.plot([r["step"] for r in rows], [r[key] for r in rows], color=METRICS["f1"][1], alpha=0.35, linewidth=1)
            shared = [[r[key] for r in rows] for rows in zip(*steps)]
            axes.plot(range(len(shared)), [float(np.mean(v)) for v in shared], color=METRICS["f1"][1], linewidth=2.2)
            axes.set_xlabel("RL step")
            axes.set_title(label)
            axes.set_ylim(bottom=0)
        phases = list(summary["scores"])
        for shift, mode, colour, marker, label in (
            (-0.12, "greedy", METRICS["intrusion"][1], "o", "greedy"),
            (0.12, "sampled", METRICS["official_f1"][1], "^", "T=1"),
        ):
            found = [summary["scores"][phase][mode]["f1"]["seeds"] for phase in phases]
            at = np.arange(len(phases)) + shift
            for x, f in zip(at, found):
                held_out.plot([x] * len(f["values"]), f["values"], marker, color=colour, alpha=0.4, markersize=4)
            spread = [0.0 if f["low"] is None else f["mean"] - f["low"] for f in found]
            held_out.errorbar(
                at, [f["mean"] for f in found], spread, fmt=marker, color=colour, capsize=3, markersize=7, label=label
            )
        held_out.set_xticks(range(len(phases)), ["control" if p == "sft" else p.upper() if p == "rl" else p for p in phases])
        held_out.set_title("held-out F1")
        held_out.set_ylim(bottom=0)
        held_out.legend(loc="upper left")
        for axes in (reward, pairs, held_out):
            axes.grid(axis="y")
        legend = "thin or faint is one seed, bold the mean, bars its 95 % interval"
        picture.suptitle(f"{summary['seeds']} seeds: {legend}", fontsize=10)


def _shade_phases(panels: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """A band behind each phase, from the end of what came before to its own last row, with its name above."""
    start, whole = 0.0, max((row["seconds"] for row in rows), default=0.0)
    for phase in dict.fromkeys(row["phase"] for row in rows):
        end = max(row["seconds"] for row in rows if row["phase"] == phase)
        name, colour = PHASES[phase]
        if end - start < 0.25 * whole:  # of a narrow band the first word has to do, where it ends
            name = name.split(":")[0]
        narrow = end - start < 0.1 * whole
        for axes in panels:
            axes.axvspan(start, end, color=colour, linewidth=0, zorder=0)
        panels[0].annotate(
            name, (end if narrow else (start + end) / 2, 1), (0, 4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right" if narrow else "center", fontsize=9, color="#444444",
        )  # fmt: skip
        start = end


def _trace(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, colour: str, label: str) -> None:
    """Every measurement as a faint point, and their running mean over a tenth of the phase, phase by phase."""
    for phase in dict.fromkeys(row["phase"] for row in rows):
        at, values = np.array([(row["seconds"], row[key]) for row in rows if row["phase"] == phase], float).T
        axes.plot(at, values, ".", color=colour, alpha=0.35, markersize=4)
        half = len(values) // 20
        smooth = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
        axes.plot(at, smooth, color=colour, linewidth=1.8, label=label)
        label = None
