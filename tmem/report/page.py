"""`tmem report`: a training run, finished or not, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files.folders import atomic_file
from ..files.objects import encoded, parsed, read_object
from ..files.shapes import check
from ..rl.record import after_warm, phases_of, read_run
from ..tasks.names import METRICS
from .figure import figure

Rows = Sequence[Mapping[str, Any]]

PHASES = {"base": "as it came", "warm": "warm start", "rl": "RL", "sft": "control"}
MODES = {"greedy": "greedy", "sampled": "T=1"}
# Columns of the table of phases: field of metrics.jsonl, heading, digits.
COLUMNS = (
    ("f1", "F1", 2), ("em", "EM", 2), ("intrusion", "intrusions", 2), ("recall", "gold facts written", 2),
    ("grounded", "pairs in the text", 2), ("copied", "questions copied", 2), ("pairs_per_write", "pairs per write", 1),
    ("dropped", "lines dropped", 1), ("norm", "‖ΔW‖", 1),
)  # fmt: skip
# The shapes of run.json and of episodes/*.json.
SETTINGS = {
    "preset": str, "model": str,
    "TrainConfig": {"reward": str, "rl_steps": int, "rl_episodes": int, "eval_episodes": int, "seed": int, "task": str,
                    "eval_split": str},
}  # fmt: skip
EPISODES = [{
    "id": str, "questions": [{"text": str, "answers": [str], "said": str}],
    "writes": [{"segment": str, "pairs": [[str, str]], "loss": [(float, None), (float, None)], "norm": (float, None),
                "dropped": {str: int}, "undone": str}],
}]  # fmt: skip
AROUND = 3  # "first" and "now" in the table of checks are means of so many steps
SAMPLES = 4  # episodes shown


@dataclass(frozen=True)
class Chart:
    """A picture of RL's steps. lines: (field, name); phase: whose rows it is drawn of."""

    title: str
    lines: tuple[tuple[str, str], ...]
    note: str
    log: bool = False
    limit: float | None = None  # drawn dashed
    phase: str = "rl"


SUPERVISED = (
    ("loss", "passages"), ("read_loss", "questions beside passages"), ("recall_loss", "questions"),
    ("keep_loss", "plain requests"),
)  # fmt: skip


def charts(drift: float) -> tuple[Chart, ...]:
    return (
        Chart("Reward", (("reward", "mean"), ("reward_std_in_group", "standard deviation in a group")),
              "Mean over rollouts at T=1. Advantages are made from the differences inside a group."),
        Chart("Reward of two halves of the questions", (("split_half", "correlation within groups"),),
              "At 0 or below, what one half of the questions says of a rollout the other half does not confirm: noise."),
        Chart("Groups without an advantage",
              (("dead_groups", "dead"), ("resampled", "drawn again"), ("skipped_groups", "no memory")),
              "Groups whose rollouts all got the same reward; groups drawn again; groups left out for lack of memory."),
        Chart("Pairs per write", (("pairs_per_write", "pairs"),),
              "If the number of pairs rises and the reward does not, the writes are exploding."),
        Chart("What the pairs say", (("grounded", "answer is in the text"), ("recall", "gold facts written"),
                                     ("copied", "question copied with a guess")), "Shares."),
        Chart("What is lost in writing", (("dropped", "lines dropped"), ("empty", "writes without a pair"),
                                          ("cut", "writes cut off")), "Per episode and write."),
        Chart("Recall of own pairs", (("held", "recalled in a paraphrase"), ("leaked", "given for another person")),
              "Shares, asked straight after the write, of a step's first rollouts."),
        Chart("Loss of own pairs", (("own", "nats per answer token"),), "After learning."),
        Chart("‖ΔW‖", (("norm", "at the end of an episode"),), "Of all layers together."),
        Chart("Δ on neutral text", (("neutral_kl", "KL(θ0+Δ ‖ θ0)"),), "Nats per token. Watched, never trained on."),
        Chart("θ0 on neutral text", (("neutral_nll", "nats per token"),), "What training costs in general ability."),
        Chart("KL to θ0 before RL", (("kl", "k3 per token, same Δ"),), "0 where rl_kl is 0."),
        Chart("Entropy", (("entropy", "nats per token"),), "Of the tokens that were sampled."),
        Chart("Trainer against sampler", (("dlogp", "mean"), ("dlogp_worst_segment", "worst action"),
                                          ("dlogp_worst_token", "worst token")),
              "|Δ log p|. Training warns of an action above the dashed line.", log=True, limit=drift),
        Chart("Gradient norm", (("grad_norm", "before clipping"),), ""),
        Chart("Ratio", (("ratio", "mean"), ("clipped", "share clipped")), "One update a batch: 1 and 0 apart from rounding."),
        Chart("Supervised loss, warm start", SUPERVISED, "Nats per token.", phase="warm"),
        Chart("Supervised loss, control", SUPERVISED, "Nats per token.", phase="sft"),
    )  # fmt: skip


