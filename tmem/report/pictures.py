"""The pictures of `tmem report` for evaluations: one panel a run, one colour, marker and line a method, wherever it stands."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..evaluation.runs import SCALE
from ..tasks.names import METRICS
from .figure import figure

# Colour and marker of a line. Methods that share a colour do not meet in one task, or differ by marker.
STYLES = {
    "tmem": ("#0072B2", "o"), "tmem+retrieval": ("#56B4E9", "s"), "pairs": ("#009E73", "D"), "retrieval": ("#E69F00", "^"),
    "dense": ("#B8860B", "v"), "full": ("#D55E00", "P"), "summary": ("#CC79A7", "X"), "notes": ("#882255", "p"),
    "mem1": ("#882255", "p"), "none": ("#999999", "s"), "oracle": ("#222222", "*"), "constant": ("#777777", "h"),
    "held": (METRICS["f1"][1], "o"), "leaked": (METRICS["intrusion"][1], "s"),
}  # fmt: skip
BOLD = ("tmem", "held")  # lines that stand out, alone in showing intervals
ACROSS = 3  # panels side by side at most
LEAST = 6  # different values up to which each has a place of its own
BINS = 5


@dataclass(frozen=True)
class Line:
    """What is drawn under one name. low, high: 95 % intervals of y, drawn as bars on single points and as a
    band behind lines of BOLD."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def places(values: Sequence[float]) -> tuple[list[str], list[int]]:
    """(names of bins, the bin of each value): every value for itself if there are few, else bins of about equally many."""
    different = sorted(set(values))
    if len(different) <= LEAST:
        return [f"{v:g}" for v in different], [different.index(v) for v in values]
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)))
    bins = bins_of(values, cuts)
    inside = [[v for v, b in zip(values, bins) if b == i] for i in range(len(cuts) - 1)]
    order = [i for i, some in enumerate(inside) if some]
    return [f"{min(inside[i]):g} to {max(inside[i]):g}" for i in order], [order.index(b) for b in bins]


def bins_of(values: Sequence[float], cuts: Sequence[float]) -> list[int]:
    """The bin of each value: [cuts[i], cuts[i + 1]), the last one closed."""
    return np.clip(np.searchsorted(cuts, values, side="right") - 1, 0, len(cuts) - 2).tolist()


def drawn(
    panels: Mapping[str, Sequence[Line]], x: str, y: str, *, ticks: Sequence[str] = (), scale: str = "linear",
    top: float | None = None,
) -> str:  # fmt: skip
    """The address of an SVG inside a page: a panel of lines for each key of `panels`, on the same axes.

    ticks: names of the places 0, 1, ... on the x axis. scale: of x, "linear", "log" (with a place for 0 where there is one) or
    "doubling". top: of the y axis.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "chart.svg"
        draw(file, panels, x, y, ticks=ticks, scale=scale, top=top)
        return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()


def draw(file: Path, panels: Mapping[str, Sequence[Line]], x: str, y: str, *, ticks, scale, top) -> None:
    """As `drawn`, to a .svg or .png file."""
    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines))
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    legend = 0.22 * math.ceil(len(names) / (4 * across))
    values = [v for lines in panels.values() for line in lines for v in line.x]
    with figure(file, (1.2 + 4.2 * across, 0.5 + 2.9 * down + legend)) as picture:
        grid = picture.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        handles: dict[str, Any] = {}
        for axes, (title, lines) in zip(grid.flat, panels.items()):
            if len(panels) > 1:
                axes.set_title(title, fontsize=9, pad=6)
            for line in lines:
                handles.setdefault(line.name, _line(axes, line))
            _axis(axes, values, ticks, scale)
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.grid(axis="y")
            axes.tick_params(labelsize=8)
        first = grid.flat[0]
        first.set_ylim(bottom=0, top=top)
        for axes in grid.flat[: len(panels)]:
            axes.set_xlabel(x, fontsize=9)
        for axes in grid[:, 0]:
            axes.set_ylabel(y, fontsize=9)
        picture.legend(
            [handles[n] for n in names], [f"{n} (scale)" if n in SCALE else n for n in names], loc="outside lower center",
            ncols=min(len(names), 4 * across), fontsize=8, handlelength=2.6, columnspacing=1.2,
        )  # fmt: skip


def _line(axes: Any, line: Line) -> Any:
    colour, marker = STYLES.get(line.name, ("#333333", "o"))
    dashes = ":" if line.name in SCALE else "-"
    bold = 2.2 if line.name in BOLD else 1.2
    style = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": bold, "markersize": 5, "clip_on": False}
    if len(line.x) == 1 and line.low:
        spread = [[max(0.0, line.y[0] - line.low[0])], [max(0.0, line.high[0] - line.y[0])]]
        return axes.errorbar(line.x, line.y, spread, capsize=2, elinewidth=1, alpha=0.9, **style | {"linestyle": ""})
    if line.low and line.name in BOLD:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    return axes.plot(line.x, line.y, **style)[0]


def _axis(axes: Any, values: Sequence[float], ticks: Sequence[str], scale: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_minor_locator(NullLocator())
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axes.set_xlim(-0.3, len(ticks) - 0.7)
    elif scale == "doubling":
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(values)), [f"{v:g}" for v in sorted(set(values))])
        axes.xaxis.set_minor_locator(NullLocator())
    elif scale == "log":
        above = [v for v in values if v > 0] or [1.0]
        least = 10 ** math.floor(math.log10(min(above)))
        decades = math.log10(max(above) / least)
        if min(values) <= 0:
            axes.set_xscale("symlog", linthresh=least, linscale=0.3)
            at = [0, *(least * 10**i for i in range(math.ceil(decades) + 1))]
            axes.set_xticks(at)
            axes.set_xlim(-0.4 * least, max(above) * 3)
        else:
            axes.set_xscale("log")
            axes.set_xlim(min(above) / 1.6, max(above) * 1.6)
            axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades > 4 else (1, 3) if decades > 2 else (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _: int = 0) -> str:
    """20, 500, 2k, 5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
