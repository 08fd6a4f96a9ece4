"""Multi-hop questions in the official formats of HotpotQA, 2WikiMultihopQA and MuSiQue.

The files are the user's own and are never part of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .records import Record, distinct, files, read

__all__ = ["Hop", "contexts", "joined", "load"]

_SOURCE = "give a .json or .jsonl file in the official format of HotpotQA, 2WikiMultihopQA or MuSiQue"


@dataclass(frozen=True)
class Hop:
    """One question. answers: any of them is right.

    evidence: titles of the articles it rests on, empty where not said. passages: title and text of those that the file holds.
    source: the file it comes from.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    passages: tuple[tuple[str, str], ...] = ()
    source: Path = Path()


def load(path: str | Path | Sequence[str | Path]) -> list[Hop]:
    """The answerable questions of a .json or .jsonl file, or of several, in order; MuSiQue's unanswerable ones are left out.

    Raises FileNotFoundError, and ValueError that names the file, the record and the field for anything else than the format.
    """
    where = f"multihop: {', '.join(map(str, files(path)))}"
    records = ((record, Path(file)) for file in files(path) for record in read(file, "multihop", _SOURCE))
    hops = [hop for record, source in records if (hop := _hop(record, source))]
    if not hops:
        raise ValueError(f"{where} has only unanswerable questions; expected at least one with an answer.")
    distinct((hop.id for hop in hops), f"{where}: the id")
    return hops


def contexts(record: Record) -> list[tuple[str, str]]:
    """Title and text of every article that comes with a question; none where the record has no context."""
    if "paragraphs" in record:
        return [(p.get("title", str), p.get("paragraph_text", str)) for p in record.each("paragraphs", dict)]
    return [(c.get("title", str), joined(c, "sentences")) for c in _couples(record, "context", "title", "sentences")]


def joined(record: Record, field: str) -> str:
    """A field with a list of sentences as one text; text as it is."""
    value = record.get(field, list, str)
    return value if isinstance(value, str) else " ".join(s.strip() for s in record.each(field, str))


def _hop(record: Record, source: Path) -> Hop | None:
    if not record.get("answerable", bool, default=True):
        return None
    name = next((n for n in ("_id", "id") if n in record), None)
    if name is None:
        raise ValueError(f"{record.where}: `_id` or `id` is missing; expected text.")
    record = record.named(name)
    answers = [_filled(record, "answer"), *record.each("answer_aliases", str, default=[])]
    evidence = _evidence(record)
    return Hop(
        _filled(record, name),
        _filled(record, "question").strip(),
        tuple(dict.fromkeys(a for a in answers if a.strip())),
        evidence,
        tuple(_supporting(record, evidence)),
        source,
    )


def _filled(record: Record, field: str) -> str:
    value = record.get(field, str)
    if not value.strip():
        raise ValueError(f"{record.where}: `{field}` is empty; expected text.")
    return value


def _evidence(record: Record) -> tuple[str, ...]:
    if "paragraphs" in record:
        titles = [title for title, _ in _marked(record)]
    elif "context" in record or "supporting_facts" in record:
        titles = [f.get("title", str) for f in _couples(record, "supporting_facts", "title", "sent_id")]
    else:
        raise ValueError(f"{record.where}: `context` or `paragraphs` is missing; expected a list.")
    return tuple(dict.fromkeys(titles))


def _supporting(record: Record, evidence: tuple[str, ...]) -> list[tuple[str, str]]:
    """The articles of the context that the answer rests on."""
    return _marked(record) if "paragraphs" in record else [(t, text) for t, text in contexts(record) if t in evidence]


def _marked(record: Record) -> list[tuple[str, str]]:
    marks = [p.get("is_supporting", bool, default=False) for p in record.each("paragraphs", dict)]
    return [article for article, mark in zip(contexts(record), marks) if mark]


def _couples(record: Record, field: str, *names: str) -> list[Record]:
    """The items of a field, each a list of two, as records of two fields; the Hugging Face copies hold two columns instead."""
    where = f"{record.where}, item {{}} of `{field}`"
    if isinstance(found := record.get(field, list, dict, default=[]), dict):
        columns = Record(found, f"{record.where}, `{field}`")
        one, two = (columns.get(name, list) for name in names)
        if len(one) != len(two):
            raise ValueError(f"{columns.where} has {len(one)} `{names[0]}` and {len(two)} `{names[1]}`; expected as many.")
        found = list(zip(one, two))
    else:
        found = record.each(field, list)
    for i, couple in enumerate(found, 1):
        if len(couple) != 2:
            raise ValueError(f"{where.format(i)} has {len(couple)} parts; expected two, {' and '.join(names)}.")
    return [Record(dict(zip(names, couple)), where.format(i)) for i, couple in enumerate(found, 1)]
