"""Presets: plain TOML files in tmem/presets, read into frozen dataclasses. A key that no dataclass has is an error."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..bank import MLP
from .learn import LearnConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent.parent / "presets"


@dataclass(frozen=True)
class MemoryConfig:
    """Shape of the fast weights; see AdapterBank."""

    rank: int = 16
    targets: tuple[str, ...] = MLP
    last_layers: int = 8
    init: str = "sigma"
    train_a: bool = False
    optimizer: str = "adamw"


@dataclass(frozen=True)
class WriteConfig:
    """`window`: L_max, tokens of working context above which the agent writes; `max_new`: tokens of one write."""

    window: int = 384
    max_new: int = 256
    max_pairs: int = 32


@dataclass(frozen=True)
class AnswerConfig:
    max_new: int = 16


@dataclass(frozen=True)
class AgentConfig:
    """Everything the episode loop needs."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)


def read(name: str | Path) -> dict:
    """The tables of a preset, by name (`default`, `paper`, `study`) or by the path of a .toml file.

    Raises ValueError naming the presets that exist, or the line of a syntax error.
    """
    path = Path(name) if str(name).endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise ValueError(f"preset: no preset {str(name)!r}; expected one of {known}, or the path of a .toml file.")
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"preset: {path} is not valid TOML: {error}.") from error


def build(kind: type, table: dict, where: str):
    """A config dataclass from a TOML table; nested dataclasses from sub-tables. Raises ValueError for an unknown key."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for key, value in table.items():
        if key not in fields:
            raise ValueError(f"preset: [{where}] has no setting {key!r}; expected some of {', '.join(fields)}.")
        default = fields[key].default_factory if fields[key].default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            value = build(default, value, f"{where}.{key}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def agent_config(name: str | Path = "default") -> AgentConfig:
    """The [memory], [learn], [write] and [answer] tables of a preset."""
    known = {f.name for f in dataclasses.fields(AgentConfig)}
    return build(AgentConfig, {k: v for k, v in read(name).items() if k in known}, "agent")
