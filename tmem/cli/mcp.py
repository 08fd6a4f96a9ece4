"""`tmem mcp`: a memory as tools for agents that speak the Model Context Protocol."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from .opened import opens_a_store


@click.command()
@opens_a_store
@click.option("--memory", default="default", show_default=True, help="Which memory of it; made where there is none.")
def mcp(store: Path, memory: str, **opened: Any) -> None:
    """Offer a memory to an agent as tools, over standard input and output.

    The tools are remember, learn, ask, facts and forget. An agent's configuration names this command, and starts it
    (docs/serving.md). `tmem serve` cannot have the same store at the same time.
    """
    try:
        from ..serve.tools import tools
    except ImportError as error:
        raise ValueError("tmem mcp needs the package mcp: pip install 'tmem[mcp]'.") from error
    from ..store.store import MemoryStore

    logging.getLogger("mcp").setLevel(logging.WARNING)  # else it logs names and texts of failed calls
    with MemoryStore.open(store, slots=1, **opened) as memories:
        click.echo(f"memory {memory!r} of {store}; {len(memories)} memories there", err=True)
        tools(memories, memory).run("stdio")