@dataclass(frozen=True)
class Guard:
    """A known way for a run to fail: the field that shows it, and the rule by which it is reported."""

    what: str
    field: str
    rule: str
    broken: Callable[[float, float], bool]  # (first, now)


def guards(drift: float, groups: int) -> tuple[Guard, ...]:
    return (
        Guard("questions copied into pairs with a guessed answer", "copied", "more than 0.05 above the first",
              lambda a, b: b > a + 0.05),
        Guard("pairs whose answer is not in the text", "grounded", "more than 0.1 below the first", lambda a, b: b < a - 0.1),
        Guard("writes without a pair", "empty", "more than 0.1 above the first, or than half of all writes",
              lambda a, b: b > min(a + 0.1, 0.5)),
        Guard("pair explosion", "pairs_per_write", "more than half above the first", lambda a, b: b > 1.5 * a),
        Guard("writes cut off by the token limit", "cut", "more than 0.1 above the first, or than half of all writes",
              lambda a, b: b > min(a + 0.1, 0.5)),
        Guard("Δ blow-up", "norm", "more than half above the first", lambda a, b: b > 1.5 * a),
        Guard("updates undone", "rolled_back", "more than the first", lambda a, b: b > a),
        Guard("Δ changes neutral text", "neutral_kl", "more than twice the first", lambda a, b: b > 2 * a),
        Guard("general ability lost", "neutral_nll", "more than 0.2 nats above the first", lambda a, b: b > a + 0.2),
        Guard("nothing left to learn from", "dead_groups", f"more than half of {groups} groups", lambda a, b: b > groups / 2),
        Guard("reward that does not repeat itself: noise is trained on", "split_half", "0 or less", lambda a, b: b <= 0),
        Guard("entropy collapse", "entropy", "less than a third of the first", lambda a, b: b < a / 3),
        Guard("sampler and trainer disagree", "dlogp_worst_segment", f"above {drift:g}", lambda a, b: b > drift),
        Guard("steps not taken", "update_skipped", "any", lambda a, b: b > 0),
    )  # fmt: skip


