"""Lists of questions that are not asked: known wrong golds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from .records import Record, content, text

__all__ = ["LeaveOut", "about", "as_it_is", "read_leave_out", "notes"]

_SUFFIXES = ("", ".txt", ".json", ".jsonl")
_SOURCE = "give a list of question ids, or of records with question_id and perhaps label_error or error_type"
_COMMENT = re.compile(r"(?:^|\s)#.*")
CITATION = "wrong_citation"  # of an error that is in the evidence and not in the answer: the question stays


class LeaveOut:
    """Ids of questions that are left out, and which of them were met.

    ids: each with the question as the list has it, "" where it has none. path: of the list. cited: those that it names for a
    wrong citation alone, which stay. found, staying: those of the one and the other that the data have. beside: how many went
    with the ones that were found, as they are asked together.
    """

    def __init__(self, ids: dict[str, str] | None = None, path: str | Path = "", cited: Collection[str] = ()):
        self.ids, self.path, self.cited = ids or {}, path, cited
        self.found: set[str] = set()
        self.staying: set[str] = set()
        self.beside = 0

    def names(self, id: str, question: str) -> bool:
        """Whether the list names this question. Raises ValueError where it has that id with other words."""
        if id not in self.ids:
            self.staying.update({id}.intersection(self.cited))
            return False
        listed = self.ids[id]
        if listed and _plain(listed) != _plain(question):
            raise ValueError(
                f"leave-out: {self.path} names {id[:60]!r} with the question {listed[:60]!r}, and the data ask "
                f"{question[:60]!r}; give a list made for these data."
            )
        self.found.add(id)
        return True

    def check(self, elsewhere: Callable[[str], bool] = lambda id: False) -> None:
        """ValueError for an id that was not met, unless it is known to be of a part of the benchmark that is not here."""
        if unknown := [id for id in self.ids if id not in self.found and not elsewhere(id)]:
            raise ValueError(
                f"leave-out: {self.path} names {unknown[0][:60]!r}, and the data hold no question with that id "
                f"({len(unknown)} of {len(self.ids)} are unknown); correct the list or give the data it was made for."
            )


def as_it_is(id: str, sample: str) -> str:
    """The id of most tasks' questions."""
    return id


def read_leave_out(path: str | Path, resolve: Callable[[str, str], str] = as_it_is) -> LeaveOut:
    """The list in a .txt file, an id a line, or in a .json or .jsonl file of ids or records.

    In a .txt file a # at the start of a line or behind a space begins a comment. A .json file may hold the list in an object,
    alone or beside things that are no lists. A record has question_id, id or _id. Its
    label_error (null or false where there is none, else true, its type or an object with it) or error_type says what is wrong;
    of a wrong citation alone the question stays. `resolve` makes a loader's id of one of the list and its sample_id.
    Raises FileNotFoundError, and ValueError for anything else.
    """
    ids, cited, where = {}, set(), f"leave-out: {path}"
    entries = _entries(path)
    if not entries:
        raise ValueError(f"{where} is empty; {_SOURCE}.")
    for n, entry in enumerate(entries, 1):
        record = Record(entry if isinstance(entry, dict) else {"question_id": entry}, f"{where}, entry {n}")
        name = next((name for name in ("question_id", "id", "_id") if name in record), "question_id")
        named, error = record.answer(name).strip(), _error(record)
        if not named:
            raise ValueError(f"{record.where}: `{name}` is empty; expected a question's id.")
        id = resolve(named, record.get("sample_id", str, default=""))
        if error == CITATION:
            cited.add(id)
        elif error is not None:
            ids[id] = record.get("question", str, default="")
    return LeaveOut(ids, path, cited)


def about(left: LeaveOut | None) -> dict:
    """The part of a configuration that says which questions are not asked: how many, and a digest of their ids."""
    if left is None:
        return {"leave_out": None, "leave_out_blake2b": None}
    ids = json.dumps(sorted(left.found)).encode()
    return {"leave_out": len(left.found), "leave_out_blake2b": hashlib.blake2b(ids, digest_size=8).hexdigest()}


def notes(left: LeaveOut | None) -> list[str]:
    """One line that says the same to a reader."""
    if left is None:
        return []
    cited, absent = len(left.staying), len(left.ids) - len(left.found)
    said = [f"{_count(len(left.found), 'question')} left out by {Path(left.path).name}"]
    said += [f"{left.beside} asked together with {'it' if len(left.found) == 1 else 'them'} too"] * bool(left.beside)
    said += [f"{cited} that it names for a wrong citation alone {'stays' if cited == 1 else 'stay'}"] * bool(cited)
    said += [f"{_count(absent, 'id')} of conversations that are not here"] * bool(absent)
    return ["; ".join(said)]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _entries(path: str | Path) -> list[Any]:
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"leave-out: {path} is no .txt, .json or .jsonl file; {_SOURCE}.")
    if suffix in ("", ".txt"):
        lines = (_COMMENT.sub("", line) for line in text(path, "leave-out", _SOURCE).split("\n"))
        return [line for line in lines if line.strip()]
    found = content(path, "leave-out", _SOURCE)
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else None
    if not isinstance(found, list):
        raise ValueError(f"leave-out: {path} holds no list, or several; {_SOURCE}.")
    return found


def _error(record: Record) -> str | None:
    """What is wrong with a question: None where nothing is, "" where the list does not say."""
    if "label_error" not in record:
        kind = record.get("error_type", str, default="")
    else:
        kind = record.get("label_error", str, dict, bool, default=None)
        if isinstance(kind, dict):
            kind = record.under("label_error").get("type", str, default="")
        elif isinstance(kind, bool):
            kind = "" if kind else None
    return kind if kind is None else re.sub(r"[^a-z]+", "_", kind.lower())


def _plain(question: str) -> str:
    return " ".join(question.split()).lower()
