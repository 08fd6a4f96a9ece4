"""The tables of `tmem study`: what training gained over several seeds, and which half of the agent it changed; 80 columns.

They read study.json (tmem.study.study). A cell is a mean with its 95 % interval, where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from .tables import plain

SCORES = {"f1": "F1", "intrusion": "intrusions", "recall": "facts"}
ANSWERED = ("known", "abstained", "intrusion", "new", "stale", "mixed")
WRITTEN = ("facts", "person", "attribute", "precise", "pairs")
ABILITY = (
    ("nll", "text"), ("nll_with_memory", "text, with Δ"), ("plain", "questions"), ("plain_with_memory", "questions, with Δ"),
)  # fmt: skip
PAIRED = ("t-interval over seeds", "bootstrap over episodes")


def study_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """What `tmem study` prints: scores of the phases, gains, and the dissection of each difficulty."""
    yield _scores(summary)
    yield _gains(summary)
    for difficulty, found in enumerate(summary["dissection"], 1):
        yield from _dissection(f"difficulty {difficulty}", found)


def _scores(summary: Mapping[str, Any]) -> Table:
    rows = {
        f"{phase} {mode}": [_cell(found[k]["seeds"]) for k in SCORES]
        for phase, modes in summary["scores"].items()
        for mode, found in modes.items()
    }
    title = f"held-out scores, {summary['seeds']} seeds: mean and 95 % t-interval over seeds"
    return _grid(title, "", list(SCORES.values()), rows)


def _gains(summary: Mapping[str, Any]) -> Table:
    rows = {f"{pair} {mode}": _both(found) for pair, modes in summary["differences"].items() for mode, found in modes.items()}
    return _grid("differences of F1, paired by episode", "", PAIRED, rows)


def _dissection(title: str, found: Mapping[str, Any]) -> Iterator[Table]:
    """Who answers, who wrote the pairs, what else the models can do, and for how long pairs are recalled."""
    yield _crossing(title, found["crossing"])
    yield _own(title, found["crossing"], found["writing"])
    yield _ability(title, found["ability"])
    if "writers" in found:  # older studies have no such difference
        first, *_, last = found["writing"]
        gaps = {answerer: _both(gap) for answerer, gap in found["writers"].items()}
        yield _grid(f"{title}: F1 with {last}'s pairs less F1 with {first}'s, paired by episode", "who answers", PAIRED, gaps)
    for name, matrix in found["recall"].items():
        if len(matrix) > 1:
            yield _recall(title, name, matrix)


def _crossing(title: str, crossing: Mapping[str, Any]) -> Table:
    """Each model answers after learning the pairs of each."""
    writers = list(next(iter(crossing.values())))
    rows = {w: [_cell(crossing[answerer][w]["f1"]) for answerer in crossing] for w in writers}
    columns = [f"{answerer} answers" for answerer in crossing]
    return _grid(f"{title}, F1 (greedy) of who answers, by whose pairs were learned", "pairs of", columns, rows)


def _own(title: str, crossing: Mapping[str, Any], writing: Mapping[str, Any]) -> Table:
    rows = {k: [_cell(crossing[a][a].get(k)) for a in crossing] for k in ANSWERED}
    rows |= {f"written: {k}": [_cell(writing[w][k]) for w in writing] for k in WRITTEN}
    return _grid(f"{title}: own pairs learned, own answers; writing", "", list(crossing), rows)


def _ability(title: str, ability: Mapping[str, Any]) -> Table:
    rows = {name: [_cell(ability[model].get(k)) for model in ability] for k, name in ABILITY}
    title = f"{title}: general ability, neutral text (nats per token) and plain questions"
    return _grid(title, "", list(ability), rows)


def _recall(title: str, name: str, matrix: Sequence[Sequence[float | None]]) -> Table:
    """Row j: after write j + 1, the recall of the pairs of each write so far."""
    columns = [f"write {i + 1}" for i in range(len(matrix))]
    rows = {f"write {j + 1}": ["" if v is None else f"{v:.2f}" for v in row] for j, row in enumerate(matrix)}
    title = f"{title}: {name}'s own pairs recalled when asked in a paraphrase, by the write they are of"
    return _grid(title, "asked after", columns, rows)


def _grid(title: str, first: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    made = plain(title)
    for column in (first, *columns):
        made.add_column(column, no_wrap=True)
    for name, cells in rows.items():
        made.add_row(name, *cells)
    return made


def _both(found: Mapping[str, Any]) -> list[str]:
    return [_cell(found["seeds"]), _cell(found["episodes"])]


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    bounds = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['mean']:.2f}{bounds}"
