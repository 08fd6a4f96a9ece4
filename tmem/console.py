"""What a person sees while long work runs: progress with time left, then tables and where the files are."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import evaluate as evaluation
from . import report
from .report import write_json

console = Console()


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = (SpinnerColumn(), TextColumn("{task.description:18}"), BarColumn(bar_width=24), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, transient=False) as progress:
        yield progress


@contextmanager
def _stop_on_ctrl_c() -> Iterator[list[bool]]:
    """The first Ctrl-C asks the work to stop at its next safe point, the second interrupts at once."""
    asked: list[bool] = []

    def handle(*_):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        console.print("stopping after this step; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def train(preset: str, out: Path, *, model: str | None, resume: bool, **overrides) -> None:
    """Run the trainer under a progress bar; print the table of the four phases and write the summary and the curve."""
    from .rl import trainer as rl

    machine = report.machine()  # at the start: the commit that runs, not the one checked out when it ends
    trainer = rl.Trainer(preset, out, model=model, resume=resume, **overrides)
    bars: dict[str, int] = {}
    with _stop_on_ctrl_c() as asked, _bar() as progress:

        def phase(name: str, done: int, total: int, note: str) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total, note=note)
            progress.update(bars[name], completed=done, note=note)

        try:
            summary = trainer.run(rl.Progress(lambda row: None, phase), stop=lambda: bool(asked))
        except rl.Interrupted:
            console.print(f"stopped; go on with: tmem train --preset {preset} --out {out} --resume")
            raise SystemExit(130) from None
    summary["machine"] = machine
    write_json(out / "summary.json", summary)
    title = f"tmem train --preset {preset}, {summary['n_episodes']} held-out episodes"
    report.curve(out / "curve.png", report.read_jsonl(out / "metrics.jsonl"), title=title)
    _print_phases(summary)
    console.print(
        f"{summary['wall_seconds']:.0f} s. Files in {out}: summary.json, metrics.jsonl, curve.png, episodes/, "
        f"models warm/ and rl/ (tmem eval --model {out}/rl)"
    )


_PHASE_NAMES = {"base": "base", "warm": "warm start", "rl": "RL", "sft": "control"}


def _interval(cell: dict) -> str:
    return f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def _print_phases(summary: dict) -> None:
    """Fits 80 columns."""
    table = Table(
        title=f"{summary['n_episodes']} held-out episodes: mean and 95 % interval (bootstrap over episodes)",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for column in ("model", "decoding", "F1", "EM", "intrusions", "facts", "pairs"):
        table.add_column(column, no_wrap=True)
    for phase, name in _PHASE_NAMES.items():
        for mode, cells in summary["evaluations"].get(phase, {}).items():
            table.add_row(
                name if mode == "greedy" else "", {"greedy": "greedy", "sampled": "T=1"}[mode],
                _interval(cells["f1"]), f"{cells['em']['mean']:.2f}", _interval(cells["intrusion"]),
                f"{cells['recall']['mean']:.2f}", f"{cells['pairs_per_write']['mean']:.1f}",
            )
    console.print(table)
    console.print(
        "RL and control both start from the warm start; control is supervised training for the seconds that RL took. "
        "intrusions: answers that belong to somebody else. facts: share of the stream's facts that were written as they "
        "are. pairs: per write."
    )


def evaluate(task: str, methods: list[str], out: Path, **options) -> None:
    """Run an evaluation under a progress bar; print its table and write the chart."""
    start, machine = time.perf_counter(), report.machine()
    bars: dict[str, int] = {}
    with _bar() as progress:

        def watch(method: str, phase: str, done: int, total: int) -> None:
            for other, bar in bars.items():
                if other != method:
                    progress.update(bar, completed=1, total=1, note="")
            if method not in bars:
                bars[method] = progress.add_task(method, total=None, note="")
            progress.update(bars[method], completed=done, total=max(total, 1), note=phase)

        results = evaluation.evaluate(task, methods, out, watch=watch, **options)
        for bar in bars.values():
            progress.update(bar, completed=1, total=1, note="")
    results["machine"] = machine
    results["wall_seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "results.json", results)
    title = _title(results)
    report.bar_chart(out / "chart.png", results["methods"], title=title)
    _print_methods(results, title)
    files = ["results.json", "chart.png"] + ["episodes.md"] * (out / "episodes.md").exists()
    console.print(f"{results['wall_seconds']:.0f} s. Files in {out}: {', '.join(files)}")


def _title(results: dict) -> str:
    config = results["config"]
    n = next(iter(results["methods"].values()))["n"]
    what = {"locomo": "LoCoMo", "stream": f"stream ({config['split']}, difficulty {config['difficulty']})"}
    return f"{what[results['task']]}, {n} questions in {config['episodes']} episodes, seed {config['seed']}, {config['model']}"


def _print_methods(results: dict, title: str) -> None:
    methods = results["methods"]
    console.print(report.table(f"{title}: mean and 95 % interval (bootstrap over episodes)", methods))
    seen = set()
    for m in methods.values():
        for note in m["notes"]:
            console.print(note)
        if "writes" in m and "writes" not in seen:
            seen.add("writes")
            dropped = ", ".join(f"{v} {k}" for k, v in m["dropped"].items())
            line = f"{m['writes']} writes, {m['pairs_per_write']:.1f} pairs each; dropped: {dropped}"
            if "stuck" in m:
                leaked = "" if m["leaked"] is None else f", {m['leaked']:.0%} leaked to another person"
                line += f"; probed: {m['stuck']:.0%} of paraphrases held{leaked}"
            console.print(f"{line}; rolled back: {m['rolled_back']}")
