"""What is shown and kept of a measurement: intervals, tables, charts, the machine, files that appear whole."""

from __future__ import annotations

import json
import subprocess
import textwrap
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from . import machine as this
from .folders import atomic_file
from .journal import encoded, read_jsonl

__all__ = [
    "bar_chart",
    "bootstrap",
    "cost_table",
    "curve",
    "difference_table",
    "machine",
    "metrics_of",
    "read_jsonl",
    "read_run",
    "study_chart",
    "study_tables",
    "table",
    "write_json",
]

# What a metric is called and its colour (Okabe and Ito's palette, told apart by colour-blind readers), in this order.
METRICS = {
    "f1": ("F1", "#0072B2"),
    "em": ("EM", "#56B4E9"),
    "official_f1": ("official F1", "#E69F00"),
    "squad_f1": ("SQuAD F1", "#009E73"),
    "squad_em": ("SQuAD EM", "#CC79A7"),
    "mem1_f1": ("MEM1's F1", "#882255"),
    "judge": ("judge", "#000000"),
    "rubrics": ("rubrics passed", "#F0E442"),
    "intrusion": ("intrusions (fewer is better)", "#D55E00"),
}
# What a task is called.
TASKS = {
    "stream": "stream (generated)",
    "locomo": "LoCoMo",
    "longmemeval": "LongMemEval",
    "search": "multi-objective search",
    "clbench": "CL-bench",
    "squad": "SQuAD passages",
}
# Training phases: name and shade behind the curves.
PHASES = {
    "warm": ("warm start", "#DDEBF5"),
    "rl": ("RL", "#FBE9D0"),
    "sft": ("control: supervised instead of RL", "#E9E9E9"),
}
_STYLE = {
    "figure.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "legend.frameon": False,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.8,
    "text.parse_math": False,  # names are shown as they are
}


def bootstrap(
    values: Sequence[float], clusters: Sequence[Hashable], n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high): the mean of `values` with its 95 % percentile interval over `n` resamples of whole clusters.

    clusters[i] names the cluster, such as the episode, of values[i]: questions of one episode are not independent, so
    episodes are drawn, with all their questions. The same arguments give the same interval. A single cluster cannot
    show any spread: its interval is its mean twice. Raises ValueError for no values, unequal lengths, or a value
    that is not finite.
    """
    if len(values) != len(clusters) or not len(values):
        raise ValueError(f"bootstrap: {len(values)} values and {len(clusters)} clusters, expected as many of both, not 0")
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError(f"bootstrap: value {int(np.argmin(np.isfinite(data)))} is not finite")
    index: dict[Hashable, int] = {}
    member = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    sums, sizes = np.bincount(member, data), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(index), size=(n, len(index)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(data.mean()), float(low), float(high)


def table(title: str, methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """Methods by metrics, each mean with its interval, from the "methods" of results.json; for `Console.print`.

    "judged" is how many of the n answers have a judge's verdict, where one was asked.
    """
    grid = _plain(title)
    grid.add_column("method", no_wrap=True)
    metrics = metrics_of(methods)
    counts = ["n"] + ["judged"] * any("judged" in found for found in methods.values())
    for heading in (*(METRICS[key][0] for key in metrics), *counts):
        grid.add_column(heading, justify="right")
    for name, found in methods.items():
        cells = _stacked([_cell(found, key) for key in metrics], 3)
        grid.add_row(name, *cells, *(str(found.get(key, "")) for key in counts))
    return grid


def difference_table(differences: Mapping[str, Mapping[str, Any]], method: str) -> Table | None:
    """What `method` scores above each other method, from the "differences" of results.json; None where it has none."""
    shown = {metric: {} for metric in differences}
    for metric, found in differences.items():
        for pair, cell in found.items():
            a, b = pair.split(" - ")
            if method in (a, b):
                sign = 1 if a == method else -1
                low, high = (round(v, 2) + 0.0 for v in sorted((sign * cell["low"], sign * cell["high"])))  # no -0.00
                shown[metric][b if a == method else a] = f"{round(sign * cell['mean'], 2) + 0.0:+.2f} [{low:.2f}, {high:.2f}]"
    others = list(dict.fromkeys(other for cells in shown.values() for other in cells))
    if not others:
        return None
    grid = _plain(f"{method} above each other method, on the same questions")
    grid.add_column("over", no_wrap=True)
    for metric in shown:
        grid.add_column(METRICS[metric][0], justify="right")
    for other in reversed(others):
        grid.add_row(other, *_stacked([cells.get(other, "") for cells in shown.values()], 2))
    return grid


def cost_table(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each method kept and computed, from the "methods" of results.json; TFLOP by the formula of tmem.compute."""
    computed = ["TFLOP"] * any("flops" in m for m in methods.values())
    title = "what it takes: kept per episode (bytes), prompt per question, the longest prompt, all together (tokens)"
    grid = _plain(title, padding=0)
    for column in ("method", "kept", "prompt", "longest", "read", "generated", "learned", *computed, "seconds"):
        grid.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for name, m in methods.items():
        counts = (m[k] for k in ("state_bytes", *(f"{k}_tokens" for k in ("prompt", "peak", "read", "generated", "learned"))))
        work = [f"{m['flops'] / 1e12:.3g}" if "flops" in m else "" for _ in computed]
        grid.add_row(name, *map(_short, counts), *work, f"{m['seconds']:.1f}")
    return grid


