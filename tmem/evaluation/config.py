"""What `tmem eval` can be asked for. This is the one place that names an option.

The command line builds an `EvalConfig`, and `config` of results.json is made from it (`recorded`). A run that goes on compares
these records, and a report reads from here which of them make scores comparable (`PROTOCOL`) and in which words (`line`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..agent.config import DEFAULT_PRESET
from ..methods.prompts import FEW_SHOT, FORMS
from ..tasks.names import TASKS

SEARCH = ("search",)
READ = tuple(task for task in TASKS if task not in SEARCH)  # whose episodes are read first and asked about afterwards
COMPARED = tuple(task for task in READ if task != "clbench")  # whose answers are short and compared with right ones


@dataclass(frozen=True)
class Note:
    """What is to be known of an option beside its value.

    of: the tasks that it is for; () for all. recorded: it stands in results.json under its own name. always: of every task.
    protocol: scores are comparable only where it is the same. scales: it changes with the number of questions asked at once.
    words: how the protocol line says it, at which `place`; "" for not at all.
    """

    of: tuple[str, ...] = ()
    recorded: bool = True
    always: bool = False
    protocol: bool = True
    scales: bool = False
    words: str = ""
    place: int = 0

    def stands(self, task: str) -> bool:
        """Whether results.json of `task` names it: a search and the other tasks leave out each other's options."""
        ours = not self.of or (task in self.of if task in SEARCH else self.of != SEARCH)
        return self.recorded and (self.always or ours)


def _option(default: Any = None, **note: Any) -> Any:
    return field(default=default, metadata={"note": Note(**note)})


