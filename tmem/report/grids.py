"""The tables of `tmem report` for evaluations: strings, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..agent.config import renamed
from ..evaluation.runs import SCALE, Run
from ..stats import bootstrap
from ..tasks.names import METRICS

PLUMBING = "local judge, plumbing only"  # stands beside every score that means nothing
PUBLISHED = ("method", "metric", "value", "protocol", "source")
COSTS = {
    "state_bytes": "kept, bytes", "prompt_tokens": "prompt, tokens", "peak_tokens": "longest, tokens", "read_tokens": "read",
    "generated_tokens": "generated", "learned_tokens": "learned", "flops": "FLOP", "seconds": "seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A table of strings. left: columns at the left that hold names. soft: rows that only give the scale. folded: shut."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 2
    soft: Sequence[bool] = field(default=())
    folded: bool = False


def metric_name(metric: str, run: Run) -> str:
    """What a metric is called: a judge's with who judged, a search's as the sum that it is."""
    name, judge = METRICS[metric][0], run.judge
    if metric in ("judge", "rubrics") and judge:
        return f"{name} ({PLUMBING})" if judge.get("plumbing") else f"{name} ({judge.get('model')})"
    return f"sum of {name}" if run.results["task"] == "search" else name


def interval(found: Mapping[str, Any], metric: str) -> str:
    if metric not in found:
        return ""
    low, high = found[f"{metric}_ci"]
    return f"{found[metric]:.3f} [{low:.3f}, {high:.3f}]"


def _signed(mean: float, low: float, high: float) -> str:
    mean, low, high = (round(v, 3) + 0.0 for v in (mean, low, high))  # no -0.000
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def compared(by: Mapping[str, Run]) -> Grid:
    """The runs, and the settings in which they differ."""
    flat = {label: _flat(renamed(run.config.get("settings") or {})) for label, run in by.items()}
    keys = dict.fromkeys(k for settings in flat.values() for k in settings)
    differ = [k for k in keys if len({str(settings.get(k)) for settings in flat.values()}) > 1]
    rows = [
        [label, str(run.config.get("preset")), str(run.config.get("weights_blake2b") or ""),
         str(run.results.get("machine", {}).get("commit") or ""), *(str(flat[label].get(k, "")) for k in differ)]
        for label, run in by.items()
    ]  # fmt: skip
    note = "Weights: a hash of the model's files." + (" Settings not shown are the same." if differ else "")
    return Grid("Runs", ["run", "preset", "weights", "commit", *differ], rows, note, left=4)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def scores(rows: Sequence[Mapping], names: Mapping[str, str], by: Mapping[str, Run]) -> Grid:
    judged = [_judged(by[r["run"]], r["method"]) for r in rows]
    graded = any(j is not None for j in judged)
    most = max(r["n"] for r in rows)
    cells = [
        [r["run"], _method(r["method"]), *r["scores"].values(), f"{r['n']}" if r["n"] == most else f"{r['n']} of {most}",
         *(["" if j is None else str(j)] if graded else [])]
        for r, j in zip(rows, judged)
    ]  # fmt: skip
    note = "Mean and 95 % interval, by resampling whole episodes."
    if any(r["method"] in SCALE for r in rows):
        note += " Scale: what the evidence itself, what one constant answer and what gold pairs in Δ score; not ranked."
    if any(r["n"] < most for r in rows):
        note += " A run that lacks questions is unfinished and not ranked."
    if any(PLUMBING in n for n in names.values()):
        note += " The local judge is the model under test behind the judge's interface: its scores mean nothing."
    columns = ["run", "method", *names.values(), "n", *(["judged"] if graded else [])]
    return Grid("Scores", columns, cells, note, soft=[r["method"] in SCALE for r in rows])


def answerable(by: Mapping[str, Run], names: Mapping[str, str]) -> Iterator[Grid]:
    """The questions that the text answers by themselves, and how often either kind is abstained from."""
    found = [(label, m, f) for label, run in by.items() for m, f in run.methods.items() if "answerable" in f]
    if not found:
        return
    rows = []
    for label, m, f in found:
        shares = f.get("abstained", {})
        cells = [interval(f["answerable"], metric) for metric in names]
        rows.append([label, _method(m), *cells, str(f["answerable"]["n"]), *(_share(shares.get(k)) for k in _KINDS)])
    columns = ["run", "method", *names.values(), "n", "abstained from them", "from the others"]
    yield Grid("The questions that the text answers: scores", columns, rows,
               "Without the questions whose right answer is to abstain; these are the others. 95 % intervals, by resampling "
               "whole episodes.", soft=[m in SCALE for _, m, _ in found])  # fmt: skip


_KINDS = ("answerable", "unanswerable")


def asked(by: Mapping[str, Run]) -> Iterator[Grid]:
    """How each method was asked; runs of before asked all by the instruction and do not say so."""
    forms = {label: run.results["asked"] for label, run in by.items() if run.results.get("asked")}
    shown = list(dict.fromkeys(m for label in forms for m in by[label].methods))
    if forms:
        rows = [[label, *(str(found.get(m) or "") for m in shown)] for label, found in forms.items()]
        yield Grid("How each method was asked", ["run", *shown], rows, "Empty: by no model.", left=1 + len(shown), folded=True)


def _method(method: str) -> str:
    return f"{method} (scale)" if method in SCALE else method


def _judged(run: Run, method: str) -> int | None:
    """How many of a method's answers have a verdict; None where nobody judged."""
    return run.methods[method].get("judged", run.judge.get("methods", {}).get(method, {}).get("judged"))


