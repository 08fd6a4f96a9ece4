"""Questions to search for: the official formats of HotpotQA, 2WikiMultihopQA and MuSiQue, FlashRAG's, Search-R1's and MEM1's.

The files are the user's own and are never part of this project.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .left_out import LeaveOut
from .records import Record, distinct, files, read

__all__ = ["Hop", "contexts", "home", "is_question", "joined", "questions"]

_SOURCE = "give a .json or .jsonl file in the format of HotpotQA, 2WikiMultihopQA, MuSiQue, FlashRAG, Search-R1 or MEM1"
_COLUMNS = {"sentences": "content"}  # 2WikiMultihopQA's name of a column in FlashRAG
# What comes before the questions in the prompts that Search-R1 and MEM1 make of them.
_ASKED = re.compile(r"(?:^|\n|\s)(?:Question|Answer the following questions?):\s")


@dataclass(frozen=True)
class Hop:
    """One question. answers: any of them is right.

    evidence: titles of the articles it rests on, empty where not said. passages: title and text of those that the file holds.
    source: the file it comes from. together: how many questions its record asks at once.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    passages: tuple[tuple[str, str], ...] = ()
    source: Path = Path()
    together: int = 1


def questions(path: str | Path | Sequence[str | Path], leave_out: LeaveOut | None = None) -> list[Hop]:
    """The answerable questions of a .json or .jsonl file, or of several, in order; MuSiQue's unanswerable ones are left out,
    those without a golden answer, and those that `leave_out` names, with what their record asks together with them.

    Records with `golden_answers` (FlashRAG) or `reward_model` (Search-R1, MEM1) may have their question in their prompt alone,
    and no id: it is then the source, split and index. A list of lists of answers is one for each question; the record's
    questions, joined by semicolons, become as many hops.
    Raises FileNotFoundError, and ValueError that names the file, the record and the field for anything else than the format.
    """
    where = f"multihop: {', '.join(map(str, files(path)))}"
    distinct(map(str, files(path)), "multihop: the file")
    records: list[list[Hop]] = []
    for file in files(path):
        found = [_hops(record, n, Path(file)) for n, record in enumerate(read(file, "multihop", _SOURCE), 1)]
        distinct((hop.id for hops in found for hop in hops), f"multihop: {file}: the id")
        records += filter(None, found)
    if not records:
        raise ValueError(f"{where} has only unanswerable questions; expected at least one with an answer.")
    left = leave_out or LeaveOut()
    distinct((hop.id for hops in records for hop in hops if hop.id in left.ids), f"{where}: the id to leave out,")
    kept = []
    for hops in records:
        named = sum([left.names(hop.id, hop.question) for hop in hops])
        if named:
            left.beside += len(hops) - named
        else:
            kept += hops
    if not kept:
        raise ValueError(f"{where}: all of its questions are left out; expected at least one to ask.")
    return kept


def is_question(record: Record) -> bool:
    """Whether a record is a question with its golden answers, as FlashRAG, Search-R1 and MEM1 have them."""
    return "golden_answers" in record or "reward_model" in record


def contexts(record: Record) -> list[tuple[str, str]]:
    """Title and text of every article that comes with a question; none where the record has no context."""
    if "paragraphs" in record:
        return [(p.get("title", str), p.get("paragraph_text", str)) for p in record.each("paragraphs", dict)]
    return [(c.get("title", str), joined(c, "sentences")) for c in _couples(record, "context", "title", "sentences")]


def home(record: Record) -> Record:
    """The part of a question's record that holds its articles: FlashRAG keeps them under `metadata`."""
    metadata = record.raw("metadata")
    if "context" in record or "paragraphs" in record or not isinstance(metadata, dict):
        return record
    articles = (metadata.get("context"), metadata.get("paragraphs"))
    return record.under("metadata") if any(isinstance(a, (list, dict)) for a in articles) else record


def joined(record: Record, field: str) -> str:
    """A field with a list of sentences as one text; text as it is."""
    value = record.get(field, list, str)
    return value if isinstance(value, str) else " ".join(s.strip() for s in record.each(field, str))


def _hops(record: Record, number: int, source: Path) -> list[Hop]:
    """The questions of the record with this number; none where it is unanswerable."""
    if not is_question(record):
        hop = _hop(record, source)
        return [hop] if hop else []
    answers = _golden(record)
    if not all(answers):
        return []
    questions, evidence = _questions(record, len(answers)), ()
    if len(answers) == 1:  # of several it is not said which an article belongs to
        evidence = _evidence(home(record))
    passages = tuple(_supporting(home(record), evidence)) if evidence else ()
    names = _names(record, number, len(answers))
    return [Hop(n, q, a, evidence, passages, source, len(answers)) for n, q, a in zip(names, questions, answers)]


