"""What a person sees of a benchmark: progress, one table per bench, what was aimed at, and two pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..files.folders import locked
from ..files.objects import write_json
from ..study import soak
from ..terminal.plain import Terminal
from ..terminal.progress import lines_for, printed
from . import STUDIES, episodes, plots, promises, run, run_study, serving, studies, targets, train
from .measure import absences

TITLES = {
    "lora": "one linear layer K→N, adapters x tokens, forward and backward: ms, ratio to base (grouped: torch._grouped_mm)",
    "experts": "a mixture of experts, an adapter for each and every slot, forward and backward: ms, ratio to base",
    "overhead": "a chain of tiny layers, forward and backward, and its ops without layers and autograd: ms, ratio to base",
    "model": "8 ragged episodes through the whole decoder, forward and backward: ms, ratio to base",
    "update": "one online update, 8 tokens of each pair labelled: ms, ratio to the plain way",
    "branches": "attention of texts that share the beginning of a row, forward and backward: ms, ratio to tmem",
    "step": "one AdamW step of all adapters, tmem and torch's fused: ms, ratio to one flat tensor, % of copy bandwidth",
    "fused": "the gradients of all layers and one step by them, in one op a layer and apart: ms, ratio to apart",
    "idle": "the same step among idle rows: ms, ratio",
    "decode": "one token for every episode, each with its own adapter: ms, ratio to base",
    "attend": "its attention in one layer, by the columns that rows have filled: ms, ratio to tmem",
    "token": "the rest of its layers beside the products, by one op each and apart: ms, ratio to apart",
    "forward": "adapters of their own A and B on one layer, forward alone: ms, ratio to the layer's own product",
}

_SHORT = {"float32": "fp32", "float32 medium": "fp32 medium", "bfloat16": "bf16"}


def bench(names: tuple[str, ...], json: Path | None, *, quick: bool, threads: int | None, **options) -> None:
    """Run under a progress bar, print the tables, write `json` and its pictures if given. `options`: of the study named."""
    if set(names) & set(STUDIES):
        if len(names) > 1:
            raise ValueError(f"bench: {', '.join(STUDIES)} run by themselves, got {', '.join(names)}; ask for one.")
        _study(names[0], json, quick=quick, threads=threads, **options)
        return
    console = Terminal()
    with _progress(console) as watch:
        found = run(names, quick=quick, threads=threads, watch=watch)
    for name in TITLES:
        rows = [r for r in found["rows"] if r["bench"] == name and not r["sweep"]]
        if rows:
            console.print(_table(name, rows))
            for why in absences(rows):
                console.print(f"left out: {why}", highlight=False)
    _print_aims(console, targets.reached(found["rows"]), quick)
    _print_limits(console, found["ceilings"])
    settings = found["settings"]
    console.print(
        f"{_device(found)}, {settings['threads']} threads, medians of {settings['rounds']} rounds in turns"
        + (", tiny shapes: not a measurement" if quick else "")
    )
    if json:
        write_json(json, found)
        console.print(f"written to {json}" + "".join(f", {path}" for path in plots.draw(found, json)))


def _study(name: str, json: Path | None, *, quick: bool, threads: int | None, **options) -> None:
    console = Terminal()
    partial = json and json.with_name(f".{json.name}.parts")
    held = locked(json.parent, f".{json.name}.lock") if json else nullcontext()
    with held, _progress(console) as watch:
        found = run_study(name, quick=quick, threads=threads, watch=watch, partial=partial, **options)
    own = {"train": train, "eval": episodes, "serve": serving, "soak": soak, "promises": promises}.get(name)  # show themselves
    for table in own.tables(found) if own else studies.tables(name, found):
        console.print(table)
    _print_aims(console, found.get("aims", []), quick)
    if "ceilings" in found:
        _print_limits(console, found["ceilings"])
    console.print(f"{_device(found)}, {found['settings']['threads']} threads" + (", tiny: not a measurement" if quick else ""))
    if json:
        write_json(json, found)
        partial.unlink(missing_ok=True)
        drawn = own.draw(found, json) if own else studies.draw(name, found, json)
        console.print(f"written to {json}" + "".join(f", {path}" for path in drawn))


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description:44}"), BarColumn(bar_width=24), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    if not console.is_terminal:
        with lines_for(printed(console)) as tell:
            yield lambda part, done, total: tell("bench", done, total, part)
        return
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda part, done, total: progress.update(bar, description=part, completed=done, total=total)


def _print_aims(console: Console, aims: list[dict], quick: bool) -> None:
    if aims and not quick:
        console.print(_aims(aims))


def _print_limits(console: Console, ceilings: dict[str, float]) -> None:
    limits = (f"{name[: name.rindex(' ')]} {value:.0f}{name[name.rindex(' ') :]}" for name, value in ceilings.items())
    console.print(f"this machine's limits in this run: {', '.join(limits)}")


def _aims(aims: list[dict]) -> Table:
    table = Table(title="\nwhat was aimed at", title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("work", "aim", "reached"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for aim in aims:
        reached = Text(f"{aim['reached']:.2f}x", "green" if aim["met"] else "red")
        table.add_row(aim["work"], aim["aim"], reached)
    return table


def _device(found: dict) -> str:
    box = found["machine"]
    return box["gpus"][0]["name"] if found["rows"][0].get("device") == "cuda" else box["cpu"]


def _short(ms: float) -> str:
    return f"{ms:.3f}" if ms < 0.1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _table(name: str, rows: list[dict]) -> Table:
    rows = [r for r in rows if "absent" not in r]
    names = list(dict.fromkeys(r["provider"] for r in rows))
    table = Table(title="\n" + TITLES[name], title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("case", overflow="fold")
    table.add_column("type")
    for provider in names:
        table.add_column(provider, justify="right", overflow="fold")
    by_case: dict[tuple, dict] = {}
    for r in rows:
        by_case.setdefault((r["case"], r["dtype"]), {})[r["provider"]] = r
    for (case, dtype), found in by_case.items():
        cells = [f"{_short(found[p]['ms'])} {found[p]['ratio']:.2f}x" if p in found else "" for p in names]
        if name == "step":
            cells = [f"{cell} {found[p]['of_copy']:.0%}" for cell, p in zip(cells, names)]
        table.add_row(case, _SHORT[dtype], *cells)
    return table
