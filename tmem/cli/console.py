"""What a person sees while long work runs: progress with time left, then tables and where the files are."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .. import machine as this
from ..evaluation import evaluate as evaluation
from ..files.objects import write_json
from ..machine import keep_memory, peak_memory
from ..report import charts, study_tables, tables
from ..rl import record
from ..tasks import names
from ..terminal.plain import Terminal
from ..terminal.progress import Log, lines_for, printed

console = Terminal()


# What a live view of training shows, by field of metrics.jsonl.
WATCHED = {
    "reward": "reward", "recall": "gold facts written", "pairs_per_write": "pairs per write",
    "grounded": "pairs found in the text", "copied": "questions copied with a guess", "dropped": "lines dropped",
    "held": "own pairs held", "norm": "‖ΔW‖", "kl": "KL",
    "entropy": "entropy, nats", "dead_groups": "dead groups", "dlogp": "|Δ log p|", "neutral_nll": "neutral text, nats",
}  # fmt: skip


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last `width` values as blocks between their own least and largest."""
    values = list(values)[-width:]
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[int(7.99 * (v - low) / (high - low)) if high > low else 3] for v in values)


class _Steps:
    """RL's steps so far as a table that redraws itself: each measure at first, now, and its way there."""

    def __init__(self):
        self.rows: list[dict] = []

    def __rich__(self) -> Table | str:
        if not self.rows:
            return ""
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column, justify in (("", "left"), ("first", "right"), ("now", "right"), (f"{len(self.rows)} steps", "left")):
            grid.add_column(column, justify=justify)
        for key, name in WATCHED.items():
            values = [r[key] for r in self.rows if r.get(key) is not None]
            if values:
                grid.add_row(name, f"{values[0]:.3g}", f"{values[-1]:.3g}", sparkline(values))
        return grid


Tell = Callable[[str, int, int | None, str], None]  # phase, done, total, note


LOG = "log.txt"  # in --out: the lines that a pipe would show, with the time


@contextmanager
def _live(out: Path) -> Iterator[tuple[Tell, _Steps]]:
    """Progress bars, and under them RL's steps."""
    steps = _Steps()
    with _bar(out, steps) as tell:
        yield tell, steps


@contextmanager
def _bar(out: Path, *under) -> Iterator[Tell]:
    """Progress bars, with `under` them what redraws itself; where there is no terminal lines; and lines in the log of `out`."""
    log = Log(out / LOG)
    if not console.is_terminal:
        with lines_for(printed(console), log) as tell:
            yield tell
        return
    progress = Progress(*_columns(), console=console)
    with lines_for(log) as lines, Live(Group(progress, *under), console=console, refresh_per_second=4):
        bars = _bars(progress)

        def tell(phase: str, done: int, total: int | None, note: str) -> None:
            bars(phase, done, total, note)
            lines(phase, done, total, note)

        yield tell


def _bars(progress: Progress) -> Tell:
    """A bar for every phase."""
    tasks: dict[str, int] = {}

    def tell(phase: str, done: int, total: int | None, note: str) -> None:
        if phase not in tasks:
            tasks[phase] = progress.add_task(phase, total=total, note=note)
        progress.update(tasks[phase], completed=done, total=total, note=note)

    return tell