def _golden(record: Record) -> list[tuple[str, ...]]:
    """Each question's answers: of the record's `golden_answers`, or of its reward."""
    field = "golden_answers"
    if record.get(field, str, int, float, list, default=None) is None:
        if record.raw("reward_model") is None:
            return [()]
        record, field = record.under("reward_model"), "ground_truth"
        if isinstance(record.get(field, str, int, float, list, dict), dict):
            record, field = record.under(field), "target"
    found = record.get(field, str, int, float, list)
    if isinstance(found, list) and any(isinstance(part, list) for part in found):
        several = Record({str(i): part for i, part in enumerate(found, 1)}, f"{record.where}: `{field}`")
        lists = [several.answers(i) for i in several]
    else:
        lists = [record.answers(field)]
    return [tuple(dict.fromkeys(a for a in answers if a.strip())) for answers in lists]


def _questions(record: Record, count: int) -> list[str]:
    """As many questions as there are lists of answers, in their order."""
    where, asked = f"{record.where}: `question`", record.get("question", str, list, default=None)
    if isinstance(asked, list):
        parts = record.each("question", str)
    else:
        if asked is None:
            where, asked = f"{record.where}: `prompt`", _ASKED.split(_prompt(record))[-1]
        parts = [asked]
        if count > 1:  # MEM1 ends each with a question mark and joins them with semicolons
            parts = next(
                (some for mark in (r"(?<=\?)\s*;", ";") if len(some := _split(mark, asked)) == count), _split(";", asked)
            )
    parts = [part.strip() for part in parts]
    if len(parts) != count or not all(parts):
        raise ValueError(f"{where} holds {len([p for p in parts if p])} questions; expected {count}, one a list of answers.")
    return parts


def _split(mark: str, text: str) -> list[str]:
    return [part for part in re.split(mark, text) if part.strip()]


def _prompt(record: Record) -> str:
    """What a user says last in the record's `prompt`, a text or chat messages."""
    if isinstance(record.get("prompt", str, list), str):
        return record.get("prompt", str)
    said = [m.get("content", str) for m in record.each("prompt", dict) if m.get("role", str) == "user"]
    if not said:
        raise ValueError(f"{record.where}: `prompt` has no message of a user; expected the question.")
    return said[-1]


def _names(record: Record, number: int, count: int) -> list[str]:
    """The ids of a record's questions: its own, else split and index in the set it was taken from, else its number."""
    place = record.get("data_source", str, default="")
    prefix = f"{place}/" if place else ""
    name = next((n for n in ("_id", "id") if record.raw(n) is not None), None)
    extra = record.under("extra_info", default={})
    indices = extra.get("indices", list, default=None)
    if indices is None:
        indices = [extra.get("index", str, int, default=None)]
    if name is not None:
        base = record.answer(name)
    elif len(indices) == count and all(isinstance(i, (int, str)) for i in indices):
        split = extra.get("split", str, default="")
        return [f"{prefix}{split}_{i}" if split else f"{prefix}{i}" for i in indices]
    else:
        base = str(number)
    return [prefix + base] if count == 1 else [f"{prefix}{base}/{i}" for i in range(1, count + 1)]


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
    elif is_question(record):
        titles = []
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
    """The items of a field, each a list of two, as records of two fields; other copies hold two columns instead."""

    def where(i: int) -> str:
        return f"{record.where}, item {i} of `{field}`"

    if isinstance(found := record.get(field, list, dict, default=[]), dict):
        columns = Record(found, f"{record.where}, `{field}`")
        held = [_COLUMNS.get(name, name) if name not in columns else name for name in names]
        one, two = (columns.get(name, list) for name in held)
        if len(one) != len(two):
            raise ValueError(f"{columns.where} has {len(one)} `{held[0]}` and {len(two)} `{held[1]}`; expected as many.")
        found = list(zip(one, two))
    else:
        found = record.each(field, list)
    for i, couple in enumerate(found, 1):
        if len(couple) != 2:
            raise ValueError(f"{where(i)} has {len(couple)} parts; expected two, {' and '.join(names)}.")
    return [Record(dict(zip(names, couple)), where(i)) for i, couple in enumerate(found, 1)]