def costs(rows: Sequence[Mapping]) -> Grid:
    shown = [k for k in COSTS if any(r["found"].get(k) is not None for r in rows)]
    cells = [[r["run"], _method(r["method"]), *(cost(k, r["found"].get(k)) for k in shown)] for r in rows]
    note = (
        "Kept: of an episode between reading and asking, text or Δ. Prompt: of a question (in a search of a step), mean. "
        "Longest: a prompt with what was generated after it. The others: of the whole run, learned tokens over all epochs. "
        "Where methods share a rollout, each shows all that it cost."
    )
    return Grid("What it takes", ["run", "method", *(COSTS[k] for k in shown)], cells, note,
                soft=[r["method"] in SCALE for r in rows])  # fmt: skip


def cost(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2e}" if key == "flops" else f"{value:,.0f}"


def differences(by: Mapping[str, Run], names: Mapping[str, str]) -> Iterator[Grid]:
    """tmem against every other method of its run, signed as the pair's name reads."""
    yield from _differences(by, names, "differences", "Differences between methods, on the same questions")
    title = "The questions that the text answers: differences between methods"
    yield from _differences(by, names, "answerable_differences", title)


def _differences(by: Mapping[str, Run], names: Mapping[str, str], part: str, title: str) -> Iterator[Grid]:
    rows = []
    for label, run in by.items():
        found = run.results.get(part, {})
        others = [m for m in run.methods if m != "tmem"] if "tmem" in run.methods else []
        for other in others:
            cells = []
            for metric in names:
                cell, sign = found.get(metric, {}).get(f"tmem - {other}"), 1
                if cell is None:
                    cell, sign = found.get(metric, {}).get(f"{other} - tmem"), -1
                bounds = () if cell is None else sorted((sign * cell["low"], sign * cell["high"]))
                cells.append("" if cell is None else _signed(sign * cell["mean"], *bounds))
            if any(cells):
                rows.append([label, f"tmem - {_method(other)}", *cells])
    if rows:
        yield Grid(title, ["run", "pair", *names.values()], rows,
                   "Above 0: tmem scores more. 95 % intervals, by resampling whole episodes.")  # fmt: skip


def between(by: Mapping[str, Run], names: Mapping[str, str]) -> Iterator[Grid]:
    """The same method in two runs: what the later run scores above the earlier one, on the questions that both answered."""
    rows = []
    labels = list(by)
    for i, b in enumerate(labels):
        for a in labels[i + 1 :]:
            for method in (m for m in by[a].methods if m in by[b].methods):
                cells = [_paired(by[a], by[b], method, metric) for metric in names]
                if any(cells):
                    rows.append([f"{a} - {b}", _method(method), *cells])
    if rows:
        yield Grid("Differences between runs, on the same questions", ["pair", "method", *names.values()], rows,
                   "Above 0: the run named first scores more. 95 % intervals, by resampling whole episodes.")  # fmt: skip


def _paired(a: Run, b: Run, method: str, metric: str) -> str:
    """Mean of a's minus b's scores with its interval; empty where they share no scored question."""
    scores = [
        {(r["seed"], r["id"]): (r[metric], r["episode"]) for r in run.answers
         if r["method"] == method and r.get(metric) is not None}
        for run in (a, b)
    ]  # fmt: skip
    shared = [k for k in scores[0] if k in scores[1]]
    if not shared:
        return ""
    return _signed(*bootstrap([scores[0][k][0] - scores[1][k][0] for k in shared], [scores[0][k][1] for k in shared]))


def kinds(by: Mapping[str, Run], names: Mapping[str, str]) -> Iterator[Grid]:
    """A metric by kind of question, LoCoMo's categories among them; the first one open."""
    kinds = sorted({k for run in by.values() for found in run.methods.values() for k in found.get("by_kind", {})})
    if len(kinds) < 2:
        return
    for i, (metric, name) in enumerate(names.items()):
        rows = [
            [label, _method(m), *(_number(found.get("by_kind", {}).get(k, {}).get(metric)) for k in kinds)]
            for label, run in by.items() for m, found in run.methods.items()
        ]  # fmt: skip
        yield Grid(f"{name} by kind of question", ["run", "method", *kinds], rows, soft=_soft(by), folded=i > 0)


