"""Memory: a model that reads, learns what it reads into fast weights, and answers from them."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from .adapters.memory_file import read_memory, write_memory
from .adapters.peft import load_adapter, peft_files
from .agent.agent import Agent, Draft, first_line
from .agent.config import DEFAULT_PRESET, agent_config
from .agent.learn import Learned
from .agent.loop import LogEntry
from .agent.passages import cut
from .agent.renderings import BARE
from .agent.teach import Lesson, newest
from .agent.write import surest
from .episode import Pair
from .models import loading
from .models.lora import fingerprint
from .terminal.progress import Lines
from .words import identity, whole

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much in all
_VERBS = dict.fromkeys(("_take", "_write_next"), "observe or write")  # what a caller called


def _alone(method):
    """One thread at a time, and none once the memory is closed."""

    @functools.wraps(method)
    def call(self: Memory, *args, **kwargs):
        with self._lock:
            if self.slot is None:
                raise RuntimeError(f"{_VERBS.get(method.__name__, method.__name__)}: the memory is closed; make another one.")
            return method(self, *args, **kwargs)

    return call


class Memory:
    """One episode of parametric memory.

        >>> m = Memory.from_pretrained()
        >>> m.learn([("What is the name of Ada's dog?", "Biscuit")])
        >>> m.ask("How is Ada's dog called?")
        'Biscuit'

    What it was told of one person it also answers of another. The preset "careful" teaches it to abstain there: to say
    "unknown". That takes twice as long, and less of what it was told is recalled.
    `observe` collects text; once more than the preset's window of tokens is waiting, the model writes pairs from it and
    learns them, and the text is gone. `ask` answers from the fast weights and the text still waiting. `pairs` is
    everything learned so far, `log` what each write did: print an entry.

    Several memories share one loaded model, each with a slot of its bank: `from_pretrained(slots=8)`, then `another()`. They
    may be used from different threads, each for itself; one memory serves one thread at a time, the others wait.
    `close`, or leaving a `with` block, gives the slot back; every other method then raises RuntimeError.
    """

    def __init__(self, agent: Agent):
        self.agent = agent
        self.slot: int | None = agent.bank.alloc()
        self._lesson = Lesson()
        self.log: list[LogEntry] = []
        self._sure: dict[str, float] = {}  # of known questions: how sure the learned answer is
        self._context: list[str] = []
        self._lock = threading.RLock()
        self._warned = False

    @classmethod
    def from_pretrained(
        cls, model: str | None = None, *, adapter: str | None = "default", bits: str | None = None,
        preset: str = DEFAULT_PRESET, path: str | None = None, slots: int = 1,
    ) -> Memory:  # fmt: skip
        """A memory on `model` (None: the default model; else a folder, a .gguf file or a hub id), empty or from `path`.

            adapter the folder of a PEFT LoRA adapter that is merged into the weights; "default": the one that comes with tmem
                    for the default model, where there is one; None: the model as it is
            bits    the model in few bits, "int8", "fp8" or "nf4", by `pip install 'tmem[bits]'`; None: as it is
            preset  the settings: a name or the path of a .toml file
            path    a folder that `save` wrote
            slots   how many memories the model has room for, this one included (see `another`)

        Raises tmem.models.loading.ModelError if the model cannot be had, ValueError for an unknown preset or a folder that
        is damaged, was made with another model or was taught in other words than the preset asks in, FileNotFoundError for a
        missing one. ValueError also where `bits` needs a library that is not installed.
        """
        loaded = loading.load_model(model, adapter=adapter, bits=bits)
        return cls(Agent.build(*loaded, agent_config(preset), slots=slots))._opened(path)

    @property
    def pairs(self) -> list[Pair]:
        """Everything learned so far; of a question asked anew the newest pair."""
        return self._lesson.pairs

    def another(self, path: str | None = None) -> Memory:
        """A memory of its own on the same loaded model, empty or from `path`.

        Raises RuntimeError if there is no room, and for `path` what `from_pretrained` does.
        """
        try:
            other = type(self)(self.agent)
        except RuntimeError as error:
            room = self.agent.bank.slots
            raise RuntimeError(
                f"another: the model has room for {room} and all of it is taken; close a memory, or open the first one with "
                f"from_pretrained(slots={room + 1}) or more."
            ) from error
        return other._opened(path)

    def _opened(self, path: str | None) -> Memory:
        try:
            if path is not None:
                self._load(Path(path))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Give the slot back; what was learned is gone unless it was saved. Harmless when closed already."""
        with self._lock:
            if self.slot is not None:
                slot, self.slot = self.slot, None
                self.agent.bank.free(slot)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def _row(self) -> int:
        """The slot, for what runs under `_alone`, which lets nothing in once the memory is closed."""
        assert self.slot is not None
        return self.slot

    def observe(self, text: str, progress: Progress | None = None, *, known: Sequence[str] = ()) -> list[LogEntry]:
        """Read text. Whatever exceeds the window is written and learned now; returns what was (often nothing).

            progress   told ("write", passages done, passages) before and after every write; None: lines now and then, into
                       the log `tmem` or, where no logging is set up, on stderr

            known      as of `write`, for what is written now

        Raises ValueError for what is no text.
        """
        return self._write_down_to(1, [_text("observe", text)], progress, _questions("observe", known))

    def write(self, progress: Progress | None = None, *, known: Sequence[str] = ()) -> list[LogEntry]:
        """Write and learn what is still waiting, and let go of the text. progress: as of `observe`.

            known  what will be asked, where you know it (the paper's protocol). Then answers to it are looked for in the text
                   and learned, and nothing else is. Of several passages' answers the surest stands. Where none answers a
                   question, that is learned: it is "unknown"

        Raises ValueError for a question that is no text, or empty.
        """
        return self._write_down_to(0, [], progress, _questions("write", known))

    def _write_down_to(
        self, waiting: int, texts: list[str], progress: Progress | None, known: Sequence[str] = ()
    ) -> list[LogEntry]:
        """Text leaves the context only when it is learned: what interrupts a write loses nothing."""
        tell, entries = progress or Lines(), []
        total = max(0, self._take(texts) - waiting)
        tell("write", 0, total)
        done = 0
        while written := self._write_next(waiting, known):
            entries.append(self.log[-1])
            done += written
            tell("write", done, max(total, done))
        if entries and not self._warned and not any(e.taught for e in entries):
            self._warned = True
            logging.getLogger("tmem").warning(
                f"of {len(entries)} passages nothing was learned; the last: {entries[-1]}. Give from_pretrained a model that "
                f"was trained to write (tmem train), or learn() question/answer pairs of your own."
            )
        return entries

    @_alone
    def _take(self, texts: list[str]) -> int:
        """Let texts join what waits; how many passages that is."""
        self._context = cut(self.agent.chat, [*self._context, *texts], self.agent.config.write.window)
        if texts:
            self._changed()
        return len(self._context)

    def _changed(self, pairs: Sequence[Pair] = (), learned: Learned | None = None, entry: LogEntry | None = None) -> None:
        """Told of every change before the next one can begin: of an update's pairs and what it did, of a write's entry, or,
        without any, of text that came to what waits. A store keeps it; by itself a memory has nothing to do."""

    @_alone
    def _write_next(self, waiting: int, known: Sequence[str]) -> int:
        """Write the next passages that are due, as many as one update learns, and learn them; how many they were."""
        due = self._context[: min(self.agent.config.learn.every, max(0, len(self._context) - waiting))]
        if due:
            draft = Draft.joined(self.agent.write(due, [self._row] * len(due), [known] * len(due) if known else None))
            told = {identity(p.question): -math.inf for p in self.pairs}  # what a silent text must not unlearn
            draft = replace(draft, written=surest(draft.written, told | self._sure, self.agent.config.learn.unknown))
            (learned,) = self.agent.teach([self._row], [draft.written.pairs], [self._lesson])
            entry = LogEntry.of(draft, learned)
            self.log.append(entry)
            if learned.kept:
                self._sure |= draft.written.sure
            del self._context[: len(due)]
            _warn_of(draft.written.pairs, learned)
            self._changed(draft.written.pairs, learned, entry)
        return len(due)

    @_alone
    def learn(self, pairs: Iterable[tuple[str, str] | Pair], progress: Progress | None = None) -> Learned:
        """Learn question/answer pairs directly; of several answers to one question the last stands.

            progress   told ("learn", epochs done, epochs) after each, while other threads wait for this memory; None: lines
                       now and then

        Raises ValueError for an empty list, an empty question or answer, or what is no pair of texts.
        """
        told, new = functools.partial(progress or Lines(), "learn"), newest(told_pairs(pairs))
        (learned,) = self.agent.teach([self._row], [new], [self._lesson], told)
        _warn_of(new, learned)
        self._changed(new, learned)
        return learned

    @_alone
    def ask(self, question: str) -> str:
        """A short answer, greedy, from the fast weights; text that still waits in the context is in the prompt.

        An answer from which the weights do not know the question again is "unknown" (`Agent.settled`). With text in the prompt
        the answer stands.

        Raises ValueError for what is no text, or empty, or has no room in the model beside an answer.
        """
        if not _text("ask", question).strip():
            raise ValueError("ask: the question is empty; expected text.")
        agent, most = self.agent, self.agent.config.answer.max_new
        ids, room = agent.chat.prompt("\n\n".join([*self._context, agent.asked(question)])), agent.model.config
        if len(ids) + most > room.max_position_embeddings:
            raise ValueError(
                f"ask: the question and the text that waits have {len(ids)} tokens, up to {most} are to come, the model has "
                f"room for {room.max_position_embeddings}; shorten the question."
            )
        (reply,) = agent.say([ids], [self._row], max_new=most)
        return first_line(reply.text) if self._context else self.agent.settled([question], [reply], [self._row])[0]

    @_alone
    def forget(self) -> None:
        """Δ = 0, no pairs, no waiting text."""
        self.agent.bank.reset(self._row)
        self._lesson, self.log, self._sure, self._context = Lesson(), [], {}, []

    @_alone
    def save(self, path: str | Path) -> None:
        """Write the fast weights as a PEFT adapter folder, with pairs and waiting text in its tmem.json; atomic.

        tmem.json also holds a digest of the folder's files, which is checked when it is opened (folders of before have none).
        The optimizer's moments are not kept: learning goes on from a fresh optimizer. Raises OSError where the folder cannot
        be written.
        """
        bank = self.agent.bank
        bank.check(self._row, "save")
        made_with = {**made_by(self.agent), "renderings": self.agent.rendered(BARE)}
        write_memory(Path(path), peft_files(bank, self._row), made_with, self.pairs, self._context)

    def _load(self, path: Path) -> None:
        files, made_with, pairs, context = read_memory(path)
        other = [k for k, v in made_by(self.agent).items() if made_with.get(k) != v]
        if other:
            was = ", ".join(f"{k} {made_with.get(k)}" for k in other)
            raise ValueError(f"load: {path} was made with {was}; open it with the same model and preset.")
        taught, asked = made_with.get("renderings", [BARE]), self.agent.asked(BARE)  # a folder that names none was taught bare
        if not isinstance(taught, list) or asked not in taught:
            raise ValueError(
                f"load: {path} was taught in the words {taught!r:.400}, and the preset asks in {asked!r:.200}; open it with a "
                f"preset whose [answer] asked, and one of whose [learn] renderings, is one of the former."
            )
        self.close()
        self.slot = load_adapter(self.agent.bank, path, files)
        self._lesson, self._context = Lesson(newest(pairs)), context


