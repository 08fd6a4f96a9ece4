"""Memory in the weights of a language model: an agent writes question/answer pairs while it reads, and learns them.

`__all__` is the public interface. Each name is imported when it is first used, so `import tmem` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops, testing
    from .adapters.bank import AdapterBank
    from .agent.agent import Agent
    from .episode import Episode, Pair, Question
    from .evaluation.config import EvalConfig
    from .evaluation.evaluate import evaluate
    from .memory import Memory
    from .store.store import MemoryStore
    from .tasks.task import Task

__version__ = "0.1.0"

__all__ = [
    "Memory", "MemoryStore", "Agent", "AdapterBank", "Episode", "Question", "Pair", "Task", "EvalConfig", "evaluate", "ops",
    "testing",
]  # fmt: skip

_MODULES = {
    "Memory": "memory",
    "MemoryStore": "store.store",
    "Agent": "agent.agent",
    "AdapterBank": "adapters.bank",
    "Episode": "episode",
    "Question": "episode",
    "Pair": "episode",
    "Task": "tasks.task",
    "EvalConfig": "evaluation.config",
    "evaluate": "evaluation.evaluate",
}


def __getattr__(name: str) -> Any:
    if name in ("ops", "testing"):
        return importlib.import_module(f"tmem.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'tmem' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"tmem.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