def _plain(title: str, padding: int = 1) -> Table:
    return Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, padding, 0, 0))


def _stacked(cells: Sequence[str], beside: int) -> list[str]:
    """Where more than `beside` cells would not fit into 80 columns, each with its interval on a line below the mean."""
    return [cell.replace(" [", "\n[") for cell in cells] if len(cells) > beside else list(cells)


def _short(count: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def study_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """What `tmem study` prints: scores of the phases, gains, and the dissection; 80 columns."""

    def cell(found: Mapping[str, Any] | None) -> str:
        if found is None:
            return ""
        bounds = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
        return f"{found['mean']:.2f}{bounds}"

    def grid(title: str, first: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
        made = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in (first, *columns):
            made.add_column(column, no_wrap=True)
        for name, cells in rows.items():
            made.add_row(name, *cells)
        return made

    n = summary["seeds"]
    shown = {"f1": "F1", "intrusion": "intrusions", "recall": "facts"}
    yield grid(
        f"held-out scores, {n} seeds: mean and 95 % t-interval over seeds", "", list(shown.values()),
        {
            f"{phase} {mode}": [cell(found[k]["seeds"]) for k in shown]
            for phase, modes in summary["scores"].items() for mode, found in modes.items()
        },
    )  # fmt: skip
    yield grid(
        "differences of F1, paired by episode", "", ["t-interval over seeds", "bootstrap over episodes"],
        {
            f"{pair} {mode}": [cell(found["seeds"]), cell(found["episodes"])]
            for pair, modes in summary["differences"].items() for mode, found in modes.items()
        },
    )  # fmt: skip
    for difficulty, found in enumerate(summary["dissection"], 1):
        conditions = list(next(iter(found["crossing"].values())))
        yield grid(
            f"difficulty {difficulty}, F1 (greedy) of who answers, by whose pairs were learned", "pairs of",
            [f"{answerer} answers" for answerer in found["crossing"]],
            {c: [cell(found["crossing"][a][c]["f1"]) for a in found["crossing"]] for c in conditions},
        )  # fmt: skip
        yield grid(
            f"difficulty {difficulty}: own pairs learned, own answers; writing", "", list(found["crossing"]),
            {
                **{k: [cell(found["crossing"][a][a].get(k)) for a in found["crossing"]]
                   for k in ("known", "abstained", "intrusion", "new", "stale", "mixed")},
                **{f"written: {k}": [cell(found["writing"][w][k]) for w in found["writing"]]
                   for k in ("facts", "person", "attribute", "precise", "pairs")},
            },
        )  # fmt: skip
        yield grid(
            f"difficulty {difficulty}: general ability, neutral text (nats per token) and plain questions",
            "", list(found["ability"]),
            {
                name: [cell(found["ability"][m].get(k)) for m in found["ability"]]
                for k, name in (("nll", "text"), ("nll_with_memory", "text, with Δ"), ("plain", "questions"),
                                ("plain_with_memory", "questions, with Δ"))
            },
        )  # fmt: skip
        if "writers" in found:  # a study of before had no such difference
            first, *_, last = found["writing"]
            yield grid(
                f"difficulty {difficulty}: F1 with {last}'s pairs less F1 with {first}'s, paired by episode", "who answers",
                ["t-interval over seeds", "bootstrap over episodes"],
                {a: [cell(gap["seeds"]), cell(gap["episodes"])] for a, gap in found["writers"].items()},
            )  # fmt: skip
        for name, matrix in found["recall"].items():
            if len(matrix) > 1:
                yield grid(
                    f"difficulty {difficulty}: {name}'s own pairs in other words, by the write they are of", "asked after",
                    [f"write {i + 1}" for i in range(len(matrix))],
                    {f"write {j + 1}": ["" if v is None else f"{v:.2f}" for v in row] for j, row in enumerate(matrix)},
                )  # fmt: skip


def _cell(found: Mapping[str, Any], key: str) -> str:
    if key not in found:
        return ""
    low, high = found[f"{key}_ci"]
    return f"{found[key]:.2f} [{low:.2f}, {high:.2f}]"


def metrics_of(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The metrics that any method has, in the order of METRICS; none where answers wait for a judge.

    Raises ValueError when there is no method.
    """
    if not methods:
        raise ValueError("report: no methods to show, expected at least one")
    return [key for key in METRICS if any(key in found for found in methods.values())]


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
        axes.set_title(_wrapped(title, picture), pad=26)
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
        upper.set_title(_wrapped(title, picture), pad=20)


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


@contextmanager
def figure(path: str | Path, size: tuple[float, float]) -> Iterator[Any]:
    """A matplotlib figure of `size` inches in the project's style, saved to `path`, a .png or .svg, when the block ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Figure without pyplot draws with Agg and leaves nothing global behind.
    with rc_context(_STYLE), atomic_file(path) as work, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name's; the tables beside show it
        made = Figure(figsize=size, layout="constrained")
        yield made
        made.savefig(work, format=Path(path).suffix[1:])


def _wrapped(title: str, figure: Any) -> str:
    """The title broken into three lines at most that fit above the axes, at about 11 characters an inch."""
    return "\n".join(textwrap.wrap(title, int(11 * (figure.get_figwidth() - 0.6)), max_lines=3, placeholder=" …"))


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, GPUs, versions (read from metadata), and the commit if in a checkout.

    The commit ends in "-dirty" when tracked files differ from it; an installed package has none.
    """
    found = {**this.machine(), **this.versions()}
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            found["commit"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            found["commit"] = None
    return found


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON; the file appears whole or not at all. ValueError, saying where, for NaN or infinity."""
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: JSON has no NaN or infinity, got one at {_not_finite(value)}; nothing written") from error
    with atomic_file(path) as work:
        work.write_bytes(encoded(text + "\n"))


def _not_finite(value: Any, where: str = "the top") -> str | None:
    """Where in `value` the first NaN or infinity is, like "methods.tmem.f1"."""
    if isinstance(value, float):
        return None if np.isfinite(value) else where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    prefix = "" if where == "the top" else f"{where}."
    return next((found for key, item in items if (found := _not_finite(item, f"{prefix}{key}"))), None)


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
