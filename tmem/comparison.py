"""`tmem report` of evaluations: runs of `tmem eval` joined into one HTML page and one Markdown table, with pictures."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .folders import atomic_file
from .grading import scored
from .journal import read_jsonl
from .report import METRICS, TASKS, bootstrap, figure

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# One colour for a method in every picture; grey for those that set the scale.
COLOURS = {
    "tmem": "#0072B2", "tmem+retrieval": "#56B4E9", "pairs": "#009E73", "retrieval": "#E69F00", "dense": "#B8860B",
    "full": "#D55E00", "summary": "#CC79A7", "notes": "#882255", "mem1": "#882255", "oracle": "#222222", "none": "#999999",
    "constant": "#BBBBBB",
}  # fmt: skip
# What must agree for scores to stand in one table.
PROTOCOL = (
    "data_blake2b", "limit", "seed", "seeds", "split", "difficulty", "known", "adversarial", "episodes", "objectives", "turns",
)  # fmt: skip
PUBLISHED = ("method", "metric", "value", "protocol", "source")
BINS = 5  # of the evidence's place in the stream
SAMPLES = 12  # questions shown


@dataclass(frozen=True)
class Run:
    """One run of `tmem eval`: results.json and its answers."""

    folder: Path
    results: Mapping[str, Any]
    answers: Sequence[Mapping[str, Any]]

    @property
    def model(self) -> str:
        return str(self.results["config"]["model"])

    @property
    def protocol(self) -> tuple:
        config = self.results["config"]
        return (self.results["task"], *(str(config.get(k)) for k in PROTOCOL))


def page(folders: Sequence[Path], file: Path) -> str:
    """Write the page to `file` and the tables beside it as Markdown; returns its first sentence.

    Raises FileNotFoundError for a folder without results, ValueError for one without answers yet or with a broken file.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    tables = joined([read(f) for f in folders])
    opening = "; ".join(t["headline"] for t in tables)
    environment = Environment(
        loader=PackageLoader("tmem"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("comparison.html").render(tables=tables, headline=opening)
    with atomic_file(file) as work:
        work.write_text(text, encoding="utf-8")
    with atomic_file(file.with_suffix(".md")) as work:
        work.write_text(markdown(tables), encoding="utf-8")
    return opening


def read(folder: Path) -> Run:
    """A run, finished or not."""
    file = folder / "results.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no results.json; name the --out of a `tmem eval`.")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); make it anew with tmem eval --resume") from error
    if not results.get("methods"):
        raise ValueError(f"{folder} holds no answers yet; go on with tmem eval --resume.")
    return Run(folder, results, scored(read_jsonl(folder / "answers.jsonl"), folder))


