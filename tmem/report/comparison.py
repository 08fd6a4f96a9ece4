"""`tmem report` of evaluations: runs of `tmem eval` joined into one HTML page and one Markdown file of tables, with pictures.

results.json is enough for the tables. Where a run's answers.jsonl and readings.jsonl are there, with texts or without
(tmem.report.strip), pictures by place and length, probes, and paired differences between runs follow; examples need the texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.runs import SCALE, Run, grouped, named, protocol_line, read, title
from ..files.folders import atomic_file
from ..files.objects import encoded
from ..stats import bootstrap
from ..tasks.names import METRICS, TASKS
from ..terminal.plain import in_markdown
from . import grids
from .pictures import Line, bins_of, drawn, places

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLACES = 5  # of the evidence in the stream
UNTOLD = ("5", "abstention")  # categories whose right answer is to abstain: their evidence is of something else
FIRST = ("judge", "official_f1")  # what headline and pictures show where a run has it, else the first of METRICS
SAMPLES = 8  # questions shown
LONGEST = 300  # characters of an answer shown


def page(folders: Sequence[Path], file: Path) -> str:
    """Write the page to `file` and the tables beside it as Markdown; returns its first sentence.

    Raises FileNotFoundError for a folder without results, ValueError for one without answers yet or with a broken file.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs = [read(f) for f in folders]
    tables, over = joined(runs), sweeps(runs)
    headlines = [t["headline"] for t in tables]
    environment = Environment(
        loader=PackageLoader("tmem.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("comparison.html").render(tables=tables, sweeps=over, headlines=headlines)
    with atomic_file(file) as work:
        work.write_bytes(encoded(text))
    with atomic_file(file.with_suffix(".md")) as work:
        work.write_bytes(encoded(markdown([*tables, *over])))
    return "; ".join(headlines)


def joined(runs: Sequence[Run]) -> list[dict]:
    """What the page shows, a part for each protocol: runs of different data, limits or protocols are never ranked together."""
    published = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
    parts = grouped(runs, "protocol")
    return [_part(same, [] if (first := same[0]).called else published.get(first.results["task"], [])) for same in parts]


def _part(runs: Sequence[Run], published: Sequence[Mapping[str, str]]) -> dict:
    first, by = runs[0], named(runs)
    metrics = [m for m in METRICS if any(m in found for r in runs for found in r.methods.values())]
    names = {m: grids.metric_name(m, first) for m in metrics}
    metric = next((m for m in FIRST if m in names and grids.PLUMBING not in names[m]), metrics[0] if metrics else None)
    rows = [
        {"run": label, "model": run.model, "method": method, "n": found["n"], "found": found,
         "scores": {m: grids.interval(found, m) for m in metrics}}
        for label, run in by.items() for method, found in run.methods.items()
    ]  # fmt: skip
    before = [grids.compared(by), grids.scores(rows, names, by), *grids.answerable(by, names), grids.costs(rows)]
    after = [
        *grids.asked(by),
        *grids.differences(by, names), *grids.between(by, names),
        *(grids.aggregates(by, names) if first.results["task"] == "longmemeval" else grids.kinds(by, names)),
        *grids.searches(by), *grids.writing(by), *grids.judges(by), *grids.published(published),
    ]  # fmt: skip
    return {
        "title": title(first), "headline": f"{title(first)}: {_verdict(rows, metric, names, len(runs) > 1)}",
        "protocol": f"Protocol: {protocol_line(first)}", "rows": rows, "before": before, "after": after,
        "pictures": list(_pictures(by, rows, metric, names[metric])) if metric else [], "samples": _samples(by),
        "settings": {label: {"config": run.config, "machine": run.results.get("machine", {})} for label, run in by.items()},
    }  # fmt: skip


def _verdict(rows: Sequence[Mapping], metric: str | None, names: Mapping[str, str], several: bool) -> str:
    """Who is first. Rows that give the scale are not ranked, nor those without all questions and verdicts, nor a stand-in's."""
    if metric is None:
        return "not scored"
    if grids.PLUMBING in names[metric]:
        return "judged by the local model to try the plumbing, no ranking"

    def asked(r: Mapping) -> tuple:
        return r["n"], r["found"].get("judged", 0) if metric == "judge" else 0

    methods = [r for r in rows if r["method"] not in SCALE]
    most = max(map(asked, methods), default=(0, 0))
    ranked = [r for r in methods if asked(r) == most and metric in r["found"]]
    if not ranked:
        return "no method to rank"
    best = max((r["found"][metric] for r in ranked), default=0.0)
    if best <= 0:
        return f"no method scores above 0 by {names[metric]}"
    first = [r for r in ranked if r["found"][metric] == best]
    who = " and ".join(f"{r['method']} under {r['run']}" if several else r["method"] for r in first)
    return f"{who} {'is' if len(first) == 1 else 'are'} first by {names[metric]}, {first[0]['scores'][metric]}"


def _samples(by: Mapping[str, Run]) -> list[dict]:
    """Questions with what every method of every run said: evenly spaced, the same whatever the scores."""
    found: dict[tuple, dict] = {}
    for label, run in by.items():
        for r in run.answers:
            if "question" in r:
                said = " ".join(r["prediction"].split())
                score = r.get("em", r.get("judge"))
                sample = found.setdefault((r["seed"], r["id"]), {
                    "question": r["question"], "answers": " / ".join(r["answers"]), "said": []
                })  # fmt: skip
                sample["said"].append({
                    "run": label, "method": r["method"], "text": said if len(said) <= LONGEST else f"{said[:LONGEST]} …",
                    "right": None if score is None else score >= (r.get("objectives") or run.config.get("objectives") or 1),
                })  # fmt: skip
    most = max((len(s["said"]) for s in found.values()), default=0)
    whole = [s for s in found.values() if len(s["said"]) == most]
    return [whole[i * len(whole) // SAMPLES] for i in range(SAMPLES)] if len(whole) > SAMPLES else whole


def markdown(parts: Sequence[Mapping[str, Any]]) -> str:
    """All tables of the page as Markdown."""
    out = []
    for part in parts:
        out += [f"## {in_markdown(part['title'])}", "", in_markdown(part["protocol"]), ""]
        for grid in (*part["before"], *part["after"]):
            out += [f"### {in_markdown(grid.title)}", "", *([in_markdown(grid.note), ""] if grid.note else [])]
            out.append(_row(grid.columns))
            out.append("|" + "---|" * grid.left + "---:|" * (len(grid.columns) - grid.left))
            out += [*map(_row, grid.rows), ""]
    return "\n".join(out)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(in_markdown, cells)) + " |"


# pictures ----------------------------------------------------------------------------------------------------------------


def _pictures(by: Mapping[str, Run], rows: Sequence[Mapping], metric: str, name: str) -> Iterator[dict]:
    """{"title", "note", "alt", "source", "wide"} of every picture that has something to show."""

    def made(title: str, note: str, panels: Mapping[str, Sequence[Line]], x: str, **how: Any) -> dict:
        return _picture(title, note, panels, x, how.pop("y", name), **how)

    bars = "Bars: 95 % intervals."
    step = "step" if "objectives" in next(iter(by.values())).config else "question"
    if any(r["found"].get("state_bytes") for r in rows):
        yield made(f"{name} against what is kept", f"State between reading and asking, in bytes: text, or Δ. {bars}",
                   _points(rows, metric, "state_bytes"), "bytes kept of an episode between reading and asking",
                   scale="log")  # fmt: skip
    if any(r["found"].get("prompt_tokens") for r in rows):
        yield made(f"{name} against tokens in the prompt", f"To the right: more text stands in every {step}'s prompt. {bars}",
                   _points(rows, metric, "prompt_tokens"), f"tokens in a {step}'s prompt, mean", scale="log")  # fmt: skip
    answers = {label: [r for r in run.answers if r.get(metric) is not None] for label, run in by.items()}
    told = {
        label: [r for r in some if r.get("position") is not None and r.get("category") not in UNTOLD]
        for label, some in answers.items()
    }
    if any(told.values()):
        cuts = np.linspace(0, 1, PLACES + 1)
        bins = {label: bins_of([r["position"] for r in some], cuts) for label, some in told.items() if some}
        ticks = [f"{a:.0%} to\n{b:.0%}" for a, b in zip(cuts, cuts[1:])]
        yield made(f"{name} against the evidence's place", "Left: told early in the stream, to be remembered longest. Shade: "
                   f"tmem's 95 % interval. {_each(told, bins, PLACES)}", _means(told, bins, metric), "place in the stream",
                   ticks=ticks)  # fmt: skip
    sessions = [r["sessions"] for some in answers.values() for r in some] if step == "question" else []
    if len(set(sessions)) > 1:
        ticks, flat = places(sessions)
        rest = iter(flat)
        bins = {label: [next(rest) for _ in some] for label, some in answers.items() if some}
        yield made(f"{name} against the number of sessions", "Sessions of the whole stream. Shade: tmem's 95 % interval. "
                   f"{_each(answers, bins, len(ticks))}", _means(answers, bins, metric), "sessions", ticks=ticks)  # fmt: skip
    probes = {label: some for label, run in by.items() if (some := _probes(run))}
    if probes:
        last = max(p["write"] for some in probes.values() for p in some)
        ticks, flat = places([p["write"] for some in probes.values() for p in some])
        rest = iter(flat)
        bins = {label: [next(rest) for _ in some] for label, some in probes.items()}
        panels = {
            label: [
                *_curve("held", some, bins[label], "recalled", band=True),
                *_curve("leaked", *_asked(some, bins[label]), "leaked"),
            ]
            for label, some in probes.items()
        }  # fmt: skip
        yield made("Writes that stuck", "Share of pairs that a paraphrase brings back straight after their write, and that are "
                   f"said of another person as well, over an episode's writes ({last} at most). Shade: 95 % interval.", panels,
                   "write of the episode", ticks=ticks, y="share of pairs", top=1)  # fmt: skip


def _picture(title: str, note: str, panels: Mapping[str, Sequence[Line]], x: str, y: str, **how: Any) -> dict:
    return {"title": title, "note": note, "alt": f"{title}: {note}", "source": drawn(panels, x, y, **how),
            "wide": len(panels) > 1}  # fmt: skip


def _points(rows: Sequence[Mapping], metric: str, cost: str) -> dict[str, list[Line]]:
    panels: dict[str, list[Line]] = {}
    for r in rows:
        found = r["found"]
        if metric in found and found.get(cost) is not None:
            low, high = found[f"{metric}_ci"]
            panels.setdefault(r["run"], []).append(Line(r["method"], [found[cost]], [found[metric]], [low], [high]))
    return panels


def _means(rows: Mapping[str, Sequence[Mapping]], bins: Mapping[str, Sequence[int]], metric: str) -> dict[str, list[Line]]:
    """Per run a line for each method: means by bin."""
    panels = {}
    for label, of in bins.items():
        some = rows[label]
        panels[label] = []
        for method in dict.fromkeys(r["method"] for r in some):
            mine = [(r, b) for r, b in zip(some, of) if r["method"] == method]
            panels[label] += _curve(method, *map(list, zip(*mine)), metric, band=method == "tmem")
    return panels


def _curve(name: str, rows: Sequence[Mapping], bins: Sequence[int], key: str, band: bool = False) -> list[Line]:
    """The means of `key` by bin as one line, with intervals over episodes if `band`; nothing where there are no rows."""
    at = sorted(set(bins))
    if not at:
        return []
    mine = [[r for r, b in zip(rows, bins) if b == i] for i in at]
    cells = [bootstrap([float(r[key]) for r in some], [r["episode"] for r in some], n=500) for some in mine]
    mean, low, high = map(list, zip(*cells))
    for i, some in enumerate(mine):
        if len({r["episode"] for r in some}) == 1:  # shows no spread, which is not certainty
            low[i] = high[i] = float("nan")
    return [Line(name, at, mean, low, high) if band else Line(name, at, mean)]


def _each(rows: Mapping[str, Sequence[Mapping]], bins: Mapping[str, Sequence[int]], count: int) -> str:
    """How many questions there are at each place, those of all runs together."""
    at: list[set] = [set() for _ in range(count)]
    for label, of in bins.items():
        for r, b in zip(rows[label], of):
            at[b].add((r["seed"], r["id"]))
    return f"Questions at each place: {', '.join(str(len(s)) for s in at)}."


def _probes(run: Run) -> list[dict]:
    """The probes of the first method that has any (those that write share their rollout), with episode and write, from 1 on."""
    found: dict[str, list[dict]] = {}
    for r in run.readings:
        for i, w in enumerate(r.get("log", {}).get("writes", ()), 1):
            found.setdefault(r["method"], []).extend(
                {"seed": r["seed"], "episode": r["episode"], "write": i, **s} for s in w["stuck"]
            )
    return next((some for some in found.values() if some), [])


def _asked(probes: Sequence[Mapping], bins: Sequence[int]) -> tuple[list, list]:
    """Those that were asked about another person, too."""
    both = [(p, b) for p, b in zip(probes, bins) if p["other"] is not None]
    return [p for p, _ in both], [b for _, b in both]


# the number of questions asked at once -----------------------------------------------------------------------------------


def sweeps(runs: Sequence[Run]) -> list[dict]:
    """Searches that differ in the number of questions asked at once, as curves: a part for each protocol that is else the same.

    No ranking: with more questions a score can be higher and a context is longer.
    """
    out = []
    for family in grouped([r for r in runs if r.results["task"] == "search"], "family"):
        if len({run.config["objectives"] for run in family}) > 1:
            out.append(_sweep(sorted(family, key=lambda run: run.config["objectives"])))
    return out


def _sweep(runs: Sequence[Run]) -> dict:
    metrics = [m for m in ("em", "f1", "mem1_f1") if any(m in f for run in runs for f in run.methods.values())]
    # Runs of one model and preset are points of one curve.
    keys = {(run.model, str(run.config.get("preset"))): run for run in runs}
    labels = dict(zip(keys, named(list(keys.values()))))
    curves: dict[str, dict[str, list[tuple[int, Mapping]]]] = {}
    for run in runs:
        panel = curves.setdefault(labels[run.model, str(run.config.get("preset"))], {})
        for method, f in run.methods.items():
            panel.setdefault(method, []).append((run.config["objectives"], f))
    rows = [
        [label, method, str(n), *(grids.interval(f, m) for m in metrics), f"{f['n']}",
         grids.cost("peak_tokens", f.get("peak_tokens"))]
        for label, panel in curves.items() for method, points in panel.items() for n, f in points
    ]  # fmt: skip
    columns = ["run", "method", "at once", *(f"sum of {METRICS[m][0]}" for m in metrics), "sets", "longest, tokens"]
    soft = [row[1] in SCALE for row in rows]
    note = "Longest: a prompt with what was generated after it."
    grid = grids.Grid("By questions at once", columns, rows, note, soft=soft)
    pictures = [
        _picture(f"Sum of {METRICS[m][0]} against questions at once", "Sums over a set. Shade: tmem's 95 % interval.",
                 _over(curves, m, f"{m}_ci"), "questions asked at once", f"sum of {METRICS[m][0]}", scale="doubling")
        for m in metrics[:1]
    ] + [
        _picture("Longest context against questions at once", "The longest prompt with what was generated after it.",
                 _over(curves, "peak_tokens"), "questions asked at once", "tokens", scale="doubling")
    ]  # fmt: skip
    first = runs[0].config
    return {
        "title": f"{TASKS['search']}: against the number of questions at once",
        "before": [], "pictures": pictures, "after": [grid],
        "protocol": f"Data {first.get('data')} ({first.get('data_blake2b')}), {first.get('context')} tokens of text in a "
        "prompt; the sets, the turns and the tokens of an answer change with the number of questions. A curve, no ranking.",
    }  # fmt: skip


def _over(curves: Mapping[str, Mapping[str, Sequence]], key: str, interval: str | None = None) -> dict[str, list[Line]]:
    panels: dict[str, list[Line]] = {}
    for label, panel in curves.items():
        for method, points in panel.items():
            if some := [(n, f) for n, f in points if f.get(key) is not None]:
                bounds = [f[interval] for _, f in some] if interval else []
                panels.setdefault(label, []).append(
                    Line(method, [n for n, _ in some], [f[key] for _, f in some], *map(list, zip(*bounds)))
                )
    return panels
