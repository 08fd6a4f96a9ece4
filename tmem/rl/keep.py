"""What training is to leave as it was: the model's own answers to plain requests, without a text and without Δ.

A model that is taught to read, and to abstain where a text does not say, otherwise abstains from all that it knew before.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel

from ..agent.decode import decode
from ..models.chat import Chat
from .supervised import Example

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["drawn", "kept", "requests"]

MAX_NEW = 24  # tokens of an answer; a longer one is kept as far as that
AT_ONCE = 4  # of them a step


@cache
def requests() -> list[str]:
    """The requests of plain.toml. A short question stands there as it is, and once more asked for one word."""
    table = tomllib.loads(Path(__file__).with_name("plain.toml").read_text(encoding="utf-8"))
    return [text for q in table["short"] for text in (q, f"{q} Answer in one word.")] + table["open"]


def kept(model: PreTrainedModel, chat: Chat) -> list[Example]:
    """The requests with the model's own greedy answers, as supervised examples."""
    prompts = [chat.prompt(text) for text in requests()]
    return [Example(p, g.ids) for p, g in zip(prompts, decode(model, prompts, end=chat.ends, max_new=MAX_NEW)) if g.ids]


def drawn(examples: Sequence[Example], seed: int, step: int) -> list[Example]:
    """Those of one step."""
    return random.Random(f"{seed}/keep/{step}").sample(examples, min(AT_ONCE, len(examples)))