def _columns():
    return (
        SpinnerColumn(), TextColumn("{task.description:18}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip


@contextmanager
def _stop_on_ctrl_c() -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks the work to stop at its next safe point, the second interrupts at once."""
    asked: list[int] = []

    def handle(number, _):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("stopping after this step; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(asked: list[int]) -> SystemExit:
    """Exit codes as of a shell: 130 after Ctrl-C, 143 after SIGTERM; another rank may have been asked."""
    return SystemExit(128 + (asked[0] if asked else signal.SIGINT))


def train(preset: str, out: Path, *, model: str | None, resume: bool, **overrides) -> None:
    """Run the trainer under a progress bar; print the table of the four phases and write the summary and the curve.

    Under torchrun rank 0 alone shows and writes.
    """
    from ..rl import trainer as rl
    from ..rl.world import World

    keep_memory()
    machine = this.provenance()  # at the start: the commit that runs, not the one checked out when it ends
    world = World.join()
    console.quiet = not world.first
    trainer = rl.Trainer(preset, out, model=model, resume=resume, world=world, **overrides)
    with _stop_on_ctrl_c() as asked, _live(out) as (tell, steps):

        def row(values: dict) -> None:
            if values["phase"] == "rl":
                steps.rows.append(values)

        def warn(sentence: str) -> None:
            console.print(f"warning: {sentence}", style="yellow", highlight=False)

        try:
            summary = trainer.run(rl.Progress(row, tell, warn), stop=lambda: bool(asked))
        except rl.Interrupted:
            console.print(f"stopped; go on with: tmem train --preset {preset} --out {out} --resume")
            raise _ended(asked) from None
    world.leave()
    if not world.first:
        return
    summary["machine"] = {**machine, "ranks": world.size}
    write_json(out / "summary.json", summary)
    title = f"tmem train --preset {Path(preset).name}, {summary['n_episodes']} held-out episodes"
    charts.curve(out / "curve.png", record.read_run(out), title=title)
    _print_phases(summary)
    console.print(
        f"{summary['wall_seconds']:.0f} s. Files in {out}: summary.json, metrics.jsonl, timings.jsonl, curve.png, episodes/, "
        f"models warm/, rl/ and sft/ (tmem eval --model {out}/rl); see it all with: tmem report {out}"
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
                name if mode == "greedy" else "",
                {"greedy": "greedy", "sampled": "T=1"}[mode],
                _interval(cells["f1"]),
                f"{cells['em']['mean']:.2f}",
                _interval(cells["intrusion"]),
                f"{cells['recall']['mean']:.2f}",
                f"{cells['pairs_per_write']['mean']:.1f}",
            )
    console.print(table)
    console.print(
        "RL and control both start from the warm start; control is supervised training for the seconds that RL took. "
        "intrusions: answers that belong to somebody else. facts: share of the stream's facts that were written as they "
        "are. pairs: per write."
    )


def study(preset: str, out: Path, *, seeds: int, only: int | None, **options) -> None:
    """Run a study of several seeds, or one of them, under progress bars; print what RL gained and which half it changed."""
    from ..rl.trainer import Interrupted, Progress
    from ..study import study as studies

    keep_memory()
    machine, at = this.provenance(), [only or 0]
    with _stop_on_ctrl_c() as asked, _bar(out if only is None else out / f"seed-{only}") as tell:

        def phase(name: str, done: int, total: int, note: str) -> None:
            tell(f"{at[0]}: {name}", done, total, note)

        def warn(sentence: str) -> None:
            console.print(f"warning: seed {at[0]}: {sentence}", style="yellow", highlight=False)

        options.update(progress=Progress(phase=phase, warn=warn), stop=lambda: bool(asked))
        try:
            if only is not None:
                studies.one(preset, out / f"seed-{only}", only, **options)
            else:
                summary = studies.study(preset, out, seeds=seeds, seed_starts=lambda s: at.__setitem__(0, s), **options)
        except Interrupted:
            console.print("stopped; the same command goes on")
            raise _ended(asked) from None
    if only is not None:
        console.print(f"Seed {only} is in {out}/seed-{only}; without --only the seeds are compared.")
        return
    summary["machine"] = machine
    write_json(out / "study.json", summary)
    charts.study_chart(out / "study.png", summary, [record.read_run(out / f"seed-{n}") for n in range(seeds)])
    for grid in study_tables.study_tables(summary):
        console.print(grid)
    console.print(f"Everything is in {out}/study.json, curves in study.png; one seed to look at: tmem report {out}/seed-0")


def plan(preset: str, model: str | None, *, ranks: int, writes: int, layout: str | None) -> None:
    """Print what one rank needs for a step of training."""
    import dataclasses

    from ..agent.config import agent_config, build, read
    from ..models import loading
    from ..rl import budget as plans
    from ..rl.config import TrainConfig

    if model in plans.SHAPES:
        shape = plans.SHAPES[model]
    else:
        shape = plans.Shape.of(loading.config(model))
    agent = agent_config(preset)
    train = build(TrainConfig, read(preset).get("train", {}), "train")
    train = dataclasses.replace(train, layout=layout or train.layout)
    items = plans.per_rank(shape, agent, train, ranks=ranks, writes=writes)
    rollouts = -(-train.rl_episodes // ranks) * train.rl_group
    passes = plans.passes(agent, train, ranks=ranks, writes=writes)
    grid = Table(
        title=f"{model or loading.DEFAULT}, --preset {preset}: one of {ranks} ranks, {rollouts} rollouts of {writes} writes, "
        f"{train.layout}, bf16", title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column, justify in (("", "left"), ("GiB", "right"), ("", "left")):
        grid.add_column(column, justify=justify)
    for item in items:
        grid.add_row(item.name, f"{item.bytes / 2**30:.2f}", item.why)
    grid.add_section()
    grid.add_row("together", f"{sum(i.bytes for i in items) / 2**30:.2f}", "not all at the same time")
    if ranks > 1:
        wire = plans.sent(shape, train, ranks=ranks, passes=passes)
        grid.add_row(wire.name, f"{wire.bytes / 2**30:.2f}", wire.why)
    console.print(grid)
    work = plans.flops(shape, agent, train, ranks=ranks, writes=writes)
    console.print("operations of a step, TFLOP: " + ", ".join(f"{k} {v / 1e12:,.0f}" for k, v in work.items()), highlight=False)


def evaluate(methods: list[str], out: Path, work: Callable[..., dict]) -> None:
    """Run an evaluation, `work(methods, out, watch=...)`, under a progress bar; print its tables and write the chart."""
    keep_memory()
    start = time.perf_counter()
    with _bar(out) as tell:

        def watch(method: str, phase: str, done: int, total: int) -> None:
            tell(method, done, max(total, 1), "" if done >= total else phase)

        results = work(methods, out, watch=watch)
    title = _title(results)
    chart = ["chart.png"] * bool(tables.metrics_of(results["methods"]))
    if chart:
        charts.bar_chart(out / "chart.png", results["methods"], title=title)
    _print_methods(results, title)
    if not chart:
        why = "no answer got a verdict" if "judge" in results else "this task is graded by a judge alone, see --judge-url"
        console.print(f"nothing is scored and there is no chart: {why}; --resume keeps the answers", style="yellow")
    files = [*evaluation.FILES, *chart, *(f for f in ("verdicts.jsonl", "episodes.md") if (out / f).exists())]
    peak = peak_memory()
    memory = "" if peak is None else f", {peak / 2**30:.1f} GiB of memory at most"
    console.print(f"{time.perf_counter() - start:.0f} s{memory}. Files in {out}: {', '.join(files)}")


def _title(results: dict) -> str:
    config = results["config"]
    n = next(iter(results["methods"].values()))["n"]
    what = config.get("called") or names.TASKS[results["task"]]
    if results["task"] == "stream":
        what = f"stream ({config['split']}, difficulty {config['difficulty']})"
    if results["task"] == "search":
        what += f", {config['objectives']} questions at once"
    known = ", questions known beforehand" * config["known"]
    last = config["seed"] + config["seeds"] - 1
    seeds = f"seeds {config['seed']} to {last}" if config["seeds"] > 1 else f"seed {last}"
    some = f"{n} sets" if results["task"] == "search" else f"{n} questions in {config['episodes']} episodes"
    return f"{what}{known}, {some}, {seeds}, {config['model']}"


def _print_methods(results: dict, title: str) -> None:
    methods = results["methods"]
    console.print(tables.table(f"{title}: mean and 95 % interval (bootstrap over episodes)", methods))
    for grid in (tables.difference_table(results["differences"], "tmem"), tables.cost_table(methods)):
        if grid is not None:
            console.print(grid)
    runs = results.get("runs", [])
    if len({str(run["machine"]) for run in runs}) > 1:
        console.print(f"made by {len(runs)} runs whose machines or versions differ: see runs in results.json", style="yellow")
    for name, m in methods.items():
        for metric, a in m.get("aggregates", {}).items():
            abstention = "" if a["abstention"] is None else f", abstention {a['abstention']:.2f}"
            console.print(
                f"{name}, {names.METRICS[metric][0]}: task average {a['task_average']:.2f}, overall {a['overall']:.2f}"
                f"{abstention}; " + ", ".join(f"{k} {v:.2f}" for k, v in a["types"].items()), highlight=False,
            )  # fmt: skip
        if "search" in m:
            f = m["search"]
            found = "" if f["recall"] is None else f", {f['recall']:.0%} of the evidence found"
            peak = "none right" if f["mem1_peak"] is None else f"{f['mem1_peak']:.0f} tokens at MEM1's peak"
            console.print(
                f"{name}: {f['searches']:.1f} searches in {f['turns']:.1f} turns{found}, "
                f"{f['counted']:.0%} answered with the right count, {peak}", highlight=False,
            )  # fmt: skip
    for note in results.get("notes", []):
        console.print(note, style="yellow")
    if left_out := results.get("left_out"):
        n = results["config"]["objectives"]
        console.print(f"{left_out} questions at the end of a file make no set of {n} and were left out", style="yellow")
    if "judge" in results:
        _print_judge(results["judge"])
    m = next((m for m in methods.values() if "writes" in m), None)
    if m is not None:
        dropped = ", ".join(f"{v} {k}" for k, v in m["dropped"].items())
        line = f"{m['writes']} writes, {m['pairs_per_write']:.1f} pairs each; dropped: {dropped}"
        if "stuck" in m:
            leaked = "" if m["leaked"] is None else f", {m['leaked']:.0%} leaked to another person"
            line += f"; probed: {m['stuck']:.0%} of paraphrases held{leaked}"
        console.print(f"{line}; rolled back: {m['rolled_back']}")


def _print_judge(found: dict) -> None:
    last, spent = found["pass"], found["spent"]
    if found["plumbing"]:
        console.print("judged by the model under test, to try the plumbing: a measure of nothing", style="yellow")
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    console.print(
        f"judge {found['model']} ({found['host']}): {found['judged']} judged, {found['left_out']} left out by the protocol; "
        f"without a verdict and a score: {found['unreachable']} unreachable, {found['malformed']} malformed. Its last pass: "
        f"{last['requests']} requests ({last['retries']} retries), {last['cached']} from the cache; all passes: "
        f"{spent['requests']} requests, {spent['prompt_tokens']} + {spent['completion_tokens']} tokens{cost}",
        highlight=False,
    )
    if refused := last.get("refused"):  # runs of before have none
        console.print(f"it would not take {' and '.join(refused)}, and judged as it does without", style="yellow")
    if found.get("why"):
        console.print(f"without a verdict, mostly: {found['why']} (all are in verdicts.jsonl; --resume asks again)",
                      style="yellow", highlight=False, markup=False)  # fmt: skip
