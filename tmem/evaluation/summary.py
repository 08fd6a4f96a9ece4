"""What follows from the rows of answers.jsonl and readings.jsonl: scores with intervals, paired differences, costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .. import stats
from ..agent.write import DROPPED
from ..methods.methods import READ
from ..tasks import longmemeval, names
from .compute import Sizes

# Of an episode, in the row of its reading: the share of the written pairs that are gold facts, and of the gold facts written.
WRITTEN = ("precise", "facts")


def summarise(answers: Sequence[dict], readings: Sequence[dict], task: str = "", sizes: Sizes | None = None) -> dict:
    """{"methods": {name: scores, intervals, costs}, "differences": {metric: {"a - b": {...}}}} of the rows of both files.

    Where a judge was asked (tmem.evaluation.grading.scored), "judged" says how many of a method's "n" answers have a verdict.
    With LongMemEval each method also has its "aggregates": means by type, of the types' means, of all, and of abstentions.
    With `sizes` each has "flops", all that it computed (see tmem.evaluation.compute).
    Where the text does not answer some of the questions, a method has the "answerable" ones' scores, with intervals, and
    "abstained", the share of answers that abstain, of the "unanswerable" and of the "answerable"; "answerable_differences" are
    the differences without them.
    Who wrote pairs of a stream has "precise", the share of its pairs that are facts of the stream, and "facts", the share of
    the facts that it wrote: means over episodes, with intervals, see tmem.evaluation.facts. Both are missing where a row lacks
    them.
    """
    methods = {}
    for name in dict.fromkeys(r["method"] for r in answers):
        mine = [r for r in answers if r["method"] == name]
        methods[name] = _method(mine, [r for r in readings if r["method"] == name], sizes)
        if task == "longmemeval":
            shown = ("kind", "category", *(m for m in names.METRICS if m in methods[name]))
            methods[name]["aggregates"] = longmemeval.summary([{k: r.get(k) for k in shown} for r in mine])
    shown = [m for m in names.METRICS if any(r.get(m) is not None for r in answers)]
    out = {"methods": methods, "differences": {m: _differences(answers, m) for m in shown}}
    told = [r for r in answers if _answerable(r)]
    if len(told) < len(answers):
        out["answerable_differences"] = {m: _differences(told, m) for m in shown}
    return out


def _method(answers: Sequence[dict], readings: Sequence[dict], sizes: Sizes | None) -> dict:
    out: dict = {"n": len(answers), **_judged(answers), **_scores(answers), **_abstained(answers)}
    kinds = sorted({r["kind"] for r in answers})
    out["by_kind"] = {k: _means([r for r in answers if r["kind"] == k]) for k in kinds}
    out["state_bytes"] = _mean([r["state_bytes"] for r in readings])
    out["prompt_tokens"] = _mean([r["prompt_tokens"] for r in answers])
    out["peak_tokens"] = max(
        [r["peak_tokens"] for r in readings] + [r["prompt_tokens"] + r["generated_tokens"] for r in answers]
    )
    tokens = {what: sum(r.get(f"{what}_tokens", 0) for r in readings) for what in ("read", "generated", "learned", "embedded")}
    tokens["read"] += sum(r.get("read_tokens", r["prompt_tokens"]) for r in answers)  # a search shares nothing
    tokens["generated"] += sum(r["generated_tokens"] for r in answers)
    out |= {f"{what}_tokens": count for what, count in tokens.items()}
    if sizes is not None:
        out["flops"] = sizes.flops(tokens)
    out["seconds"] = round(sum(r["seconds"] for r in [*readings, *answers]), 2)
    if lost := sum(r.get("lost", 0) for r in readings):
        out["lost"] = lost
    if any("log" in r for r in readings):
        wrote = [r for r in readings if "log" in r]
        out |= _writing([w for r in wrote for w in r["log"]["writes"]]) | _facts(wrote)
    return out


def _scores(answers: Sequence[dict]) -> dict:
    """{metric: mean, metric_ci: its interval} of every metric that the rows have."""
    out: dict = {}
    for metric in names.METRICS:
        if scored := [r for r in answers if r.get(metric) is not None]:  # a judge leaves some out
            mean, low, high = stats.bootstrap([r[metric] for r in scored], [r["episode"] for r in scored])
            out[metric], out[f"{metric}_ci"] = mean, [low, high]
    return out


def _abstained(answers: Sequence[dict]) -> dict:
    """What the questions that the text answers score by themselves, and how often either kind is abstained from."""
    told, untold = ([r for r in answers if _answerable(r) == so] for so in (True, False))
    out: dict = {"answerable": {"n": len(told), **_scores(told)}} if told and untold else {}
    shares = {
        name: _mean([r["abstained"] for r in some])
        for name, some in (("answerable", told), ("unanswerable", untold))
        if some and all("abstained" in r for r in some)
    }
    return out | ({"abstained": shares} if shares else {})


def _answerable(row: dict) -> bool:
    """A search's rows have no kind of question, but the name of a file."""
    return "objectives" in row or names.answerable(row["kind"], row.get("category", ""))


def _means(answers: Sequence[dict]) -> dict:
    scored = {m: [r[m] for r in answers if r.get(m) is not None] for m in names.METRICS}
    return {m: _mean(values) for m, values in scored.items() if values} | {"n": len(answers), **_judged(answers)}


def _judged(answers: Sequence[dict]) -> dict:
    """{"judged": answers with a verdict}, where a judge was asked about any."""
    return {"judged": sum(r.get("judge") is not None for r in answers)} if any("judge" in r for r in answers) else {}


def _writing(writes: Sequence[dict]) -> dict:
    out: dict = {
        "writes": len(writes),
        "pairs_per_write": _mean([len(w["pairs"]) for w in writes]),
        "dropped": {k: sum(w["dropped"].get(k, 0) for w in writes) for k in DROPPED},
        "rolled_back": sum(bool(w["undone"]) for w in writes),
    }
    if probes := [p for w in writes for p in w["stuck"]]:
        out["stuck"] = _mean([p["recalled"] for p in probes])
        asked = [p["leaked"] for p in probes if p["other"] is not None]
        out["leaked"] = _mean(asked) if asked else None
    return out


def _facts(readings: Sequence[dict]) -> dict:
    """{share: mean, share_ci: its interval} of what every reading says."""
    out: dict = {}
    for share in WRITTEN:
        if all(share in r for r in readings):
            mean, low, high = stats.bootstrap([r[share] for r in readings], [r["episode"] for r in readings])
            out |= {share: mean, f"{share}_ci": [low, high]}
    return out


def _differences(answers: Sequence[dict], metric: str) -> dict:
    """Every pair of methods on the questions that both answered: mean difference, interval over resampled episodes."""
    scores: dict[str, dict[tuple, tuple[float, str]]] = {}
    for r in answers:
        if r.get(metric) is not None:
            scores.setdefault(r["method"], {})[r["seed"], r["id"]] = (r[metric], r["episode"])
    out = {}
    order = [*READ, *scores]
    for a, b in itertools.combinations(sorted(scores, key=order.index, reverse=True), 2):
        if shared := [k for k in scores[a] if k in scores[b]]:
            mean, low, high = stats.bootstrap(
                [scores[a][k][0] - scores[b][k][0] for k in shared], [scores[a][k][1] for k in shared]
            )
            out[f"{a} - {b}"] = {"mean": mean, "low": low, "high": high}
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