def joined(runs: Sequence[Run]) -> list[dict]:
    """What the page shows, a table for each protocol: runs of different data, limits or protocols are never ranked together."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.protocol, []).append(run)
    published = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
    return [_table(same, published.get(same[0].results["task"], [])) for same in groups.values()]


def _table(runs: Sequence[Run], published: Sequence[Mapping[str, str]]) -> dict:
    first = runs[0].results
    config = first["config"]
    metrics = [m for m in METRICS if any(m in found for r in runs for found in r.results["methods"].values())]
    rows = []
    for run in runs:
        for method, found in run.results["methods"].items():
            rows.append({
                "model": run.model, "method": method, "n": found["n"], "found": found,
                "scores": {m: _interval(found, m) for m in metrics},
                "costs": {k: f"{found[k]:,.0f}" for k in ("state_bytes", "prompt_tokens", "peak_tokens", "read_tokens",
                                                          "generated_tokens", "learned_tokens", "seconds")},
            })  # fmt: skip
    metric = metrics[0] if metrics else None
    best = max(rows, key=lambda r: r["found"].get(metric, 0.0)) if metric else None
    title = TASKS[first["task"]] + (", questions known beforehand" if config["known"] else "")
    headline = f"{title}: {best['method']} is first by {METRICS[metric][0]}, {best['scores'][metric]}" if best else title
    return {
        "title": title, "headline": headline, "config": config, "machine": first.get("machine", {}), "metrics": metrics,
        "names": {m: METRICS[m][0] for m in metrics}, "rows": rows, "metric": metric, "published": published,
        "kinds": _kinds(runs, metric), "differences": _differences(runs, metric),
        "pictures": list(_pictures(runs, rows, metric)) if metric else [], "samples": _samples(runs),
    }  # fmt: skip


def _interval(found: Mapping[str, Any], metric: str) -> str:
    if metric not in found:
        return ""
    low, high = found[f"{metric}_ci"]
    return f"{found[metric]:.3f} [{low:.3f}, {high:.3f}]"


def _kinds(runs: Sequence[Run], metric: str | None) -> dict:
    """{"columns": kinds, "rows": [(model, method, a score per kind)]} of the first metric."""
    kinds = sorted({k for r in runs for m in r.results["methods"].values() for k in m["by_kind"]})
    rows = []
    for run in runs:
        for method, found in run.results["methods"].items():
            scores = [found["by_kind"].get(k, {}).get(metric) for k in kinds]
            rows.append((run.model, method, ["" if s is None else f"{s:.3f}" for s in scores]))
    return {"columns": kinds, "rows": rows}


def _differences(runs: Sequence[Run], metric: str | None) -> list[tuple[str, str, str]]:
    """(model, pair of methods, difference with its interval), those with tmem."""
    out = []
    for run in runs:
        for pair, cell in run.results.get("differences", {}).get(metric, {}).items():
            if "tmem" in pair.split(" - "):
                out.append((run.model, pair, f"{cell['mean']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]"))
    return out


def _samples(runs: Sequence[Run]) -> dict:
    """Questions side by side under the first run's methods: evenly spaced, the same whatever the scores."""
    run = runs[0]
    methods = list(run.results["methods"])
    by: dict[tuple, dict[str, Mapping]] = {}
    for r in run.answers:
        by.setdefault((r["seed"], r["id"]), {})[r["method"]] = r
    whole = [found for found in by.values() if len(found) == len(methods)]
    chosen = [whole[i * len(whole) // SAMPLES] for i in range(SAMPLES)] if len(whole) > SAMPLES else whole
    return {
        "methods": methods,
        "rows": [
            {"question": next(iter(found.values()))["question"], "answers": " / ".join(next(iter(found.values()))["answers"]),
             "said": [{"text": found[m]["prediction"], "right": found[m].get("em", 0) == 1} for m in methods]}
            for found in chosen
        ],
    }  # fmt: skip


def markdown(tables: Sequence[Mapping[str, Any]]) -> str:
    """The tables of scores and costs as Markdown."""
    out = []
    for t in tables:
        config = t["config"]
        out += [
            f"## {t['title']}", "",
            f"Data {config['data'] or 'generated'}, {config['episodes']} episodes, seed {config['seed']}"
            f"{'' if config['seeds'] == 1 else ' and ' + str(config['seeds'] - 1) + ' more'}; mean and 95 % interval "
            "(bootstrap over episodes).", "",
            "| model | method | " + " | ".join(t["names"].values()) + " | n | kept, bytes | prompt, tokens | longest prompt | "
            "read | generated | learned | seconds |",
            "|---|---|" + "---:|" * (len(t["metrics"]) + 8),
        ]  # fmt: skip
        for r in t["rows"]:
            cells = [r["model"], r["method"], *r["scores"].values(), str(r["n"]), *r["costs"].values()]
            out.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
        if t["published"]:
            out += ["", "Published by others, by other protocols, not to be ranked with the above:", "",
                    "| method | metric | value | protocol | source |", "|---|---|---:|---|---|"]  # fmt: skip
            out += ["| " + " | ".join(p[k] for k in PUBLISHED) + " |" for p in t["published"]]
        out.append("")
    return "\n".join(out)


# pictures ----------------------------------------------------------------------------------------------------------------


def _pictures(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]], metric: str) -> Iterator[dict]:
    """{"title", "note", "alt", "source"} of every picture that has something to show."""
    name = METRICS[metric][0]

    def made(title: str, note: str, draw: Callable[[Any], None]) -> dict:
        return {"title": title, "note": note, "alt": f"{title}: {note}", "source": _drawn(draw)}

    yield made(f"{name} against tokens in the prompt", "Right: more text is shown with every question. Bars: 95 % intervals.",
               partial(_against, rows, metric, "prompt_tokens", "tokens of a question's prompt"))  # fmt: skip
    if any(r["found"]["state_bytes"] > 0 for r in rows):
        yield made(f"{name} against bytes kept", "What a method keeps of an episode once its text is gone.",
                   partial(_against, rows, metric, "state_bytes", "bytes kept per episode"))  # fmt: skip
    answers = [r for run in runs[:1] for r in run.answers if r.get(metric) is not None]
    placed = [r for r in answers if r.get("position") is not None]
    if placed:
        cuts = np.linspace(0, 1, BINS + 1)
        names = [f"{a:.0%} to {b:.0%}" for a, b in zip(cuts, cuts[1:])]
        yield made(f"{name} against the evidence's place", "Left: told early in the stream, to be remembered longest.",
                   partial(_binned, placed, metric, "position", cuts, names, "place in the stream"))  # fmt: skip
    counts = [r["sessions"] for r in answers]
    if len(set(counts)) > 1:
        cuts = np.unique(np.quantile(counts, np.linspace(0, 1, min(BINS, len(set(counts))) + 1)))
        names = [f"{a:.0f} to {b:.0f}" for a, b in zip(cuts, cuts[1:])]
        yield made(f"{name} against the stream's length", "Sessions of the stream.",
                   partial(_binned, answers, metric, "sessions", cuts, names, "sessions"))  # fmt: skip
    probed = [(run.model, m) for run in runs for m in run.results["methods"].values() if "stuck" in m]
    stuck = list(dict.fromkeys((model, m["stuck"], m["leaked"]) for model, m in probed))
    if stuck:
        note = "Pairs that a paraphrase brings back straight after the write (--probe), and those said for another person."
        yield made("Writes that stuck", note, partial(_stuck, stuck))


