"""`tmem serve`: an OpenAI-compatible endpoint where every user has a memory in the weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from ..agent.config import DEFAULT_PRESET


@click.command()
@click.option("--store", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the memories.")
@click.option("--model", help="A folder, a .gguf file or a hub id. [default: the default model]")
@click.option("--adapter", default="default", show_default=True, help="LoRA adapter over it: a folder, default or none.")
@click.option("--preset", default=DEFAULT_PRESET, show_default=True, help="Settings of the memories.")
@click.option("--relearn", is_flag=True, help="With another model or preset than before: learn again what was told.")
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True, help="Memories that have room at once.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8420, show_default=True, help="Port to listen at.")
@click.option("--queue", type=click.IntRange(1), default=64, show_default=True, help="Requests that may wait.")
def serve(store: Path, host: str, port: int, queue: int, **opened: Any) -> None:
    """Serve a model whose users each have a memory (docs/serving.md).

    Point an OpenAI client at http://HOST:PORT/v1 and name a user. There are no keys: whoever reaches the port reads and
    writes every memory, so keep it on this machine.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError("tmem serve needs starlette and uvicorn: pip install 'tmem[serve]'.") from error
    from ..models.loading import DEFAULT
    from ..serve.app import LOOPBACK, application
    from ..store.store import MemoryStore

    with MemoryStore.open(store, **opened) as memories:
        hosts = LOOPBACK if host in LOOPBACK else ()
        app = application(memories, opened["model"] or DEFAULT, queue=queue, hosts=hosts)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        click.echo(f"{len(memories)} memories in {store}; http://{host}:{port}/v1", err=True)
        uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning", limit_concurrency=4 * queue + 64)
