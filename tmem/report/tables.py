"""Tables for a terminal: scores, differences and costs of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ..tasks.names import METRICS


def table(title: str, methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """Methods by metrics, each mean with its interval, from the "methods" of results.json; for `Console.print`.

    "judged" is how many of the n answers have a judge's verdict, where one was asked.
    """
    grid = plain(title)
    grid.add_column("method", no_wrap=True)
    metrics = metrics_of(methods)
    counts = ["n"] + ["judged"] * any("judged" in found for found in methods.values())
    for heading in (*(METRICS[key][0] for key in metrics), *counts):
        grid.add_column(heading, justify="right")
    for name, found in methods.items():
        cells = _stacked([_cell(found, key) for key in metrics], 3)
        grid.add_row(name, *cells, *(str(found.get(key, "")) for key in counts))
    return grid


def answerable_table(methods: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Methods by metrics over the questions that the text answers, and how often either kind is abstained from; None where the
    text answers all of them."""
    shown = {name: found["answerable"] for name, found in methods.items() if "answerable" in found}
    if not shown:
        return None
    grid = plain("the questions that the text answers alone; abstained: of these, and of the others (where it is right)")
    grid.add_column("method", no_wrap=True)
    metrics = metrics_of(shown)
    for heading in (*(METRICS[key][0] for key in metrics), "n", "abstained", "of others"):
        grid.add_column(heading, justify="right")
    for name, found in shown.items():
        abstained = methods[name].get("abstained", {})
        shares = (f"{abstained[k]:.0%}" if k in abstained else "" for k in ("answerable", "unanswerable"))
        cells = _stacked([_cell(found, key) for key in metrics], 2)
        grid.add_row(name, *cells, str(found["n"]), *shares)
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
    grid = plain(f"{method} above each other method, on the same questions")
    grid.add_column("over", no_wrap=True)
    for metric in shown:
        grid.add_column(METRICS[metric][0], justify="right")
    for other in reversed(others):
        grid.add_row(other, *_stacked([cells.get(other, "") for cells in shown.values()], 2))
    return grid


def cost_table(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each method kept and computed, from the "methods" of results.json; TFLOP by the formula of evaluation.compute."""
    computed = ["TFLOP"] * any("flops" in m for m in methods.values())
    title = "what it takes: kept per episode (bytes), prompt per question, the longest prompt, all together (tokens)"
    grid = plain(title, padding=0)
    for column in ("method", "kept", "prompt", "longest", "read", "generated", "learned", *computed, "seconds"):
        grid.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for name, m in methods.items():
        counts = (m[k] for k in ("state_bytes", *(f"{k}_tokens" for k in ("prompt", "peak", "read", "generated", "learned"))))
        work = [f"{m['flops'] / 1e12:.3g}" if "flops" in m else "" for _ in computed]
        grid.add_row(name, *map(_short, counts), *work, f"{m['seconds']:.1f}")
    return grid


def plain(title: str, padding: int = 1) -> Table:
    """A table without lines but under its head."""
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
