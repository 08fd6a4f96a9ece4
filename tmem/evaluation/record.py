"""The files of one evaluation, as they grow: results.json, answers.jsonl and readings.jsonl.

A kill at any moment leaves them readable. A run that goes on reads what is there, and must have been asked for the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from ..agent.config import recorded, renamed
from ..files import objects
from ..files.folders import atomic_file
from ..files.journal import Journal
from ..files.objects import encoded, read_object
from ..files.shapes import check
from ..machine import peak_memory
from ..methods.methods import METHODS
from .config import SEARCH
from .runs import ANSWER, ANSWERED, HAD_READ

FILES = ("results.json", "answers.jsonl", "readings.jsonl")


def must_be_new(out: Path, resume: bool) -> None:
    """Raises FileExistsError where `out` holds results that nobody asked to go on with."""
    if any((out / name).exists() for name in (*FILES, "verdicts.jsonl")) and not resume:
        raise FileExistsError(f"eval: {out} already holds results; add to them with --resume, or give another --out.")


class Record:
    """`results`, `answers` and `readings`, in a folder that is `out`; `write` makes results.json anew, now and then.

    Raises ValueError where `out` holds a run of other settings or without its texts, FileNotFoundError if there is nothing to
    resume; nothing is written then.
    """

    def __init__(self, out: Path, results: dict, *, resume: bool):
        self.out, self.results = out, results
        self._open(resume)
        self.answers, self.readings = Journal(out / "answers.jsonl", ANSWERED), Journal(out / "readings.jsonl", HAD_READ)
        self._before, self._start = len(self.answers.rows), time.perf_counter()
        self.write = Seldom(self._write)

    def begin(self, slots: int, summary: Callable[[], dict]) -> None:
        """Before the first `write`. slots: episodes at once. summary: what follows from the rows."""
        self._slots, self._summary = slots, summary

    def answered(self, method: str) -> set[tuple[int, str]]:
        """Seed and id of every question that a method has answered."""
        return {(r["seed"], r["id"]) for r in self.answers.rows if r["method"] == method}

    def read(self, method: str) -> set[tuple[int, str]]:
        """Seed and id of every episode that a method has read."""
        return {(r["seed"], r["read"]) for r in self.readings.rows if r["method"] == method}

    def write_log(self, texts: list[str]) -> None:
        """episodes.md, for a reader."""
        with atomic_file(self.out / "episodes.md") as work:
            work.write_bytes(encoded("\n\n".join(texts)))

    def _open(self, resume: bool) -> None:
        """Write results.json before any work.

        `results` gets "runs", a record of every process that took part, and keeps what the file holds of earlier ones: their
        machines, versions and commits, which may differ, what a judge found, and the models' sizes.
        """
        file, run, held = self.out / "results.json", {"machine": self.results["machine"]}, {}
        if not resume:
            self.results["runs"] = [run]
        elif not file.exists():
            raise FileNotFoundError(f"resume: {self.out} holds no results.json; leave out --resume.")
        else:
            held = read_object(file, task=str, config=dict)
            check(held, {"runs?": [dict], "machine?": dict, "sizes?": {str: int}}, str(file))
            self._must_agree(held)
            before = held.get("runs") or [{"machine": held.get("machine")}]
            self.results |= {"machine": before[0].get("machine"), "runs": [*before, run]}
            self.results |= {k: held[k] for k in ("judge", "sizes") if k in held}
        objects.write_json(file, held | self.results)

    def _must_agree(self, held: dict) -> None:
        config, was = json.loads(json.dumps(self.results["config"])), dict(held["config"])
        if isinstance(settings := was.get("settings"), dict):
            was["settings"] = recorded(settings)
            if self.results["task"] not in SEARCH and was["settings"] != renamed(settings):
                raise ValueError(
                    f"resume: {self.out} was begun when pairs were taught in other words than they were asked in; give another "
                    f"--out."
                )
        changed = [k for k in config if was.get(k) != config[k]]
        if held["task"] != self.results["task"] or changed:
            raise ValueError(
                f"resume: {self.out} was made with other settings ({', '.join(changed) or 'task'}); "
                f"use the same flags, or give another --out."
            )
        if "memory" in (held["config"].get("settings") or {}) and self._in_another_subspace():
            raise ValueError(
                f"resume: {self.out} was begun when the seed of a search did not draw the subspace of its fast weights, "
                f"as it does now; give another --out."
            )
        if any("question" not in row for row in Journal(self.out / "answers.jsonl", ANSWER).rows):
            raise ValueError(
                f"resume: {self.out} holds a run without its texts; go on in the folder that it was stripped from."
            )

    def _in_another_subspace(self) -> bool:
        """Whether a search of before left fast weights that would differ now: its subspace was that of seed 0."""
        if self.results["task"] not in SEARCH:
            return False
        delta = {name for name, method in METHODS.items() if method.search and method.search.delta}
        return any(row["seed"] and row["method"] in delta for row in Journal(self.out / "readings.jsonl", HAD_READ).rows)

    def _write(self) -> None:
        self.results["runs"][-1] |= {
            "slots": self._slots,
            "answers": len(self.answers.rows) - self._before,
            "seconds": round(time.perf_counter() - self._start, 1),
            "peak_bytes": peak_memory(),
        }
        self.results.update(self._summary())
        objects.write_json(self.out / "results.json", self.results)


class Seldom:
    """`work`, which once it takes LONG is left out so often that it takes a twentieth of the time; `now` does it."""

    LONG = 0.5  # seconds

    def __init__(self, work: Callable[[], None]):
        self.work, self.due = work, 0.0

    def __call__(self) -> None:
        if time.perf_counter() >= self.due:
            self.now()

    def now(self) -> None:
        start = time.perf_counter()
        self.work()
        end = time.perf_counter()
        self.due = end + (20 * (end - start) if end - start > self.LONG else 0.0)
