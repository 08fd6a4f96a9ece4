"""Runs of `tmem eval` as `tmem report` reads them, and what makes two of them comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.journal import read_jsonl
from ..files.objects import read_object
from ..files.shapes import check
from ..tasks.names import METRICS, TASKS
from .config import PROTOCOL, SCALING, line
from .grading import scored
from .summary import WRITTEN

SCALE = ("oracle", "constant", "gold")  # methods that are no way of remembering: they show what scores there are to be had


# The shapes of files -----------------------------------------------------------------------------------------------------

MAYBE = (float, None)
_COSTS = ("state_bytes", *(f"{k}_tokens" for k in ("prompt", "peak", "read", "generated", "learned")), "flops", "seconds")


def _count(value: Any) -> Any:
    return {str: int} if isinstance(value, dict) else (int, None)


def _scored(found: Any) -> dict:
    """The shape of scores over "n" questions."""
    held = found if isinstance(found, dict) else {}
    scores = {key: shape for m in METRICS if m in held for key, shape in ((m, float), (f"{m}_ci", [float, float]))}
    return {"n": int, **scores}


def _method(found: Any) -> dict:
    """The shape of a method's part of results.json: a score has its interval, and who wrote says what."""
    held = found if isinstance(found, dict) else {}
    return {
        **_scored(found), "judged?": (int, None), **{f"{key}?": MAYBE for key in _COSTS},
        "by_kind?": {str: {str: MAYBE}}, "search?": {str: MAYBE}, "stuck?": MAYBE, "leaked?": MAYBE, "writes?": int,
        "answerable?": _scored, "abstained?": {str: MAYBE}, "lost?": int,
        **{key: shape for share in WRITTEN for key, shape in ((f"{share}?", float), (f"{share}_ci?", [float, float]))},
        "aggregates?": {str: {"types": {str: MAYBE}, "task_average": MAYBE, "overall": MAYBE, "abstention": MAYBE}},
        **({"pairs_per_write": float, "dropped": {str: int}, "rolled_back": int} if held.get("writes") else {}),
    }  # fmt: skip


def _probe(found: Any) -> dict:
    asked = isinstance(found, dict) and found.get("other") is not None
    return {"recalled": _share, "other": object, "leaked": _share if asked else object}


def _share(value: Any) -> type:
    return bool if isinstance(value, bool) else float


_DIFFERENCES = {str: {str: {"mean": float, "low": float, "high": float}}}
# What `tmem report` rests on, of results.json, answers.jsonl and readings.jsonl.
RESULTS = {
    "task": set(TASKS), "methods?": ({str: _method}, None), "machine?": dict,
    "config": {"model": str, "seed": int, "seeds?": (int, None), "episodes": int, "objectives?": (int, None),
               "turns?": (int, None), "settings?": (dict, None)},
    "asked?": {str: (str, None)},
    "differences?": _DIFFERENCES, "answerable_differences?": _DIFFERENCES,
    "judge?": ({"methods?": {str: {"judged?": (int, None)}}, "judged?": _count, "malformed?": _count, "unreachable?": _count,
                "spent?": ({"prompt_tokens?": int, "completion_tokens?": int, "cost?": MAYBE}, None)}, None),
}  # fmt: skip
_NAMES = {"seed": int, "method": str, "episode": str}
ANSWER = {
    **_NAMES, "id": str, "kind?": str, "question?": str, "prediction?": str, "answers?": [str], "objectives?": int,
    "sessions?": (int, None), "position?": MAYBE, "prompt_tokens?": float, "read_tokens?": float, "generated_tokens?": float,
    "seconds?": float, "abstained?": bool, **{f"{m}?": MAYBE for m in METRICS},
}  # fmt: skip
READING = {
    **_NAMES, "read?": str, "seconds?": float, "lost?": int, **{f"{share}?": float for share in WRITTEN},
    **{f"{k}?": float for k in ("state_bytes", "peak_tokens", "read_tokens", "generated_tokens", "learned_tokens")},
    "log?": {"writes": [{"pairs": list, "dropped": {str: int}, "undone": object, "stuck": [_probe]}]},
}  # fmt: skip
# What `--resume` needs besides.
_ADDED = ("prompt_tokens", "generated_tokens", "seconds")
_TEXTS = {"question": str, "prediction": str, "answers": [str]}
ANSWERED = {**ANSWER, **_TEXTS, "kind": str, "read": str, **dict.fromkeys(_ADDED, float)}
HAD_READ = {**READING, "read": str, **dict.fromkeys(("state_bytes", "peak_tokens", "seconds"), float)}


