"""MemoryStore: many memories on one model, in a folder that outlives the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import time

from ..adapters.row_file import factors_bytes, factors_in
from ..agent.agent import Agent
from ..agent.config import DEFAULT_PRESET, agent_config
from ..agent.learn import Learned
from ..agent.teach import newest
from ..episode import Pair
from ..files.folders import LOCK, UNFINISHED, Lock, atomic_file
from ..memory import made_by, told_pairs
from ..models import loading
from ..words import sound, whole
from .database import Database, State, Told, Write, without
from .facts import About, Fact, facts, lesson_of, of_one_fact, sure_of
from .kept import Change, Kept
from .rows import Rows
from .slots import Asleep, Slots

DATABASE, FACTORS, ROWS = "store.sqlite", "factors.safetensors", "rows"
NEWEST = 4  # writes whose rows are kept: undoing one of them, or deleting from one, begins there
MOST_NAME = 200  # characters of a memory's name
QUIET: Callable[[str, int, int], None] = lambda *_: None  # noqa: E731


class Missing(ValueError):
    """There is no such memory, write, fact or source."""


class Taken(ValueError):
    """There is a memory of this name."""


@dataclass(frozen=True)
class Telling:
    """Pairs that a memory is told, and their source, as of `MemoryStore.learn`."""

    memory: str
    pairs: Iterable[tuple[str, str] | Pair]
    source: str = ""


class MemoryStore:
    """Many memories on one model, by their names, in a folder; `Memory` is the single case.

        >>> store = MemoryStore.open("runs/memories")
        >>> store.make("ada")
        >>> store.learn("ada", [("What is the name of Ada's dog?", "Biscuit")])
        >>> store.ask("ada", "How is Ada's dog called?")
        'Biscuit'

    When a method returns, what it did is on the disk and survives a kill. There may be far more memories than slots: those
    longest unused give theirs up and come back, the same bit for bit. Threads may share a store; one memory serves one thread
    at a time. One process at a time has the folder.

    What a memory is told is kept in a log of writes. `undo`, `delete_fact`, `delete_source` and `correct` change the log and
    learn Δ again from it: it has the bits of a memory that was told nothing else. This takes as long as learning what came
    after the change. Where the model writes under Δ (`[write] under_delta`), what it wrote later may still depend on a deleted
    fact.

    Every method that takes a memory's `name` raises ValueError where there is no such memory, and OSError where the disk
    cannot be read or written; the memory is then as it was before.
    """

    def __init__(self, agent: Agent, folder: str | Path, *, relearn: bool = False):
        """The store in `folder`, new where there is none, on an agent whose bank is free.

        relearn: where the store was made with another model or adapter, or learned otherwise, its memories learn all that they
        were told again, each when it is first used. Their log stays, and so does what a passage was written down as.

        Raises tmem.files.folders.Busy while another process has it, ValueError for a folder that is no store, is damaged, or
        was made with another model or adapter, or learned otherwise, RuntimeError while a slot of the bank is taken.
        """
        self.agent, self.folder = agent, Path(folder)
        self._slots = Slots(agent.bank.slots, lambda name: Kept(agent, name, self._keep))
        self._lock = Lock(self.folder)
        try:
            self._rows, self._db = Rows(self.folder / ROWS), self._database()
        except BaseException:
            self._lock.release()
            raise
        try:
            self._begin(relearn)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls, folder: str | Path, model: str | None = None, *, adapter: str | None = "default", bits: str | None = None,
        preset: str = DEFAULT_PRESET, slots: int = 8, relearn: bool = False,
    ) -> MemoryStore:  # fmt: skip
        """The store in `folder`, new where there is none.

            model, adapter, bits    as of `Memory.from_pretrained`; those that the store was made with
            preset                  likewise; it may read, write and answer otherwise than that one, but not learn otherwise
            slots                   how many memories have room on the model at once
            relearn                 see MemoryStore

        Raises what `Memory.from_pretrained` and `MemoryStore` do.
        """
        agent = Agent.build(*loading.load_model(model, adapter=adapter, bits=bits), agent_config(preset), slots=slots)
        return cls(agent, folder, relearn=relearn)

    def _database(self) -> Database:
        others = [f.name for f in self.folder.iterdir() if f.name != LOCK and not f.name.startswith(UNFINISHED)]
        if others and DATABASE not in others and FACTORS not in others:
            raise ValueError(f"{self.folder} holds {min(others)} and no {DATABASE}, so it is no store; give another folder.")
        return Database(self.folder / DATABASE)

    def _begin(self, relearn: bool) -> None:
        """Have the bank compute with the store's own A, and refuse what the store was not made with."""
        made, mine = self._db.setting("made_with"), {**made_by(self.agent), **dict(_settings(self.agent))}
        if made is None and (row := self._rows.first()):
            raise ValueError(f"{self._db.file} is empty, and there are rows of memories ({row}); restore it from a copy.")
        other = [k for k, v in mine.items() if made.get(k) != v] if made else []
        if made is None or (other and relearn):
            self._make(mine)
        elif other:
            was = ", ".join(f"{k} {made.get(k)!r:.80} (here {mine[k]!r:.80})" for k in other[:3])
            raise ValueError(
                f"{self.folder} was made with {was}; open it with the same model and adapter and a preset that learns the same "
                "way, or have its memories learn again: relearn=True, tmem serve --relearn."
            )
        else:
            self._take_factors(made)
        self._rows.sweep(self._db.rows())

    def _make(self, mine: dict[str, object]) -> None:
        """Be made with this model and preset from now on. No row of before is needed any more, so none is left."""
        bank = self.agent.bank
        file = self.folder / f"factors-{bank.subspace}.safetensors"
        with atomic_file(file) as work:
            work.write_bytes(factors_bytes(bank.factors))
        with self._db.change():
            self._db.put("made_with", {**mine, "subspace": bank.subspace})
            self._db.let_all_go()
        for before in self.folder.glob("factors*.safetensors"):
            if before != file:
                before.unlink()

    def _take_factors(self, made: dict) -> None:
        """Have the bank compute with the A that the rows belong to. No path is made of what the database says."""
        bank, files = self.agent.bank, {f.name: f for f in self.folder.glob("factors*.safetensors")}
        file = files.get(f"factors-{made['subspace']}.safetensors", self.folder / FACTORS)
        if made["subspace"] != bank.subspace:
            own = factors_in(file.read_bytes(), str(file))
            if [a.shape for a in own] == [a.shape for a in bank.factors]:
                bank.take(own)
        if made["subspace"] != bank.subspace:
            raise ValueError(f"{file} is damaged: it is not what the rows belong to; restore it from a copy.")

    def close(self) -> None:
        """Give the slots and the folder back. Harmless when closed already. What uses the store must have ended."""
        self._slots.close()
        self._db.close()
        self._lock.release()

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # memories ------------------------------------------------------------------------------------------------------

    def memories(self, begins: str = "") -> list[About]:
        """All memories whose name begins so, in the order in which they were made. Takes no longer for other ones."""
        return [About(*found) for found in self._db.about(begins)]

    def count(self, begins: str = "") -> int:
        """How many memories have a name that begins so."""
        return self._db.count(begins)

    @property
    def slots(self) -> int:
        """How many memories have room on the model at once."""
        return self.agent.bank.slots

    @property
    def resident(self) -> int:
        """How many memories have a slot now."""
        return len(self._slots)

    def __len__(self) -> int:
        return self._db.count()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and sound(name) and self._db.state(name) is not None

    def make(self, name: str, *, exist_ok: bool = False) -> None:
        """A new memory, which knows nothing. exist_ok: one of this name is as good.

        Raises ValueError for a name that is taken, empty, longer than 200 characters or no text.
        """
        _name("make", name)
        with self._db.change():
            if not exist_ok:
                self._must_be_new("make", name)
            if self._db.state(name) is None:
                self._db.make(name)

    def _must_be_new(self, verb: str, name: str) -> None:
        """Raises Taken where there is a memory of this name."""
        if self._db.state(name) is not None:
            raise Taken(f"{verb}: there is a memory {name!r:.60}; choose another name, or delete it first.")

    def delete(self, name: str) -> None:
        """Delete a memory, with its log and its files."""
        with self._alone([name]) as (memory,):
            state = self._state(name)
            rows = self._db.rows(state.id)
            with self._db.change():
                self._db.delete(state.id)
            self._remove(rows)
            self._db.emptied()
            memory.close()

    def fork(self, name: str, new: str) -> None:
        """A new memory that starts as an exact copy of another. Raises ValueError as `make` does."""
        _name("fork", new)
        with self.using([name]), self._db.change():
            self._must_be_new("fork", new)
            state = self._state(name)
            copy = self._db.make(new)
            self._db.keep(replace(state, id=copy))
            for write in self._db.writes(state.id):
                self._db.add(copy, write)
            self._db.add_messages(copy, self._db.messages(state.id))

    def export(self, name: str, path: str | Path) -> None:
        """Write a memory as a PEFT adapter folder, as `Memory.save` does. Raises OSError where it cannot be written."""
        with self.using([name]) as (memory,):
            memory.save(path)

    def import_from(self, name: str, path: str | Path) -> Write:
        """A new memory from a folder that `export` or `Memory.save` wrote; what it holds is one write of its log.

        Raises ValueError as `make` does and for a folder that is damaged or was made with another model, FileNotFoundError
        for a missing one.
        """
        _name("import_from", name)
        self._must_be_new("import_from", name)
        while True:
            with self._slots.alone([name], True) as (memory,):
                if memory.slot is not None:  # else it was closed while this thread waited
                    return self._import(memory, path)

    def _import(self, memory: Kept, path: str | Path) -> Write:
        """`import_from` into a slot that this thread has."""
        name, memory.whole, row = memory.name, False, ""
        self._must_be_new("import_from", name)
        try:
            memory.open_from(Path(path))
            row, digest = self._rows.write(name, self.agent.bank.snapshot(memory.row))
            told, norm = tuple(Told(p.question, p.answer) for p in memory.pairs), self.agent.bank.delta_norm(memory.row)
            write = Write(1, time(), "import", "", "", told, 0, None, None, norm, True, "", row, digest)
            with self._db.change():  # the name is there with what it holds, or not at all
                self._must_be_new("import_from", name)
                self._db.make(name)
                self._keep_state(memory, write)
        except BaseException:
            if row:
                self._remove([row])
            if self._db.state(name) is None:  # else it is another thread's, and is filled from the disk
                memory.close()
            raise
        memory.messages, memory.done, memory.whole = [], [], True
        return write

    # reading, learning, asking -------------------------------------------------------------------------------------

    def observe(self, name: str, text: str, *, source: str = "", known: Sequence[str] = ()) -> list[Write]:
        """Read text, as `Memory.observe` does; returns the writes that were due (often none).

            source  what the text is called: `delete_source` deletes all that came from it. Text of another source that still
                    waits is written first

        Raises ValueError for what is no text.
        """
        _texts("observe", text=text, source=source)
        with self._writing(name) as memory:
            if memory.waiting and memory.source != source:
                memory.write(QUIET)
            memory.source = source
            memory.observe(text, QUIET, known=known)
            return memory.done

    def write(self, name: str, *, known: Sequence[str] = ()) -> list[Write]:
        """Write and learn what still waits, as `Memory.write` does. Raises ValueError for questions that are none."""
        with self._writing(name) as memory:
            memory.write(QUIET, known=known)
            return memory.done

    def take(self, name: str, text: str, *, source: str = "", messages: Sequence[bytes] = ()) -> None:
        """Let text join what waits; `write_next` writes what is due then. For what serves many at once.

        messages: digests of the messages of a conversation that the text holds, see tmem.store.history. Raises ValueError for
        what is no text, and where text of another source waits: write that first.
        """
        _texts("take", text=text, source=source)
        with self._writing(name) as memory:
            if memory.waiting and memory.source != source:
                raise ValueError(f"take: text of the source {memory.source!r:.60} still waits; write that first.")
            memory.messages = list(messages)
            memory.take(text, source)

    def write_next(self, name: str) -> list[Write]:
        """Write and learn the next passages beyond the window, as many as one update learns; nothing where none is due."""
        with self._writing(name) as memory:
            memory.write_next()
            return memory.done

    def waits(self, name: str) -> str | None:
        """What the text that waits is called; None where none waits."""
        state = self._state(name)
        return state.source if state.waiting else None

    def learn(self, name: str, pairs: Iterable[tuple[str, str] | Pair], *, source: str = "") -> Write:
        """Learn question/answer pairs, as `Memory.learn` does. source: what they are called, as of `observe`.

        Raises ValueError for what is no list of pairs of texts.
        """
        _texts("learn", source=source)
        with self._writing(name) as memory:
            memory.telling = source
            memory.learn(pairs, QUIET)
            return memory.done[-1]

    def learn_together(self, tellings: Sequence[Telling]) -> list[Write | Exception]:
        """Several memories, each named once, learn pairs in one update, which is faster than one after another. Each has the
        bits of one that learned alone. Of each its write, or what went wrong with it alone, as `learn` raises it.

        Raises ValueError for a memory that is named twice."""
        if len({t.memory for t in tellings}) != len(tellings):
            raise ValueError("learn_together: a memory is named twice; give each one list of pairs.")
        out: dict[str, Write | Exception] = {}
        given: dict[str, list[Pair]] = {}
        for telling in tellings:
            try:
                _texts("learn", source=telling.source)
                self._state(telling.memory)
                given[telling.memory] = newest(told_pairs(telling.pairs))
            except (ValueError, OSError) as error:
                out[telling.memory] = error
        sources = {t.memory: t.source for t in tellings}
        with self.using(list(given)) as memories:
            lessons = [m.lesson for m in memories]
            found = self.agent.teach([m.row for m in memories], list(given.values()), lessons) if memories else []
            for memory, learned in zip(memories, found):
                memory.done, memory.telling = [], sources[memory.name]
                try:
                    self._keep(memory, Change(given[memory.name], learned))
                    out[memory.name] = memory.done[-1]
                except Exception as error:
                    memory.whole, out[memory.name] = False, error  # what is on the disk counts
        return [out[t.memory] for t in tellings]

    def messages(self, name: str) -> list[bytes]:
        """Digests of the last messages of conversations that were read."""
        return self._db.messages(self._state(name).id)

    def ask(self, name: str, question: str) -> str:
        """A short answer, greedy, as `Memory.ask` gives it. Raises ValueError for what is no text, or empty, or too long."""
        with self.using([name]) as (memory,):
            return memory.ask(question)

    def pairs(self, name: str) -> list[Fact]:
        """Everything learned so far and where it comes from; of a question asked anew the newest pair."""
        return facts(self.log(name))

    def log(self, name: str) -> list[Write]:
        """All writes so far, also those that were rolled back."""
        return self._db.writes(self._state(name).id)

    # unlearning ----------------------------------------------------------------------------------------------------

    def undo(self, name: str, write: int) -> None:
        """Be as after this write: all later ones, and text that waits, are gone. 0: as before the first.

        Raises ValueError where the log has no such write.
        """
        with self._alone([name]) as (memory,):
            writes = self.log(name)
            if write != 0 and write not in [w.id for w in writes]:
                raise Missing(f"undo: {name!r:.60} has no write {write!r:.40}; its log has the ids.")
            self._learn_again(memory, [w for w in writes if w.id <= write], ())

    def delete_fact(self, name: str, question: str) -> list[Pair]:
        """Unlearn a fact; returns its pairs: those of the question, and those of the same answer whose question shares at least
        half of its words.

        A passage none of whose pairs is left is deleted too; one that has others stays in the log, and so does text that waits.
        Raises ValueError where no pair asks `question`.
        """
        with self._alone([name]) as (memory,):
            writes, gone = self._of(name, "delete_fact", question)
            self._learn_again(memory, [without(w, gone) for w in writes], self._state(name).waiting)
        return [t.pair for t in gone]

    def delete_source(self, name: str, source: str) -> list[Pair]:
        """Unlearn all that came from a source, and delete its text; returns the pairs. Raises ValueError where nothing did."""
        with self._alone([name]) as (memory,):
            writes, state = self.log(name), self._state(name)
            waits = bool(state.waiting) and state.source == source
            left = [w for w in writes if w.source != source]
            if len(left) == len(writes) and not waits:
                raise Missing(f"delete_source: {name!r:.60} has nothing of the source {source!r:.60}; its log has the sources.")
            self._learn_again(memory, left, () if waits else state.waiting)
        return [p for w in writes if w.source == source for p in w.pairs]

    def correct(self, name: str, question: str, answer: str) -> list[Pair]:
        """Replace the answer of a fact wherever it was told, as if it had been told right; returns the pairs as they are now.

        The fact's pairs are those that `delete_fact` would delete. Raises ValueError for an answer that is no text or empty,
        and where no pair asks `question`.
        """
        _texts("correct", answer=answer)
        if not answer.strip():
            raise ValueError("correct: the answer is empty; expected text.")
        with self._alone([name]) as (memory,):
            writes, wrong = self._of(name, "correct", question)
            right = {t: Told(t.question, answer, corrected=True) for t in wrong}
            corrected = [replace(w, told=tuple(right.get(t, t) for t in w.told)) for w in writes]
            self._learn_again(memory, corrected, self._state(name).waiting)
        return [t.pair for t in dict.fromkeys(right.values())]

    def _of(self, name: str, verb: str, question: str) -> tuple[list[Write], list[Told]]:
        _texts(verb, question=question)
        writes = self.log(name)
        if not (found := of_one_fact(question, writes)):
            raise Missing(f"{verb}: {name!r:.60} was never told {question!r:.60}; its pairs have the questions.")
        return writes, found

    def _learn_again(self, memory: Kept, writes: Sequence[Write], waiting: Sequence[str]) -> None:
        """Make `writes` all that the memory was told. Begins after the newest row that they share with what was there."""
        state, before = self._state(memory.name), self.log(memory.name)
        same = next((i for i, (a, b) in enumerate(zip(before, writes)) if a != b), min(len(before), len(writes)))
        start = self._back_to_one_of(memory, writes[:same])
        lesson, again = lesson_of(writes[:start]), list(writes[:start])
        for write in writes[start:]:
            (learned,) = self.agent.teach([memory.row], [write.pairs], [lesson])
            again.append(_with(replace(write, row=None, digest=""), learned))
        if len(again) > start:
            row = self._rows.write(memory.name, self.agent.bank.snapshot(memory.row))
            again[-1] = replace(again[-1], row=row[0], digest=row[1])
        sure = sure_of(lesson, state.sure)
        state = replace(state, waiting=tuple(waiting), source=state.source if waiting else "", sure=sure)
        old = self._db.rows(state.id)
        with self._db.change():
            self._db.keep(state)
            self._db.cut(state.id, 0)
            for write in again:
                self._db.add(state.id, write)
        memory.begin(lesson, state.waiting, state.source, sure)
        self._remove(old)
        self._db.emptied()

    def _back_to_one_of(self, memory: Kept, writes: Sequence[Write]) -> int:
        """Have the slot be as after the newest write whose row can be read; how many of the writes that row has learned."""
        for i, write in reversed(list(enumerate(writes, 1))):
            if write.row is not None:
                with suppress(OSError, ValueError):
                    self._restore(memory, write.row, write.digest)
                    return i
        self._restore(memory, "", "")
        return 0

    # what a slot holds ---------------------------------------------------------------------------------------------

    @contextmanager
    def using(self, names: Sequence[str], *, wait: bool = True) -> Iterator[list[Kept]]:
        """Within the block these memories have slots and belong to this thread. For what serves many at once; no name twice.

        Waits while other threads use them or all slots. Without `wait` it raises slots.Occupied there, and Asleep where a
        memory has to learn again first, see MemoryStore. Nest it only without waiting. Raises ValueError for more names than
        slots.
        """
        with self._alone(names, wait) as held:
            if not wait and any(not memory.whole and self._sleeps(memory.name) for memory in held):
                raise Asleep("using: a memory has to learn again first.")
            for memory in held:
                if not memory.whole:
                    self._fill(memory)
            yield held

    def _sleeps(self, name: str) -> bool:
        """Whether what a memory learned is in its log alone."""
        state = self._state(name)
        return state.writes > 0 and self._db.last_row(state.id)[0] is None

    @contextmanager
    def _alone(self, names: Sequence[str], wait: bool = True) -> Iterator[list[Kept]]:
        """As `using`, whatever the slots hold by now."""
        for name in names:
            self._state(name)
        with self._slots.alone(names, wait) as held:
            for memory in held:
                if memory.slot is None:  # deleted while this thread waited
                    raise Missing(f"there is no memory {memory.name!r:.60}; make it first.")
            try:
                yield held
            except BaseException:
                for memory in held:
                    memory.whole = False  # what is on the disk counts
                raise

    def _fill(self, memory: Kept) -> None:
        """Have a slot hold what is on the disk."""
        state, writes = self._state(memory.name), self.log(memory.name)
        last = writes[-1] if writes else None
        if last and last.row is None:
            self._learn_again(memory, writes, state.waiting)
        else:
            self._restore(memory, last.row if last else "", last.digest if last else "")
            lesson = lesson_of(writes)
            memory.begin(lesson, state.waiting, state.source, sure_of(lesson, state.sure))
        memory.messages, memory.done, memory.whole = [], [], True

    def _restore(self, memory: Kept, row: str | None, digest: str) -> None:
        """Have the slot hold this row; "": Δ = 0."""
        bank = self.agent.bank
        if row:
            bank.restore(memory.row, self._rows.read(row, digest))
        else:
            bank.reset(memory.row)
            bank.restore(memory.row, replace(bank.snapshot(memory.row), rank=bank.max_rank, scale=1.0))

    # keeping -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, name: str) -> Iterator[Kept]:
        """A memory whose `done` has the writes of this block afterwards."""
        with self.using([name]) as (memory,):
            memory.done = []
            yield memory

    def _keep(self, memory: Kept, change: Change) -> None:
        """Have a change on the disk: first the row, under a new name, then everything else in one transaction."""
        write = None
        if (learned := change.learned) is not None:
            state, entry, told = self._state(memory.name), change.entry, tuple(Told(p.question, p.answer) for p in change.pairs)
            for t in told:
                _texts("learn", question=t.question, answer=t.answer)
            about = ("read", memory.source, entry.passage, entry.written.dropped) if entry else ("told", memory.telling, "", 0)
            kind, source, passage, dropped = about
            if learned.kept and told:
                row, digest = self._rows.write(memory.name, self.agent.bank.snapshot(memory.row))
            else:  # it is as it was
                row, digest = self._db.last_row(state.id)
            write = Write(state.writes + 1, time(), kind, source, passage, told, dropped, 0, 0, 0, True, "", row, digest)
            write = _with(write, learned)
            memory.done.append(write)
        self._keep_state(memory, write)

    def _keep_state(self, memory: Kept, write: Write | None) -> None:
        state = self._state(memory.name)
        old = self._db.rows(state.id) if write else set()
        with self._db.change():
            self._db.keep(
                replace(
                    state,
                    writes=write.id if write else state.writes,
                    waiting=tuple(memory.waiting),
                    source=memory.source,
                    sure=memory.sure,
                )  # fmt: skip
            )
            if write:
                self._db.add(state.id, write)
                self._db.let_go(state.id, NEWEST)
            self._db.add_messages(state.id, memory.messages)
        memory.messages = []
        self._remove(old)

    def _remove(self, rows: Iterable[str]) -> None:
        """Remove those of these files that no write names any more."""
        for row in rows:
            if not self._db.needed(row):
                self._rows.remove(row)

    def _state(self, name: str) -> State:
        _name("name", name)
        if (state := self._db.state(name)) is None:
            raise Missing(f"there is no memory {name!r:.60}; make it first.")
        return state


def _settings(agent: Agent) -> Iterator[tuple[str, object]]:
    """What a preset says of how pairs are learned, as JSON has it: what a row has come from, and comes from once more when
    a fact is deleted. How a text is read and a question asked may change."""
    tables = asdict(agent.config)
    for table in ("adapter", "learn"):
        for key, value in tables[table].items():
            yield f"[{table}] {key}", list(value) if isinstance(value, tuple) else value


def _with(write: Write, learned: Learned) -> Write:
    return replace(
        write, loss_before=learned.loss_before, loss_after=learned.loss_after, norm=learned.norm, kept=learned.kept,
        reason=learned.reason,
    )  # fmt: skip


def _texts(verb: str, **values: object) -> None:
    for what, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{verb}: {what}: expected text, got {type(value).__name__}.")
        whole(f"{verb}: {what}", value)


def _name(verb: str, name: object) -> None:
    _texts(verb, name=name)
    if not 0 < len(str(name)) <= MOST_NAME or not str(name).strip():
        raise ValueError(f"{verb}: a memory's name has 1 to {MOST_NAME} characters, got {str(name)!r:.60}.")