def page(folder: Path, file: Path) -> str:
    """Write the report of the run in `folder` to `file`; returns the sentence it opens with.

    Raises FileNotFoundError where `folder` holds no run, ValueError for a file of it that is broken.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not (folder / "run.json").is_file() or not (folder / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{folder} holds no run of tmem train (run.json and metrics.jsonl); name the --out of one.")
    rows, settings = read_run(folder), read_object(folder / "run.json")
    check(settings, SETTINGS, str(folder / "run.json"))
    train = settings["TrainConfig"]
    steps = [r for r in rows if r["phase"] == "rl"]
    drift = steps[-1].get("drift") or 0.0 if steps else 0.0  # older runs have none
    opening = headline(rows, train)
    environment = Environment(
        loader=PackageLoader("tmem.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("report.html").render(
        title=f"tmem train --preset {settings['preset']}", headline=opening, settings=settings,
        columns=COLUMNS, phases=phase_table(rows), pictures=list(pictures(rows, charts(drift))),
        guards=list(verdicts(steps, guards(drift, train["rl_episodes"]))), around=AROUND, steps=len(steps),
        samples=samples(folder), after_warm=after_warm(*_lengths(train)),
    )  # fmt: skip
    with atomic_file(file) as work:
        work.write_bytes(encoded(text))
    return opening


def _lengths(train: Mapping[str, Any]) -> tuple[int, int]:
    """Steps of RL and of the control, as a run's settings give them; very old ones do not name the control's."""
    return train["rl_steps"], train.get("control_steps", 0)


def headline(rows: Rows, train: Mapping[str, Any]) -> str:
    """How far the run is, and what the held-out score did, in a sentence or two."""
    score = train["reward"]
    greedy = [r for r in rows if r["phase"].startswith("eval_") and r["mode"] == "greedy"]
    found = {r["phase"][5:]: r for r in greedy if r.get(score) is not None}
    seen = [p for p in PHASES if any(r["phase"] in (p, f"eval_{p}") for r in rows)]
    finished = {r["phase"] for r in rows if r.get("mode") == "sampled"} >= {f"eval_{p}" for p in phases_of(*_lengths(train))}
    if finished:
        state = "Finished."
    elif not seen:
        state = "Not begun."
    else:
        done = sum(r["phase"] == seen[-1] for r in rows)
        of = f", step {done} of {train['rl_steps']}" if seen[-1] == "rl" else f", step {done}" if done else ""
        state = f"Unfinished: {PHASES[seen[-1]]}{of}."
    name = METRICS[score][0] if score in METRICS else score
    values = ", ".join(f"{PHASES[p]} {found[p][score]:.2f}" for p in PHASES if p in found)
    return f"{state} Held-out {name}, greedy, {train['eval_episodes']} episodes: {values}." if values else state


def phase_table(rows: Rows) -> list[dict]:
    """Evaluations on held-out episodes: {"phase", "mode", "cells": one text for each of COLUMNS}."""
    return [
        {"phase": PHASES[r["phase"][5:]], "mode": MODES[r["mode"]],
         "cells": [f"{r[key]:.{digits}f}" if r.get(key) is not None else "" for key, _, digits in COLUMNS]}
        for r in rows if r["phase"].startswith("eval_")
    ]  # fmt: skip


def verdicts(steps: Rows, rules: Iterable[Guard]) -> Iterator[dict]:
    """A row for each guard: its value at first and now, means of AROUND steps, and whether its rule is broken."""
    for guard in rules:
        values = [float(r[guard.field]) for r in steps if r.get(guard.field) is not None]
        row = {"what": guard.what, "field": guard.field, "rule": guard.rule, "first": "", "now": "", "verdict": "not measured"}
        if values:
            first, now = float(np.mean(values[:AROUND])), float(np.mean(values[-AROUND:]))
            row.update(first=f"{first:.3g}", now=f"{now:.3g}", verdict="look" if guard.broken(first, now) else "fine")
        yield row


def samples(folder: Path) -> list[dict]:
    """The first episodes side by side, greedy, before and after: what was read, what each phase wrote and answered. While RL
    runs, the last column is what it wrote at the last step shown.

    [{"id", "columns": {phase: heading}, "writes": [{"text", "by": {phase: write}}], "questions": [{"text", "answers", "by"}]}]
    """
    found, headings = {}, dict(PHASES)
    for phase in ("base", "warm", "rl"):
        episodes = _episodes(folder, f"{phase}-greedy")
        if episodes is None and phase == "rl" and (now := _episodes(folder, "rl-now")) is not None:
            episodes, headings["rl"] = now["episodes"], f"{PHASES['rl']}, step {now['step']},"
        if episodes is not None:
            found[phase] = episodes[:SAMPLES]
    out = []
    for i in range(max(map(len, found.values()), default=0)):
        by = {phase: episodes[i] for phase, episodes in found.items() if i < len(episodes)}
        first = next(iter(by.values()))
        out.append({
            "id": first["id"], "columns": {phase: headings[phase] for phase in by},
            "writes": [
                {"text": write["segment"], "by": {p: _write(e["writes"][i]) for p, e in by.items() if i < len(e["writes"])}}
                for i, write in enumerate(first["writes"])
            ],
            "questions": [
                {"text": q["text"], "answers": " / ".join(q["answers"]),
                 "by": {p: _answer(e["questions"][j]) for p, e in by.items() if j < len(e["questions"])}}
                for j, q in enumerate(first["questions"])
            ],
        })  # fmt: skip
    return out


def _episodes(folder: Path, name: str) -> Any:
    """What `episodes/NAME.json` of a run holds; None where there is no such file."""
    file = folder / "episodes" / f"{name}.json"
    if not file.is_file():
        return None
    try:
        found = parsed(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); remove it and the page is made without it") from error
    check(found, {"step": int, "episodes": EPISODES} if name == "rl-now" else EPISODES, str(file))
    return found


def _write(write: Mapping[str, Any]) -> dict:
    text = write["segment"].casefold()
    pairs = [{"question": q, "answer": a, "grounded": a.casefold() in text} for q, a in write["pairs"]]
    before, after = write["loss"]
    note = f"loss {_number(before)} → {_number(after)}, ‖ΔW‖ {_number(write['norm'], 1)}" if pairs else ""
    dropped = ", ".join(f"{n} {kind}" for kind, n in write["dropped"].items() if n)
    return {"pairs": pairs, "note": "; ".join(filter(None, (note, dropped and f"dropped: {dropped}", write["undone"])))}


def _number(value: float | None, digits: int = 2) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _answer(question: Mapping[str, Any]) -> dict:
    said = " ".join(question["said"].split())
    return {"said": said, "right": said.strip(" .").casefold() in {a.casefold() for a in question["answers"]}}


# pictures ----------------------------------------------------------------------------------------------------------------


def pictures(rows: Rows, wanted: Iterable[Chart]) -> Iterator[dict]:
    """{"title", "note", "alt", "source": a data: address} for every chart that has something to show, then time."""
    for chart in wanted:
        mine = [r for r in rows if r["phase"] == chart.phase]
        lines = [(name, [(r["step"], r[key]) for r in mine if r.get(key) is not None]) for key, name in chart.lines]
        lines = [(name, points) for name, points in lines if points]
        if lines:
            ends = "; ".join(f"{name} {points[0][1]:.3g} → {points[-1][1]:.3g}" for name, points in lines)
            yield {"title": chart.title, "note": f"{chart.note} {ends}.", "source": _drawn(partial(_curves, chart, lines)),
                   "alt": f"{chart.title} over {len(mine)} steps: {ends}"}  # fmt: skip
    steps = [r for r in rows if r["phase"] == "rl"]
    parts = list(dict.fromkeys(k for r in steps for k in r if k.startswith("seconds_")))
    if steps and parts:
        shares = {p.removeprefix("seconds_"): float(np.mean([r.get(p) or 0.0 for r in steps])) for p in parts}
        said = ", ".join(f"{name} {value:.1f}" for name, value in shares.items())
        yield {"title": "Seconds of a step", "note": f"Means: {said}.", "alt": f"seconds of a step, by part: {said}",
               "source": _drawn(partial(_stacked, steps, parts))}  # fmt: skip


def _curves(chart: Chart, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], axes: Any) -> None:
    for i, (name, points) in enumerate(lines):
        at, values = np.array(points, float).T
        half = len(values) // 16
        smooth = [values[max(0, j - half) : j + half + 1].mean() for j in range(len(values))]
        axes.plot(at, values, ".", color=f"C{i}", alpha=0.4, markersize=4)
        axes.plot(at, smooth, color=f"C{i}", linewidth=1.8, label=name)
    if chart.log and all(v > 0 for _, points in lines for _, v in points):
        axes.set_yscale("log")
    else:
        values = [v for _, points in lines for _, v in points]
        if 0 <= min(values) < max(values) / 2 or max(values) == 0:  # else what changes would be hard to see
            axes.set_ylim(bottom=0)
    if chart.limit is not None:
        axes.axhline(chart.limit, color="#999999", linestyle="--", linewidth=1)
    axes.grid(axis="y")
    if len(lines) > 1:
        axes.legend(fontsize=8, loc="best")


def _stacked(steps: Rows, parts: Sequence[str], axes: Any) -> None:
    below = np.zeros(len(steps))
    for i, part in enumerate(parts):
        seconds = np.array([r.get(part) or 0.0 for r in steps])
        name = part.removeprefix("seconds_")
        axes.bar([r["step"] for r in steps], seconds, bottom=below, width=0.9, color=f"C{i}", label=name)
        below += seconds
    axes.legend(fontsize=7, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def _drawn(draw: Callable[[Any], None]) -> str:
    """What `draw` puts on axes, as the address of an SVG inside the page."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        file = Path(folder) / "chart.svg"
        with figure(file, (4.6, 2.6)) as picture:
            axes = picture.add_subplot()
            draw(axes)
            axes.set_xlabel("step")
            axes.xaxis.get_major_locator().set_params(integer=True)
        return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()
