"""A run of `tmem eval` without its texts, to pass on where a benchmark's licence does not let its texts be passed on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.runs import read
from ..files.folders import alone, atomic_file
from ..files.objects import encoded, write_json

NAMES = ("method", "episode", "read", "id", "kind", "category")  # the strings that stay
NUMBERS = ("loss", "norm")  # of a write


@alone("out")
def strip(run: Path, out: Path) -> None:
    """Write `run`'s results.json, answers.jsonl and readings.jsonl to the folder `out`, which `tmem report` reads as the run.

    Of a row only NAMES and numbers stay, whatever else it holds: no question, answer, prediction, passage, pair or transcript.
    A judge's scores move from verdicts.jsonl into the answers. `out` may not hold results: FileExistsError. Raises
    FileNotFoundError where `run` holds no results or no answers, ValueError for a broken file.
    """
    if (out / "results.json").exists():
        raise FileExistsError(f"strip: {out} already holds results; give a folder of its own.")
    found = read(run)
    if not found.answers:
        raise FileNotFoundError(f"strip: {run} holds no answers.jsonl; results.json can be passed on as it is.")
    _write(out / "answers.jsonl", found.answers)
    _write(out / "readings.jsonl", found.readings)
    judge = found.results.get("judge")  # its reason may quote a reply
    write_json(out / "results.json", found.results | ({"judge": {**judge, "why": None}} if judge else {}))


def without_texts(row: Mapping[str, Any]) -> dict:
    """A line of answers.jsonl or readings.jsonl without texts; tmem.evaluation.summary.summarise makes the same of it."""
    kept = {k: v for k, v in row.items() if k in NAMES or v is None or isinstance(v, (int, float))}
    return kept | ({"log": {"writes": [_emptied(w) for w in row["log"]["writes"]]}} if "log" in row else {})


def _emptied(write: Mapping[str, Any]) -> dict:
    """One write: an empty list for each pair, and what came of each probe. other: null where nobody else was asked about."""
    return {
        "pairs": [[] for _ in write["pairs"]],
        "dropped": write["dropped"],
        **{k: write[k] for k in NUMBERS if k in write},
        "undone": bool(write["undone"]),
        "stuck": [
            {"recalled": s["recalled"], "other": None if s["other"] is None else True, "leaked": s["leaked"]}
            for s in write["stuck"]
        ],
    }


def _write(file: Path, rows: Sequence[Mapping]) -> None:
    with atomic_file(file) as work:
        work.write_bytes(encoded("".join(json.dumps(without_texts(r), ensure_ascii=False) + "\n" for r in rows)))
