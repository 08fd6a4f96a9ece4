"""A run of `tmem eval` without its texts, to pass on where a benchmark's licence does not let its texts be passed on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .folders import atomic_file
from .grading import scored
from .journal import read_jsonl
from .report import write_json

NAMES = ("method", "episode", "read", "id", "kind", "category")  # the strings that stay
WRITE = ("loss", "norm")  # the numbers of a write


def strip(run: Path, out: Path) -> None:
    """Write `run`'s results.json, answers.jsonl and readings.jsonl to the folder `out`, which `tmem report` reads as the run.

    Of a row only NAMES and numbers stay, whatever else it holds: no question, answer, prediction, passage, pair or transcript.
    A judge's scores move from verdicts.jsonl into the answers. `out` may not hold results: FileExistsError. Raises
    FileNotFoundError where `run` holds none of its three files, ValueError for a broken line.
    """
    if (out / "results.json").exists():
        raise FileExistsError(f"strip: {out} already holds results; give a folder of its own.")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    answers = scored(read_jsonl(run / "answers.jsonl"), run)
    _write(out / "answers.jsonl", answers, without_texts)
    _write(out / "readings.jsonl", read_jsonl(run / "readings.jsonl"), without_texts)
    write_json(out / "results.json", results)


def without_texts(row: Mapping[str, Any]) -> dict:
    """A line of answers.jsonl or readings.jsonl without texts. Of what was written the numbers stay, see `write`; again the
    same when done twice."""
    kept = {k: v for k, v in row.items() if k in NAMES or v is None or isinstance(v, (int, float))}
    if "log" in row:
        kept["log"] = {"writes": [write(w) for w in row["log"]["writes"]]}
    return kept


def write(entry: Mapping[str, Any]) -> dict:
    """One write in numbers. pairs: how many. stuck: of each pair whether a paraphrase brought it back (`recalled`) and whether
    it was said of another person (`leaked`; None where nobody else was asked about)."""
    pairs = entry["pairs"]
    return {
        "pairs": pairs if isinstance(pairs, int) else len(pairs),
        "dropped": entry["dropped"],
        **{k: entry[k] for k in WRITE if k in entry},
        "undone": bool(entry["undone"]),
        "stuck": [
            {"recalled": s["recalled"], "leaked": s["leaked"] if s.get("other", "asked") is not None else None}
            for s in entry["stuck"]
        ],
    }


def _write(file: Path, rows: list[dict], change: Callable[[Mapping], dict]) -> None:
    with atomic_file(file) as work:
        work.write_text("".join(json.dumps(change(r), ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
