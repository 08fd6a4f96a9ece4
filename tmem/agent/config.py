"""Settings of the agent, and the presets they come from: TOML files in tmem/presets, read into frozen dataclasses.

No setting has a default here: a preset says all of them, itself or through the one that it extends.
"""

from __future__ import annotations

import os
import reprlib
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from .renderings import BARE, check

DEFAULT_PRESET = "default"  # of everything that takes a preset and is given none
LOOP_PRESET = "stream"  # of `make train` and of the benchmarks of whole episodes
PRESETS = Path(__file__).parent.parent / "presets"
TABLES = ("adapter", "learn", "write", "answer", "train")
RENAMED = {"memory": "adapter", "write.memory": "under_delta"}  # what was called otherwise before
MOST = 2**31 - 1  # of a number
# Whole numbers that may be 0; the others may not.
ZERO = (
    "seed", "rehearse", "contrast", "warm_steps", "warm_plain", "warm_pairs", "rl_steps", "rl_questions", "rl_warmup",
    "rl_resample", "refresh_a", "probe", "control_steps", "cut_words",
)  # fmt: skip
EMPTY = ("data", "corpus")  # lists that may be empty
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string",
         tuple: 'a list of strings such as ["gate_proj", "up_proj"]'}  # fmt: skip

Config = TypeVar("Config")


@dataclass(frozen=True)
class AdapterConfig:
    """The fast weights ΔW = B·A of one slot; see tmem.adapters.bank.AdapterBank.

    rank         r, of A [r, in] and B [out, r]
    targets      names of the linear layers that are adapted
    last_layers  how many layers from the top have them; all of a model that has fewer
    init         how A is drawn: "sigma" (ΣVᵀ of the weight, arXiv 2606.04536), "random" or another of tmem.adapters.init
    train_a      whether A learns too; the paper's is frozen
    optimizer    "adamw" or, as in the paper, "sgd"
    """

    rank: int
    targets: tuple[str, ...]
    last_layers: int
    init: str
    train_a: bool
    optimizer: str


@dataclass(frozen=True)
class LearnConfig:
    """Online supervised learning of question/answer pairs into one slot; see tmem.agent.learn.

    lr               learning rate
    epochs           passes over the pairs
    batch            pairs per minibatch and slot
    every            passages at most that are learned in one update, where more than one is due; each update rehearses, so more
                     of them are faster
    rehearse         earlier pairs of the episode learned again with each write; without them it forgets the last one
    contrast         abstentions learned with each write, of questions about somebody else; see tmem.agent.teach
    renderings       the words in which pairs are taught, one an epoch in turns; each a text with {question} and, where it
                     says how to abstain, {unknown}; see tmem.agent.renderings
    reverse          the words in which a pair's question is taught from its answer, after the renderings in turns with them; a
                     text with {answer}, or an empty one: it is not
    unknown          the answer that abstains; `tmem eval` takes the task's words where a task has some
    target           mean answer-token loss (nats) of an epoch below which a slot has learned enough, if it was taught in
                     every rendering, and stops; 0: never
    clip             gradient norm per slot; 0: off
    weight_decay     decoupled, per step
    norm_cap         ‖ΔW‖_F above which a write is rolled back; 0: off
    max_pair_tokens  tokens of a question and its answer; a longer question loses its beginning
    """

    lr: float
    epochs: int
    batch: int
    every: int
    rehearse: int
    contrast: int
    renderings: tuple[str, ...]
    reverse: str
    unknown: str
    target: float
    clip: float
    weight_decay: float
    norm_cap: float
    max_pair_tokens: int

    @property
    def turns(self) -> int:
        """After how many epochs a pair was taught in all ways."""
        return len(self.renderings) + bool(self.reverse)


@dataclass(frozen=True)
class WriteConfig:
    """When the agent writes, and how much.

    window       L_max, tokens of working context above which it writes
    replies      1: a write is one reply that lists the pairs. More: so many spans of the passage, and a question to each, see
                 tmem.agent.spans
    max_new      tokens of one reply
    max_pairs    pairs of one write
    starts       of many replies: first tokens with which a known question's answer is tried, see tmem.agent.write.stands
    unknown      what a writer of many replies was taught to say where the passage does not answer; a memory says
                 `learn.unknown`
    under_delta  whether the fast weights learned so far take part in writing, as in the paper. Without them (false) a model
                 that was never taught to write under a learned Δ still writes after its first write; what it writes then does
                 not depend on what it learned.
    """

    window: int
    replies: int
    max_new: int
    max_pairs: int
    starts: int
    unknown: str
    under_delta: bool


@dataclass(frozen=True)
class AnswerConfig:
    """How questions are asked.

    max_new  tokens of one answer
    asked    the words in which Δ is asked, one of `learn.renderings`
    sure     an answer out of Δ one of whose tokens had a smaller probability is an abstention instead; 0: none is
    gain     and so is one from which Δ does not make the question likelier by so many nats a token, see
             tmem.agent.recognise; needs [learn] reverse; 0: none is
    """

    max_new: int
    asked: str
    sure: float
    gain: float

    def __post_init__(self):
        if not self.sure < 1:
            raise ValueError(f"preset: [answer] sure: expected a probability of 0 to below 1, got {self.sure:g}.")


@dataclass(frozen=True)
class AgentConfig:
    """Everything the episode loop needs: four tables of a preset. Raises ValueError where `renderings.check` does."""

    adapter: AdapterConfig
    learn: LearnConfig
    write: WriteConfig
    answer: AnswerConfig

    def __post_init__(self):
        check(self.answer.asked, self.learn.renderings, self.learn.epochs, self.learn.reverse)
        if self.answer.gain and not self.learn.reverse:
            raise ValueError("preset: [answer] gain: it needs [learn] reverse, a text with {answer}; or set it to 0.")


