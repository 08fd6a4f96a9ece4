"""A long run in parts, most valuable first: one file written anew after each, from which a later call goes on."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.objects import read_object, write_json


@dataclass(frozen=True)
class Part:
    """run puts what it finds into the record that it is given; expected: seconds, about."""

    name: str
    what: str
    expected: float
    run: Callable[[dict], None]


def go_on(
    parts: Sequence[Part], path: Path, about: dict, *,
    limit: float, again: bool = False, clock: Callable[[], float] = time.monotonic, say: Callable[[str], None] = print,
) -> tuple[dict, list[str]]:  # fmt: skip
    """Run what is not done yet, as far as the limit lets; the record, and the names of the parts that are left.

    path   the record, one JSON object: about, "parts" (name -> seconds of what is done), "failed" (name -> why), and what the
           parts put there. A record of another commit or of other versions is not gone on with: it is begun anew.
    limit  seconds. A part starts if it is expected to end by then; the first of a call always does.
    again  begin anew in any case
    A part that raises is named in "failed", tried again by the next call, and does not stop the others.
    Raises ValueError for a damaged record.
    """
    record = {**about, "parts": {}, "failed": {}}
    if path.exists() and not again:
        before = read_object(path)
        if _same(before, about) and isinstance(before.get("parts"), dict):
            record = before
    begin, left, started = clock(), [], False
    for part in parts:
        if part.name in record["parts"]:
            continue
        start = clock()
        if started and start - begin + part.expected > limit:
            left.append(part.name)
            continue
        started = True
        say(f"{part.name}: {part.what}")
        record["failed"].pop(part.name, None)
        try:
            part.run(record)
        except Exception as error:  # the others are still worth their time
            record["failed"][part.name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        else:
            record["parts"][part.name] = round(clock() - start, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    return record, left


def plan(parts: Sequence[Part]) -> str:
    """What would be run, a line a part."""
    lines = [f"{part.expected:5.0f} s  {part.name}: {part.what}" for part in parts]
    return "\n".join([*lines, f"{sum(part.expected for part in parts):5.0f} s  in {len(parts)} parts"])


def _same(before: dict, about: dict) -> bool:
    """Of one commit and one set of versions. What is written by a run is not held against it."""

    def key(record: dict) -> tuple:
        return (record.get("commit") or "").removesuffix("-dirty"), record.get("versions"), record.get("device")

    return key(before) == key(about)
