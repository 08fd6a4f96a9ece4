"""Presets: plain TOML files in tmem/presets, read into frozen dataclasses. A key that no dataclass has is an error."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters.bank import MLP
from .learn import LearnConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent.parent / "presets"
TABLES = ("adapter", "learn", "write", "answer", "train")
MOST = 2**31 - 1  # of a number
# Whole numbers that may be 0; the others may not.
ZERO = (
    "seed", "rehearse", "contrast", "warm_steps", "warm_plain", "rl_steps", "rl_questions", "rl_warmup", "rl_resample",
    "refresh_a", "probe", "control_steps",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """Shape of the fast weights; see AdapterBank."""

    rank: int = 16
    targets: tuple[str, ...] = MLP
    last_layers: int = 8
    init: str = "sigma"
    train_a: bool = False
    optimizer: str = "adamw"


@dataclass(frozen=True)
class WriteConfig:
    """`window`: L_max, tokens of working context above which the agent writes; `max_new`: tokens of one write.

    `under_delta`: the fast weights learned so far take part in writing, as in the paper. Without them (false) a model that was
    never taught to write under a learned Δ still writes after its first write; what it writes then does not depend on what was.
    """

    window: int = 384
    max_new: int = 256
    max_pairs: int = 32
    under_delta: bool = True


@dataclass(frozen=True)
class AnswerConfig:
    max_new: int = 16


@dataclass(frozen=True)
class AgentConfig:
    """Everything the episode loop needs."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)


def read(name: str | Path) -> dict:
    """The tables of a preset, by its name in tmem/presets or by the path of a .toml file.

    Raises ValueError naming the presets that exist, the line of a syntax error, or a table that means nothing.
    """
    path = Path(name) if str(name).endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise ValueError(f"preset: no preset {str(name)!r}; expected one of {known}, or the path of a .toml file.")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, too
        raise ValueError(f"preset: {path} is not valid TOML: {error}.") from error
    unknown = [t for t in tables if t not in TABLES]
    if unknown:
        raise ValueError(f"preset: {path} has [{unknown[0]}]; expected the tables {', '.join(TABLES)}.")
    return tables


def build(kind: type, table: dict, where: str):
    """A config dataclass from a TOML table; nested dataclasses from sub-tables.

    Raises ValueError for an unknown key, and for a value of another kind than the default's or out of its range.
    """
    if not isinstance(table, dict):
        raise ValueError(f"preset: [{where}]: expected a table of settings, got {reprlib.repr(table)}.")
    defaults, values = kind(), {}
    known = [f.name for f in dataclasses.fields(kind)]
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"preset: [{where}] has no setting {reprlib.repr(key)}; expected some of {', '.join(known)}.")
        default = getattr(defaults, key)
        nested = dataclasses.is_dataclass(default)
        values[key] = build(type(default), value, key) if nested else _value(default, value, f"[{where}] {key}")
    return kind(**values)


def _value(default: Any, value: Any, where: str) -> Any:
    """`value` as the kind that `default` is of. A list has strings in it, and one at least."""
    if isinstance(default, tuple):
        fits = isinstance(value, list) and value and all(type(v) is str and v for v in value)
    else:
        fits = type(value) is type(default) or isinstance(default, float) and type(value) is int
    if not fits:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", tuple: "a list of names"}
        expected = f"{kinds[type(default)]} such as {list(default) if isinstance(default, tuple) else default!r}"
        raise ValueError(f"preset: {where}: expected {expected}, got {reprlib.repr(value)}.")
    if type(default) in (int, float):
        least = 0 if isinstance(default, float) or where.split()[-1] in ZERO else 1
        if not least <= value <= MOST:
            bound = f"{MOST} or less" if value > MOST else f"{least} or more"
            raise ValueError(f"preset: {where}: expected {bound}, got {reprlib.repr(value)}.")
    return type(default)(value)


def agent_config(name: str | Path = "default") -> AgentConfig:
    """The [adapter], [learn], [write] and [answer] tables of a preset."""
    return build(AgentConfig, {k: v for k, v in read(name).items() if k != "train"}, "agent")
