"""Tables for a terminal: scores, differences and costs of methods, and what a study found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ..tasks.names import METRICS


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
    """What each method kept and computed, from the "methods" of results.json; TFLOP by the formula of evaluation.compute."""
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
