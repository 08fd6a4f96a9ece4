"""`tmem serve`: an OpenAI-compatible endpoint where every user has a memory in the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .listening import keys_in_file, listening, needs, run, tenants_of
from .opened import opens_a_store


@click.command()
@opens_a_store
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True, help="Memories that have room at once.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8420, show_default=True, help="Port to listen at.")
@click.option("--queue", type=click.IntRange(1), default=64, show_default=True, help="Requests that may wait.")
@keys_in_file("File of lines NAME KEY, one for each tenant. [default: the lines in TMEM_KEYS, else no keys]")
@click.option(
    "--memories", "most", type=click.IntRange(1), default=10_000, show_default=True, help="Memories that a tenant may have."
)
def serve(store: Path, host: str, port: int, queue: int, keys: Path | None, most: int, **opened: Any) -> None:
    """Serve a model whose users each have a memory (docs/serving.md).

    Point an OpenAI client at http://HOST:PORT/v1 and name a user. Without keys, whoever reaches the port reads and writes
    every memory: then it listens on this machine alone. With keys each tenant has memories of its own.
    """
    needs("serve")
    from ..models.loading import DEFAULT
    from ..serve.app import application
    from ..serve.door import LOOPBACK
    from ..store.store import MemoryStore

    tenants = tenants_of(host, keys, "read and write every memory", most)
    with MemoryStore.open(store, **opened) as memories:
        hosts = LOOPBACK if tenants.everybody else ()  # with keys a proxy may call it by any name
        app = application(memories, opened["model"] or DEFAULT, queue=queue, hosts=hosts, tenants=tenants)
        with listening(host, port) as (place, url):
            click.echo(f"{len(memories)} memories in {store}; {url}/v1", err=True)
            run(app, place, queue, "What it acknowledged is on the disk.")
