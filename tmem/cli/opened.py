"""The options with which a store is opened, the same for every verb that opens one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from ..agent.config import DEFAULT_PRESET
from ..models.quantised import BITS

OPTIONS = (
    click.option("--store", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the memories."),
    click.option("--model", help="A folder, a .gguf file or a hub id. [default: the default model]"),
    click.option("--adapter", default="default", show_default=True, help="LoRA adapter over it: a folder, default or none."),
    click.option("--bits", type=click.Choice(BITS), help="The model in few bits (`pip install 'tmem[bits]'`)."),
    click.option("--preset", default=DEFAULT_PRESET, show_default=True, help="Settings of the memories."),
    click.option("--relearn", is_flag=True, help="With another model or preset than before: learn again what was told."),
)


def opens_a_store(command: Callable) -> Callable:
    """Gives a command these options, as arguments of `MemoryStore.open`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