def _against(rows, metric: str, cost: str, label: str, axes: Any) -> None:
    models = list(dict.fromkeys(r["model"] for r in rows))
    for r in rows:
        found = r["found"]
        if metric not in found:
            continue
        low, high = found[f"{metric}_ci"]
        spread = [[max(0.0, found[metric] - low)], [max(0.0, high - found[metric])]]
        x = max(found[cost], 1)
        axes.errorbar([x], [found[metric]], yerr=spread, fmt="osD^v"[models.index(r["model"]) % 5],
                      color=COLOURS.get(r["method"], "#333333"), capsize=2, markersize=5, linewidth=1)  # fmt: skip
        axes.annotate(r["method"], (x, found[metric]), (4, 3), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.grid(axis="y")


def bins_of(values: Sequence[float], cuts: Sequence[float]) -> list[int]:
    """The bin of each value: [cuts[i], cuts[i + 1]), the last one closed."""
    return np.clip(np.searchsorted(cuts, values, side="right") - 1, 0, len(cuts) - 2).tolist()


def _binned(answers, metric: str, key: str, cuts: Sequence[float], names: Sequence[str], label: str, axes: Any) -> None:
    bins = bins_of([r[key] for r in answers], cuts)
    for method in dict.fromkeys(r["method"] for r in answers):
        mine = [[r for r, b in zip(answers, bins) if r["method"] == method and b == i] for i in range(len(names))]
        at = [i for i, rows in enumerate(mine) if rows]
        cells = [bootstrap([r[metric] for r in mine[i]], [r["episode"] for r in mine[i]], n=500) for i in at]
        colour = COLOURS.get(method, "#333333")
        axes.plot(at, [c[0] for c in cells], "o-", color=colour, label=method, markersize=3,
                  linewidth=2.4 if method == "tmem" else 1.2)  # fmt: skip
        if method == "tmem":
            axes.fill_between(at, [c[1] for c in cells], [c[2] for c in cells], color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(fontsize=6, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def _stuck(rows: Sequence[tuple[str, float, float | None]], axes: Any) -> None:
    at = np.arange(len(rows))
    axes.bar(at - 0.2, [held for _, held, _ in rows], 0.38, color=METRICS["f1"][1], label="held")
    axes.bar(at + 0.2, [leaked or 0.0 for *_, leaked in rows], 0.38, color=METRICS["intrusion"][1], label="leaked")
    axes.set_xticks(at, [model[-24:] for model, *_ in rows], fontsize=8)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    axes.grid(axis="y")


def _drawn(draw: Callable[[Any], None]) -> str:
    """What `draw` puts on axes, as the address of an SVG inside the page."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "chart.svg"
        with figure(file, (5.4, 3.4)) as picture:
            draw(picture.add_subplot())
        return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()