def aggregates(by: Mapping[str, Run], names: Mapping[str, str]) -> Iterator[Grid]:
    """LongMemEval's official aggregates, a table for each metric; the first one open."""
    for i, (metric, name) in enumerate(names.items()):
        found = {(label, m): f.get("aggregates", {}).get(metric) for label, run in by.items() for m, f in run.methods.items()}
        types = sorted({t for f in found.values() if f for t in f["types"]})
        if not types:
            continue
        rows = [
            [label, _method(m), *(["" for _ in range(3 + len(types))] if f is None else
             [_number(f[k]) for k in ("task_average", "overall", "abstention")] + [_number(f["types"].get(t)) for t in types])]
            for (label, m), f in found.items()
        ]  # fmt: skip
        note = "Task average: mean of the types' means. Overall: mean of all questions. Abstentions count in their types, too."
        yield Grid(f"{name}: the official aggregates", ["run", "method", "task average", "overall", "abstention", *types], rows,
                   note, soft=_soft(by), folded=i > 0)  # fmt: skip


def searches(by: Mapping[str, Run]) -> Iterator[Grid]:
    """What a search took, in means over the sets of questions (tmem.tasks.search.summary)."""
    names = {
        "searches": "searches", "turns": "turns", "writes": "writes", "recall": "evidence found", "counted": "right count",
        "peak": "longest, mean", "mem1_peak": "MEM1's peak", "dependency": "prompt × generated",
    }  # fmt: skip
    every = [(label, m, f["search"]) for label, run in by.items() for m, f in run.methods.items() if "search" in f]
    shown = [k for k in names if any(k in f for *_, f in every)]
    if every:
        note = (
            "Means over sets of questions. Evidence found: share of the articles that the answers rest on. Right count: sets "
            "with as many answers as questions; the others score 0. MEM1's peak, tokens: without instruction and questions, "
            "over the sets with an answer right. Prompt × generated is summed over a set's steps, as MEM1's dependency, "
            "which leaves instruction and questions out."
        )
        rows = [[label, _method(m), *(_searched(k, f.get(k)) for k in shown)] for label, m, f in every]
        yield Grid("Searching", ["run", "method", *map(names.get, shown)], rows, note, soft=[m in SCALE for _, m, _ in every])


def _searched(key: str, value: float | None) -> str:
    if value is None:
        return "none right" if key == "mem1_peak" else ""
    return f"{value:.1%}" if key in ("recall", "counted") else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def writing(by: Mapping[str, Run]) -> Iterator[Grid]:
    """What was written. Methods that share a rollout share a row."""
    rows: dict[tuple, list[str]] = {}
    for label, run in by.items():
        for method, f in run.methods.items():
            if f.get("writes"):
                lost = {"not shown": f.get("lost", 0)}
                dropped = ", ".join(f"{n} {kind}" for kind, n in (f["dropped"] | lost).items() if n) or "none"
                cells = (f"{f['writes']:,}", f"{f['pairs_per_write']:.2f}", dropped, str(f["rolled_back"]),
                         *(_share(f.get(key)) for key in ("precise", "facts", "stuck", "leaked")))  # fmt: skip
                rows.setdefault((label, cells), []).append(method)
    if rows:
        note = (
            "Precise: pairs that are facts of the text, by person, attribute and value (stream). Facts: of the text, written. "
            "Held: pairs recalled in a paraphrase straight after their write (--probe). Leaked: given for others, too."
        )
        columns = ["run", "method", "writes", "pairs a write", "dropped", "rolled back", "precise", "facts", "held", "leaked"]
        yield Grid("What it wrote", columns,
                   [[label, ", ".join(methods), *cells] for (label, cells), methods in rows.items()], note)  # fmt: skip


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def judges(by: Mapping[str, Run]) -> Iterator[Grid]:
    rows = []
    for label, run in by.items():
        if judge := run.judge:
            spent = judge.get("spent") or {}
            judged = [_judged(run, m) for m in run.methods]
            total = judge.get("judged", sum(j for j in judged if j is not None))
            tokens = spent.get("prompt_tokens", 0) + spent.get("completion_tokens", 0)
            lost = [judge.get(k) for k in ("malformed", "unreachable")]
            cost = spent.get("cost")
            name = "the model under test, plumbing only" if judge.get("plumbing") else str(judge.get("model"))
            rows.append([label, name, str(judge.get("host") or ""), *map(_count, (total, *lost, tokens)),
                         "" if cost is None else f"{cost:.4f}"])  # fmt: skip
    if rows:
        yield Grid("The judge", ["run", "judge", "host", "judged", "malformed", "unreachable", "tokens", "cost"], rows,
                   "Answers without a verdict have no score by the judge.", left=3)  # fmt: skip


def _count(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_count(v)}" for k, v in value.items())
    return "" if value is None else f"{value:,}"


def published(published: Sequence[Mapping[str, str]]) -> Iterator[Grid]:
    if published:
        yield Grid("Published by others, by other protocols: not to be ranked with the above", list(PUBLISHED),
                   [[p[k] for k in PUBLISHED] for p in published], left=len(PUBLISHED))  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _soft(by: Mapping[str, Run]) -> list[bool]:
    return [m in SCALE for run in by.values() for m in run.methods]