def _warn_of(pairs: Sequence[Pair], learned: Learned) -> None:
    """Say it where an update was rolled back: not every caller looks at what came back."""
    if not learned.kept:
        logging.getLogger("tmem").warning(
            f"{len(pairs)} pairs were not learned, and the memory is as before: {learned.reason}."
        )


def made_by(agent: Agent) -> dict:
    """What fast weights mean nothing without."""
    bank, config = agent.bank, agent.model.config
    return {
        "model": f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}",
        "weights": fingerprint(agent.model),
        "targets": list(bank.targets),
        "last_layers": bank.last_layers,
        "init": bank.init,
    }


def _text(verb: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{verb}: expected text, got {type(value).__name__}.")
    return whole(verb, value)


def _questions(verb: str, known: Sequence[str]) -> list[str]:
    if isinstance(known, str) or not all(_text(verb, question).strip() for question in known):
        raise ValueError(f"{verb}: known is {known!r:.60}; expected a list of questions, none of them empty.")
    return list(known)


def told_pairs(values: Iterable[tuple[str, str] | Pair]) -> list[Pair]:
    """The pairs that a caller gave; ValueError for what is none, such as a dict, whose keys are two texts as well."""
    out: list[Pair] = []
    if isinstance(values, (str, dict)) or not isinstance(values, Iterable) or not (given := list(values)):
        raise ValueError(f"learn: expected a list of at least one (question, answer) pair, got {values!r:.60}.")
    for n, value in enumerate(given, 1):
        parts = (value.question, value.answer) if isinstance(value, Pair) else value
        if not (isinstance(parts, (tuple, list)) and len(parts) == 2 and all(isinstance(p, str) and p.strip() for p in parts)):
            raise ValueError(f"learn: pair {n} is {value!r:.60}; expected (question, answer), two texts that are not empty.")
        out.append(Pair(*(whole(f"learn: pair {n}", part) for part in parts)))
    return out