@dataclass(frozen=True)
class Run:
    """One run of `tmem eval`: results.json, and the rows of its answers and readings where they are there."""

    folder: Path
    results: Mapping[str, Any]
    answers: Sequence[Mapping[str, Any]] = ()
    readings: Sequence[Mapping[str, Any]] = ()

    @property
    def config(self) -> Mapping[str, Any]:
        return self.results["config"]

    @property
    def model(self) -> str:
        return str(self.config["model"])

    @property
    def called(self) -> str | None:
        """The data's own name, where they are not those that the task is named after."""
        return self.config.get("called")

    @property
    def notes(self) -> list[str]:
        """What is to be known of how its data were read."""
        found = self.results.get("notes")
        return [str(note) for note in found] if isinstance(found, list) else []

    @property
    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        return self.results["methods"]

    @property
    def judge(self) -> Mapping[str, Any]:
        return self.results.get("judge") or {}

    @property
    def protocol(self) -> tuple:
        """Runs with the same one share a table and a ranking."""
        return self._agrees(PROTOCOL)

    @property
    def family(self) -> tuple:
        """The protocol but for the number of questions asked at once, with as many turns for each."""
        n, turns = self.config.get("objectives"), self.config.get("turns")
        return *self._agrees([k for k in PROTOCOL if k not in SCALING]), turns / n if n and turns else None

    def _agrees(self, keys: Iterable[str]) -> tuple:
        judge = (str(self.judge.get("model")), bool(self.judge.get("plumbing")))
        return (self.results["task"], *(str(self.config.get(k)) for k in keys), *judge)


def read(folder: Path) -> Run:
    """A run, finished or not, with its rows or without them."""
    file = folder / "results.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no results.json; name the --out of a `tmem eval`.")
    results = read_object(file, task=str, config=dict)
    if results["task"] not in TASKS:
        raise ValueError(f"{file}: task is {results['task'][:40]!r}; expected one of {', '.join(TASKS)}.")
    if lacks := [k for k in ("model", "seed", "episodes") if k not in results["config"]]:
        raise ValueError(f"{file}: its config lacks {', '.join(lacks)}; expected the results.json that tmem eval wrote.")
    check(results, RESULTS, str(file))
    search = {"objectives": int} if results["task"] == "search" else {}
    check(results["config"], search, f"{file}, `config`")
    if not results.get("methods"):
        raise ValueError(f"{folder} holds no answers yet; go on with tmem eval --resume.")
    answer = ANSWER if search else {**ANSWER, "sessions": int}
    answers, readings = (
        read_jsonl(folder / name, shape) if (folder / name).is_file() else []
        for name, shape in (("answers.jsonl", _with_text(answer)), ("readings.jsonl", READING))
    )
    return Run(folder, results, scored(answers, folder), readings)


def _with_text(shape: dict) -> Any:
    """Of an answer that still has its texts."""
    whole = {**shape, **_TEXTS}
    return lambda row: whole if "question" in row else shape


def grouped(runs: Sequence[Run], by: str) -> list[list[Run]]:
    """The runs that agree in "protocol" or "family", in the order given."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(getattr(run, by), []).append(run)
    return list(groups.values())


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by names that differ: the model's, with the preset and then the folder where that is not enough."""
    models = ["/".join(Path(run.model).parts[-2:]) for run in runs]
    presets = [f"{m}, {run.config.get('preset')}" for m, run in zip(models, runs)]
    folders = [f"{p}, {run.folder.name}" for p, run in zip(presets, runs)]
    every = [f"{p} ({i})" for i, p in enumerate(folders, 1)]
    labels = next(some for some in (models, presets, folders, every) if len(set(some)) == len(some))
    return dict(zip(labels, runs))


def title(run: Run) -> str:
    """What a part is called."""
    n = run.config.get("objectives")
    at_once = "" if n is None else ", 1 question at a time" if n == 1 else f", {n} questions at once"
    known = ", questions known beforehand" if run.config.get("known") else ""
    return f"{run.called or TASKS[run.results['task']]}{at_once}{known}"


def protocol_line(run: Run) -> str:
    """One line that says what the scores of a part have in common."""
    config, first = run.config, run.config["seed"]
    data = f"data {config['data']} ({config.get('data_blake2b')})" if config.get("data") else "generated data"
    last = first + (config.get("seeds") or 1) - 1
    said = [
        data, f"{config['episodes']} episodes", f"seed {first}" if last == first else f"seeds {first} to {last}",
        *line(config),
        "each question shown while the history is read" if config.get("known") else "",
        *run.notes,
    ]  # fmt: skip
    return ", ".join(filter(None, said)) + "."
