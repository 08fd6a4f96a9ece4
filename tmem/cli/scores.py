"""What a person sees of an evaluation's results: tables, a chart, and lines for what a table does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..evaluation import record
from ..report import charts, tables
from ..tasks import names
from . import live


def show(results: Mapping, out: Path) -> list[str]:
    """Print what results.json holds and draw out/chart.png; the names of the files in `out`."""
    title = title_of(results)
    chart = ["chart.png"] * bool(tables.metrics_of(results["methods"]))
    if chart:
        charts.bar_chart(out / "chart.png", results["methods"], title=title)
    _print_tables(results, title)
    for line in _lines(results["methods"]):
        live.console.print(line, highlight=False)
    for warning in _warnings(results):
        live.console.print(warning, style="yellow", highlight=False)
    if "judge" in results:
        _print_judge(results["judge"])
    if (written := _written(results["methods"])) is not None:
        live.console.print(written)
    if not chart:
        why = "no answer got a verdict" if "judge" in results else "this task is graded by a judge alone, see --judge-url"
        live.console.print(f"nothing is scored and there is no chart: {why}; --resume keeps the answers", style="yellow")
    return [*record.FILES, *chart, *(name for name in ("verdicts.jsonl", "episodes.md") if (out / name).exists())]


def title_of(results: Mapping) -> str:
    """The task, how much of it was asked, the seeds and the model."""
    config = results["config"]
    n = next(iter(results["methods"].values()))["n"]
    what = config.get("called") or names.TASKS[results["task"]]
    if results["task"] == "stream":
        what = f"stream ({config['split']}, difficulty {config['difficulty']})"
    if results["task"] == "passages":
        what += f" ({config['split']})"
    if results["task"] == "search":
        what += f", {config['objectives']} questions at once"
    known = ", questions known beforehand" * config["known"]
    last = config["seed"] + config["seeds"] - 1
    seeds = f"seeds {config['seed']} to {last}" if config["seeds"] > 1 else f"seed {last}"
    some = f"{n} sets" if results["task"] == "search" else f"{n} questions in {config['episodes']} episodes"
    return f"{what}{known}, {some}, {seeds}, {config['model']}"


def _print_tables(results: Mapping, title: str) -> None:
    methods = results["methods"]
    live.console.print(tables.table(f"{title}: mean and 95 % interval (bootstrap over episodes)", methods))
    differences = tables.difference_table(results["differences"], "tmem")
    for grid in (tables.answerable_table(methods), differences, tables.cost_table(methods)):
        if grid is not None:
            live.console.print(grid)


def _lines(methods: Mapping[str, Mapping]) -> Iterator[str]:
    """A method's averages over types of question, and how its search went."""
    for name, m in methods.items():
        for metric, a in m.get("aggregates", {}).items():
            abstention = "" if a["abstention"] is None else f", abstention {a['abstention']:.2f}"
            yield (
                f"{name}, {names.METRICS[metric][0]}: task average {a['task_average']:.2f}, overall {a['overall']:.2f}"
                f"{abstention}; " + ", ".join(f"{k} {v:.2f}" for k, v in a["types"].items())
            )
        if "search" in m:
            f = m["search"]
            found = "" if f["recall"] is None else f", {f['recall']:.0%} of the evidence found"
            peak = "none right" if f["mem1_peak"] is None else f"{f['mem1_peak']:.0f} tokens at MEM1's peak"
            yield (
                f"{name}: {f['searches']:.1f} searches in {f['turns']:.1f} turns{found}, "
                f"{f['counted']:.0%} answered with the right count, {peak}"
            )


def _warnings(results: Mapping) -> Iterator[str]:
    runs = results.get("runs", [])
    if len({str(run["machine"]) for run in runs}) > 1:
        yield f"made by {len(runs)} runs whose machines or versions differ: see runs in results.json"
    yield from results.get("notes", [])
    for name, m in results["methods"].items():
        if lost := m.get("lost"):
            why = "their writes were rolled back" if name == "gold" else "a prompt has no room for them"
            yield f"{name}: {lost} pairs are left out, as {why}"
        if undone := m.get("rolled_back"):
            yield f"{name}: {undone} of {m['writes']} writes were rolled back, so nothing of them was learned"
    if left_out := results.get("left_out"):
        n = results["config"]["objectives"]
        yield f"{left_out} questions at the end of a file make no set of {n} and were left out"


def _written(methods: Mapping[str, Mapping]) -> str | None:
    """How the first method that writes pairs wrote them; None where none does."""
    m = next((m for m in methods.values() if "writes" in m), None)
    if m is None:
        return None
    dropped = ", ".join(f"{v} {k}" for k, v in m["dropped"].items())
    line = f"{m['writes']} writes, {m['pairs_per_write']:.1f} pairs each; dropped: {dropped}"
    if "stuck" in m:
        leaked = "" if m["leaked"] is None else f", {m['leaked']:.0%} leaked to another person"
        line += f"; probed: {m['stuck']:.0%} of paraphrases held{leaked}"
    if "precise" in m:
        low, high = m["precise_ci"]
        line += f"; {m['precise']:.2f} [{low:.2f}, {high:.2f}] of the pairs are facts, {m['facts']:.2f} of the facts written"
    return line


def _print_judge(found: Mapping) -> None:
    last, spent = found["pass"], found["spent"]
    if found["plumbing"]:
        live.console.print("judged by the model under test, to try the plumbing: a measure of nothing", style="yellow")
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    live.console.print(
        f"judge {found['model']} ({found['host']}): {found['judged']} judged, {found['left_out']} left out by the protocol; "
        f"without a verdict and a score: {found['unreachable']} unreachable, {found['malformed']} malformed. Its last pass: "
        f"{last['requests']} requests ({last['retries']} retries), {last['cached']} from the cache; all passes: "
        f"{spent['requests']} requests, {spent['prompt_tokens']} + {spent['completion_tokens']} tokens{cost}",
        highlight=False,
    )
    if refused := last.get("refused"):  # runs of before have none
        live.console.print(f"it would not take {' and '.join(refused)}, and judged as it does without", style="yellow")
    if found.get("why"):
        live.console.print(
            f"without a verdict, mostly: {found['why']} (all are in verdicts.jsonl; --resume asks again)",
            style="yellow",
            highlight=False,
        )
