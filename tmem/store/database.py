"""The log of a store in SQLite: memories, their writes, the pairs of each write, what was read of a conversation.

Every change is one transaction that is on the disk when it ends (WAL, synchronous=FULL). What is deleted is overwritten
(secure_delete), and after a deletion the write-ahead log is emptied too.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..episode import Pair

SCHEMA = 1
_KIND = 0x746D656D  # application_id: "tmem"

_TABLES = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE memory (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, made REAL NOT NULL, changed REAL NOT NULL,
    writes INTEGER NOT NULL, waiting TEXT NOT NULL, source TEXT NOT NULL, sure TEXT NOT NULL);
CREATE TABLE entry (
    memory INTEGER NOT NULL REFERENCES memory ON DELETE CASCADE, id INTEGER NOT NULL, time REAL NOT NULL, kind TEXT NOT NULL,
    source TEXT NOT NULL, passage TEXT NOT NULL, dropped INTEGER NOT NULL, loss_before REAL, loss_after REAL, norm REAL,
    kept INTEGER NOT NULL, reason TEXT NOT NULL, row TEXT, digest TEXT, PRIMARY KEY (memory, id));
CREATE INDEX entry_row ON entry (row);
CREATE TABLE pair (
    memory INTEGER NOT NULL, entry INTEGER NOT NULL, place INTEGER NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL,
    corrected INTEGER NOT NULL, PRIMARY KEY (memory, entry, place),
    FOREIGN KEY (memory, entry) REFERENCES entry ON DELETE CASCADE);
CREATE TABLE message (
    memory INTEGER NOT NULL REFERENCES memory ON DELETE CASCADE, place INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (memory, place));
"""
_COLUMNS = "id, time, kind, source, passage, dropped, loss_before, loss_after, norm, kept, reason, row, digest"
MESSAGES = 512  # of a conversation that are known again


@dataclass(frozen=True)
class Told:
    """A pair of a write. corrected: its answer was replaced by hand."""

    question: str
    answer: str
    corrected: bool = False

    @property
    def pair(self) -> Pair:
        return Pair(self.question, self.answer)


@dataclass(frozen=True)
class Write:
    """One write of a memory, as its log keeps it.

    id           counts a memory's writes from 1; never given again
    time         when, in seconds since 1970
    kind         "read" (the model wrote the pairs), "told" (they were given) or "import"
    source       what the caller called the text
    passage      the text that the pairs were written from, "" for given ones
    told         its pairs
    dropped      how many more the model wrote that were no pairs
    loss_before, loss_after, norm   see tmem.agent.learn.Learned
    kept         False: it was rolled back, for the `reason`
    """

    id: int
    time: float
    kind: str
    source: str
    passage: str
    told: tuple[Told, ...]
    dropped: int
    loss_before: float | None
    loss_after: float | None
    norm: float | None
    kept: bool
    reason: str
    row: str | None = None  # the file of the weights after it; "": Δ = 0; None: no longer kept
    digest: str = ""

    @property
    def pairs(self) -> list[Pair]:
        """Its pairs."""
        return [t.pair for t in self.told]


@dataclass(frozen=True)
class State:
    """A memory beside its writes: the passages that wait, what they are called, how sure answers to known questions are."""

    id: int
    name: str
    made: float
    changed: float
    writes: int
    waiting: tuple[str, ...]
    source: str
    sure: dict[str, float]