def agent_config(name: str | Path = DEFAULT_PRESET) -> AgentConfig:
    """The [adapter], [learn], [write] and [answer] tables of a preset. Raises ValueError, see `read` and `build`."""
    tables = read(name)
    kinds = typing.get_type_hints(AgentConfig)
    return AgentConfig(**{table: build(kind, tables.get(table, {}), table) for table, kind in kinds.items()})


def read(name: str | Path) -> dict[str, dict]:
    """The tables of a preset, by its name in tmem/presets or by the path of a .toml file, laid over those that it extends.

    `extends` is such a name or path, a path from the folder of the file that says so.
    Raises ValueError naming the presets that exist, the line of a syntax error, a table that means nothing, or a circle.
    """
    chain: list[dict[str, dict]] = []
    files: list[Path] = []
    base: str | Path | None = name
    while base is not None:
        file = _file(base, files[-1].parent if files else Path())
        if file.resolve() in [f.resolve() for f in files]:
            raise ValueError(f"preset: {files[-1]} extends {file}, which is built on it; take one of their `extends` out.")
        own, base = _tables(file)
        files.append(file)
        chain.append(own)
    tables: dict[str, dict] = {}
    for own in reversed(chain):
        for table, values in own.items():
            tables[table] = {**tables.get(table, {}), **values}
    return tables


def build(kind: type[Config], table: Mapping[str, Any], where: str) -> Config:
    """The dataclass `kind` from a preset's table [`where`].

    Raises ValueError for an unknown setting, for one that is missing, and for a value of another kind or out of its range.
    """
    kinds, values = typing.get_type_hints(kind), {}
    for key, value in table.items():
        if key not in kinds:
            raise ValueError(f"preset: [{where}] has no setting {reprlib.repr(key)}; {_instead(where, key, kinds)}.")
        values[key] = _value(kinds[key], value, f"[{where}] {key}")
    if missing := [key for key in kinds if key not in values]:
        lacks = f"[{where}] lacks {', '.join(missing)}" if values else f"[{where}] is missing"
        raise ValueError(f'preset: {lacks}; begin the file with extends = "{DEFAULT_PRESET}", or say all of [{where}] in it.')
    return kind(**values)


def _instead(where: str, key: str, known: Iterable[str]) -> str:
    """What to write where there is no setting `key`."""
    if key == "extends":
        return "it stands above the first table"
    now = RENAMED.get(f"{where}.{key}")
    return f"it is called {now} now" if now else f"expected some of {', '.join(known)}"


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as of `kind`. A list has strings in it, and one at least unless it is one of EMPTY."""
    kind = typing.get_origin(kind) or kind
    if kind is tuple:
        whole = value or where.split()[-1] in EMPTY
        fits = isinstance(value, list | tuple) and whole and all(type(v) is str and v for v in value)
    else:
        fits = type(value) is kind or kind is float and type(value) is int
    if not fits:
        raise ValueError(f"preset: {where}: expected {KINDS[kind]}, got {reprlib.repr(value)}.")
    if kind in (int, float):
        least = 0 if kind is float or where.split()[-1] in ZERO else 1
        if not least <= value <= MOST:
            bound = f"{MOST} or less" if value > MOST else f"{least} or more"
            raise ValueError(f"preset: {where}: expected {bound}, got {reprlib.repr(value)}.")
    return kind(value)


def renamed(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """An agent's settings as a run of before recorded them, by the names of now."""
    out = {}
    for key, value in settings.items():
        name = f"{where}{key}"
        out[RENAMED.get(name, key)] = renamed(value, f"{name}.") if isinstance(value, Mapping) else value
    return out


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`renamed`, and what an agent did before presets said it.

    Pairs were taught and asked bare, and written as a list; every passage was learned by itself.
    """
    out = renamed(settings)
    for table, name, value in (
        ("learn", "renderings", [BARE]),
        ("learn", "every", 1),
        ("learn", "reverse", ""),
        ("answer", "asked", BARE),
        ("answer", "sure", 0.0),
        ("answer", "gain", 0.0),
        ("write", "replies", 1),
        ("write", "starts", 1),
        ("write", "unknown", "unknown"),
    ):
        if isinstance(out.get(table), dict):
            out[table].setdefault(name, value)
    return out


def _file(name: str | Path, folder: Path) -> Path:
    """Where a preset lies; a path is one from `folder`."""
    file = folder / name if str(name).endswith(".toml") else PRESETS / f"{name}.toml"
    if not os.path.isfile(file):
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise ValueError(f"preset: no preset {str(name)!r:.200}; expected one of {known}, or the path of a .toml file.")
    return file


def _tables(file: Path) -> tuple[dict[str, dict], str | None]:
    """A file's own tables, and the preset that it extends."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, too
        raise ValueError(f"preset: {file} is not valid TOML: {error}.") from error
    base = tables.pop("extends", None)
    if not isinstance(base, str | None):
        raise ValueError(f"preset: {file}: extends: expected a preset's name or path, got {reprlib.repr(base)}.")
    for table, values in tables.items():
        if table not in TABLES:
            now = RENAMED.get(table)
            expected = f"it is called [{now}] now" if now else f"expected the tables {', '.join(TABLES)}"
            raise ValueError(f"preset: {file} has [{table}]; {expected}.")
        if not isinstance(values, dict):
            raise ValueError(f"preset: {file}: [{table}]: expected a table of settings, got {reprlib.repr(values)}.")
    return tables, base
