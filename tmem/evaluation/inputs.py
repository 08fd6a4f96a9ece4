"""Which weights, settings and data a result belongs to, told by what their files hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..agent.config import AgentConfig
from ..files.digest import digest
from ..models import loading
from ..models.lora import CONFIG, WEIGHTS
from ..tasks import left_out
from ..tasks.records import files
from .config import EvalConfig, Inputs

# Beside the weights, what makes a model answer as it does.
BESIDE_WEIGHTS = ("config.json", "tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*",
                  "merges.txt")  # fmt: skip


def inputs_of(config: EvalConfig, settings: AgentConfig, left: left_out.LeaveOut | None = None) -> Inputs:
    """The record of what `config` names. settings: of its preset. left: the questions left out, once the data were read."""
    base, over = loading.apart(config.model, config.adapter)
    folder, data = loading.resolve(base), [Path(f) for f in (*files(config.data), *config.corpus)]
    adapter = [] if over is None else [over / name for name in (CONFIG, WEIGHTS)]
    return Inputs(
        model=config.model or loading.DEFAULT,
        preset=str(config.preset),
        settings=dataclasses.asdict(settings),
        data=", ".join(f.name for f in data) or None,
        data_blake2b=digest(*data) if data else None,
        weights_blake2b=digest(*sorted(folder.glob("*.safetensors")), *adapter),
        tokenizer_blake2b=digest(*sorted({f for pattern in BESIDE_WEIGHTS for f in folder.glob(pattern) if f.is_file()})),
        **left_out.about(left),
        adapter=loading.PACKAGED if over == loading.WRITER else None if over is None else str(over),
    )