class Database:
    """The database of a store's folder; one connection, used by one thread at a time."""

    def __init__(self, file: Path):
        """Raises ValueError for a file that is no such database, or one of a newer schema."""
        self.file, self._lock, self._closed = file, threading.RLock(), False
        self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        (kind,), (schema,) = (self._one(f"PRAGMA {name}") for name in ("application_id", "user_version"))
        empty = not self._one("SELECT count(*) FROM sqlite_master")[0]
        if not empty and kind != _KIND:
            raise ValueError(f"{self.file} is no database of a store; give another folder.")
        if schema > SCHEMA:
            raise ValueError(f"{self.file} has schema {schema}, this tmem knows {SCHEMA}; open it with a newer tmem.")
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            self._connection.execute(f"PRAGMA {setting}").fetchall()
        if empty:
            with self.change():
                for statement in _TABLES.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_KIND}")
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._connection.close()

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the store is closed; open it again.")

    @contextmanager
    def change(self) -> Iterator[None]:
        """What the block does is one transaction: on the disk when it ends, or not done at all. A block within another is part
        of that one, and ends with it.

        Raises OSError where the disk does not take it.
        """
        with self._lock:
            self._check()
            if self._connection.in_transaction:
                yield
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise OSError(f"{self.file} cannot be written ({error}); nothing was changed.") from error

    def emptied(self) -> None:
        """Have nothing of what was deleted stand in the write-ahead log."""
        with self._lock:
            self._check()
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _run(self, statement: str, values: Sequence) -> sqlite3.Cursor:
        self._check()
        try:
            return self._connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.file} cannot be read or written ({error}).") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.file} is no database of a store, or damaged ({error}); restore it from a copy.") from error

    def _one(self, statement: str, *values: Any) -> Any:
        with self._lock:
            return self._run(statement, values).fetchone()

    def _all(self, statement: str, *values: Any) -> list:
        with self._lock:
            return self._run(statement, values).fetchall()

    def _do(self, statement: str, *values: Any) -> None:
        with self._lock:
            self._run(statement, values)

    # settings ------------------------------------------------------------------------------------------------------

    def setting(self, name: str) -> Any:
        """A setting's value; None where there is none."""
        found = self._one("SELECT value FROM setting WHERE name = ?", name)
        return None if found is None else json.loads(found[0])

    def put(self, name: str, value: Any) -> None:
        self._do("INSERT OR REPLACE INTO setting VALUES (?, ?)", name, json.dumps(value))

    # memories ------------------------------------------------------------------------------------------------------

    def count(self, begins: str = "") -> int:
        """How many memories have a name that begins so; reads only those, as `about` does."""
        return self._one("SELECT count(*) FROM memory WHERE name >= ? AND name < ?", *_between(begins))[0]

    def about(self, begins: str = "") -> list[tuple]:
        """Name, when made and changed, how many writes, and the norm after the last write, of every memory whose name begins
        so."""
        return self._all(
            "SELECT m.name, m.made, m.changed, (SELECT count(*) FROM entry e WHERE e.memory = m.id), coalesce("
            "(SELECT norm FROM entry e WHERE e.memory = m.id AND e.kept ORDER BY e.id DESC LIMIT 1), 0.0) "
            "FROM memory m WHERE m.name >= ? AND m.name < ? ORDER BY m.id",
            *_between(begins),
        )

    def state(self, name: str) -> State | None:
        found = self._one("SELECT id, name, made, changed, writes, waiting, source, sure FROM memory WHERE name = ?", name)
        if found is None:
            return None
        memory, name, made, changed, writes, waiting, source, sure = found
        return State(memory, name, made, changed, writes, tuple(json.loads(waiting)), source, json.loads(sure))

    def make(self, name: str) -> int:
        """A memory with nothing in it; its id."""
        now = time.time()
        self._do("INSERT INTO memory VALUES (NULL, ?, ?, ?, 0, '[]', '', '{}')", name, now, now)
        return self._one("SELECT id FROM memory WHERE name = ?", name)[0]

    def keep(self, state: State) -> None:
        """Write what `state` says, but the name."""
        self._do(
            "UPDATE memory SET changed = ?, writes = ?, waiting = ?, source = ?, sure = ? WHERE id = ?",
            time.time(), state.writes, json.dumps(state.waiting), state.source, json.dumps(state.sure), state.id,
        )  # fmt: skip

    def delete(self, memory: int) -> None:
        self._do("DELETE FROM memory WHERE id = ?", memory)

    # writes --------------------------------------------------------------------------------------------------------

    def writes(self, memory: int) -> list[Write]:
        """All writes, in order."""
        told: dict[int, list[Told]] = {}
        pairs = "SELECT entry, question, answer, corrected FROM pair WHERE memory = ? ORDER BY entry, place"
        with self._lock:
            for entry, question, answer, corrected in self._all(pairs, memory):
                told.setdefault(entry, []).append(Told(question, answer, bool(corrected)))
            rows = self._all(f"SELECT {_COLUMNS} FROM entry WHERE memory = ? ORDER BY id", memory)
        return [_write(row, told.get(row[0], [])) for row in rows]

    def add(self, memory: int, write: Write) -> None:
        values = (
            write.id, write.time, write.kind, write.source, write.passage, write.dropped, write.loss_before, write.loss_after,
            write.norm, write.kept, write.reason, write.row, write.digest,
        )  # fmt: skip
        self._do(f"INSERT INTO entry (memory, {_COLUMNS}) VALUES (?{', ?' * len(values)})", memory, *values)
        for place, told in enumerate(write.told):
            self._do(
                "INSERT INTO pair VALUES (?, ?, ?, ?, ?, ?)",
                memory, write.id, place, told.question, told.answer, told.corrected,
            )  # fmt: skip

    def cut(self, memory: int, least: int) -> None:
        """Delete the writes with this id and above."""
        self._do("DELETE FROM entry WHERE memory = ? AND id >= ?", memory, least)

    def let_go(self, memory: int, newest: int) -> None:
        """Keep the rows of the newest writes and of imports; what stood before can be learned again."""
        self._do(
            "UPDATE entry SET row = NULL WHERE memory = ?1 AND kind != 'import' AND id NOT IN "
            "(SELECT id FROM entry WHERE memory = ?1 ORDER BY id DESC LIMIT ?2)",
            memory, newest,
        )  # fmt: skip

    def let_all_go(self) -> None:
        """Keep no row of any memory: all is to be learned again."""
        self._do("UPDATE entry SET row = NULL, digest = '' WHERE row != ''")

    def rows(self, memory: int | None = None) -> set[str]:
        """The files of rows that are still needed, of one memory or all."""
        found = self._all("SELECT DISTINCT row FROM entry WHERE row != '' AND (?1 IS NULL OR memory = ?1)", memory)
        return {row for (row,) in found}

    def last_row(self, memory: int) -> tuple[str, str]:
        """The file and digest of the row after the last write; "": Δ = 0."""
        found = self._one("SELECT row, digest FROM entry WHERE memory = ? ORDER BY id DESC LIMIT 1", memory)
        return found or ("", "")

    def needed(self, row: str) -> bool:
        return self._one("SELECT 1 FROM entry WHERE row = ? LIMIT 1", row) is not None

    # conversations -------------------------------------------------------------------------------------------------

    def messages(self, memory: int) -> list[bytes]:
        """Digests of the last MESSAGES messages that were read."""
        found = self._all("SELECT digest FROM message WHERE memory = ? ORDER BY place DESC LIMIT ?", memory, MESSAGES)
        return [digest for (digest,) in reversed(found)]

    def add_messages(self, memory: int, digests: Sequence[bytes]) -> None:
        (last,) = self._one("SELECT coalesce(max(place), 0) FROM message WHERE memory = ?", memory)
        for place, digest in enumerate(digests, last + 1):
            self._do("INSERT INTO message VALUES (?, ?, ?)", memory, place, digest)
        self._do("DELETE FROM message WHERE memory = ? AND place <= ?", memory, last + len(digests) - MESSAGES)


def _between(begins: str) -> tuple[str, str | bytes]:
    """The first name that begins so, and what comes after the last; bytes come after every text."""
    if not (rest := begins.rstrip("\U0010ffff")):
        return begins, b""
    after = ord(rest[-1]) + 1
    return begins, rest[:-1] + chr(0xE000 if after == 0xD800 else after)  # surrogates are no characters


def _write(row: Sequence, told: Sequence[Told]) -> Write:
    number, when, kind, source, passage, dropped, before, after, norm, kept, reason, file, digest = row
    return Write(
        number, when, kind, source, passage, tuple(told), dropped, before, after, norm, bool(kept), reason, file, digest or ""
    )


def without(write: Write, gone: Sequence[Told]) -> Write:
    """The write without some of its pairs; where none of them is left, without its passage too."""
    told = tuple(t for t in write.told if t not in gone)
    return write if told == write.told else replace(write, told=told, passage=write.passage if told else "")