def _fact(**note: Any) -> Any:
    return field(metadata={"note": Note(**{"protocol": False, **note})})


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation as it was asked for; None leaves a choice to the task, the preset or the model.

    data: the task's file or files. limit: questions of a conversation (locomo), sets (search), else episodes. seed, seeds:
    `seeds` replicates from `seed` on. A seed draws the episodes (stream), what a `limit` leaves, the order of choices, and the
    subspace of the fast weights where the preset's init draws one. Decoding is greedy, so a method that none of them touches
    answers the same again. leave_out: a file that names questions not to ask, see tmem.tasks.left_out.
    corpus: files of documents; without any, the questions' own contexts. search_by: bm25 or dense. objectives: questions at
    once. turns: before the answer is asked for. context: tokens of text in a prompt; of a search: of a prompt. answer_tokens:
    of an answer at most; of a search: of a turn. known: each question is an episode of its own and stands in the prompts that
    write (the paper's protocol: the history is read once for every question); in a search all of a set stand there. prompt:
    how the methods that show text are asked, "few-shot", or "instruction" for a model that was trained to read in those words,
    see tmem.methods.prompts. each: of a search, ask every question by itself at the end, about text in that form; None: a turn
    answers them all. probe: ask paraphrases after each write. adapter: over the model, see tmem.models.loading.apart.
    bits: of its linear layers, see tmem.models.quantised.
    Raises ValueError for a task, a prompt or a way to search that is not there, and for less than one seed.
    """

    task: str = _option("stream", recorded=False)
    model: str | None = _option(recorded=False, protocol=False)
    adapter: str | None = _option("default", recorded=False, protocol=False)
    bits: str | None = _option(protocol=False)
    preset: str = _option(DEFAULT_PRESET, recorded=False, protocol=False)
    data: str | tuple[str, ...] | None = _option(recorded=False)
    leave_out: str | None = _option(recorded=False)
    corpus: tuple[str, ...] = _option((), of=SEARCH, recorded=False)
    search_by: str = _option("bm25", of=SEARCH, words="search by {}", place=6)
    objectives: int | None = _option(of=SEARCH, scales=True)
    turns: int | None = _option(of=SEARCH, scales=True, words="{} turns", place=5)
    limit: int | None = _option(scales=True, words="limit {}", place=3)
    seed: int = _option(0)
    seeds: int = _option(1)
    split: str = _option("test", of=("stream", "passages"), words="{} split", place=1)
    difficulty: int = _option(1, of=("stream",), words="difficulty {}", place=2)
    adversarial: str = _option("open", of=("locomo",), words="adversarial {}", place=4)
    context: int | None = _option(words="{} tokens of text in a prompt", place=8)
    answer_tokens: int | None = _option(scales=True, words="answers of {} tokens at most", place=9)
    known: bool = _option(False)
    each: str | None = _option(of=SEARCH, words="each question asked by itself, about text by {}", place=11)
    prompt: str = _option(FEW_SHOT, of=COMPARED, words="text asked about by {}", place=10)
    probe: bool = _option(False, of=READ, protocol=False)

    def __post_init__(self):
        for name, every in (
            ("task", TASKS), ("search_by", ("bm25", "dense")), ("prompt", FORMS), ("each", (None, *FORMS)),
        ):  # fmt: skip
            if (value := getattr(self, name)) not in every:
                raise ValueError(f"eval: {name} is {value!r}; expected one of {', '.join(filter(None, every))}.")
        if self.seeds < 1:
            raise ValueError(f"eval: seeds is {self.seeds}; expected at least 1.")

    @property
    def replicates(self) -> range:
        """The seeds, `seed` the first of them."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def foreign(self) -> tuple[str, ...]:
        """The options that mean nothing for this task."""
        notes = ((f.name, f.metadata["note"].of) for f in dataclasses.fields(self))
        return tuple(name for name, of in notes if of and self.task not in of)


@dataclass(frozen=True)
class Inputs:
    """Which weights, settings and data a result belongs to: what the names and files of an `EvalConfig` held.

    settings: of the preset. data: names of files. tokenizer_blake2b: of the model's other files, its configuration, tokenizer
    and chat template. leave_out: how many questions. adapter: over the model; weights_blake2b covers its
    files too. Digests are of 8 bytes, in hexadecimal digits.
    """

    model: str = _fact()
    preset: str = _fact()
    settings: dict = _fact()
    data: str | None = _fact()
    data_blake2b: str | None = _fact(protocol=True)
    weights_blake2b: str = _fact()
    tokenizer_blake2b: str = _fact()
    leave_out: int | None = _fact()
    leave_out_blake2b: str | None = _fact(protocol=True)
    adapter: str | None = _fact()


@dataclass(frozen=True)
class Extent:
    """What was found in the data: episodes of one seed; how a task dates its questions; the data's own name, if it has one."""

    episodes: int = _fact(protocol=True, scales=True)
    dated: str | None = _fact(of=READ, protocol=True, words="questions dated by {}", place=7)
    called: str | None = _fact(of=READ)


_NOTES: Mapping[str, Note] = {
    f.name: f.metadata["note"]
    for part in (Inputs, EvalConfig, Extent)
    for f in dataclasses.fields(part)
    if f.metadata["note"].recorded
}
# What must agree, beside task and judge, for scores to stand in one table. Model, preset and settings are what is compared.
PROTOCOL = tuple(name for name, note in _NOTES.items() if note.protocol)
SCALING = tuple(name for name, note in _NOTES.items() if note.scales)


def recorded(config: EvalConfig, inputs: Inputs, extent: Extent) -> dict[str, Any]:
    """`config` of results.json. An option that is for another task is None, or left out, see `Note.stands`."""
    out = {}
    for part in (inputs, config, extent):
        for f in dataclasses.fields(part):
            note = f.metadata["note"]
            if note.stands(config.task):
                means = note.always or not note.of or config.task in note.of
                out[f.name] = getattr(part, f.name) if means else None
    return out


def line(recorded: Mapping[str, Any]) -> list[str]:
    """The parts of a protocol line that say options and facts in their own words, in the order of their places."""
    said = sorted((note.place, name, note.words) for name, note in _NOTES.items() if note.words)
    return [words.format(recorded[name]) for _, name, words in said if recorded.get(name) is not None]
