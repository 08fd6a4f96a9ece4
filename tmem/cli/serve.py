"""`tmem serve`: an OpenAI-compatible endpoint where every user has a memory in the weights."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .group import refuse
from .opened import opens_a_store

if TYPE_CHECKING:
    from ..serve.tenants import Tenants

ENVIRONMENT = "TMEM_KEYS"  # lines as in the file of --keys
GRACE = 5  # seconds that answers under way have when the server is to end


@click.command()
@opens_a_store
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True, help="Memories that have room at once.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8420, show_default=True, help="Port to listen at.")
@click.option("--queue", type=click.IntRange(1), default=64, show_default=True, help="Requests that may wait.")
@click.option(
    "--keys",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of lines NAME KEY, one for each tenant. [default: the lines in TMEM_KEYS, else no keys]",
)
@click.option(
    "--memories", "most", type=click.IntRange(1), default=10_000, show_default=True, help="Memories that a tenant may have."
)
def serve(store: Path, host: str, port: int, queue: int, keys: Path | None, most: int, **opened: Any) -> None:
    """Serve a model whose users each have a memory (docs/serving.md).

    Point an OpenAI client at http://HOST:PORT/v1 and name a user. Without keys, whoever reaches the port reads and writes
    every memory: then it listens on this machine alone. With keys each tenant has memories of its own.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError("tmem serve needs starlette and uvicorn: pip install 'tmem[serve]'.") from error
    from ..models.loading import DEFAULT
    from ..serve.app import LOOPBACK, application
    from ..store.store import MemoryStore

    tenants = _tenants(host, keys, most)
    with MemoryStore.open(store, **opened) as memories:
        hosts = LOOPBACK if tenants.everybody else ()  # with keys a proxy may call it by any name
        app = application(memories, opened["model"] or DEFAULT, queue=queue, hosts=hosts, tenants=tenants)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        with _listening(host, port) as place:
            click.echo(f"{len(memories)} memories in {store}; http://{host}:{place.getsockname()[1]}/v1", err=True)
            _run(app, place, queue)


def _tenants(host: str, file: Path | None, most: int) -> Tenants:
    """Who may call. Raises ValueError for keys that are none, and for an address that others reach without any."""
    from ..serve.app import LOOPBACK
    from ..serve.tenants import Tenants, keys_in

    if file is None and ENVIRONMENT not in os.environ:
        refuse("a server without keys", ["most"])
        if host not in LOOPBACK:
            raise ValueError(
                f"--host {host}: others reach this address, and without keys they would read and write every memory; give "
                f"--keys or {ENVIRONMENT}."
            )
        return Tenants()
    if file is None:
        return Tenants(keys_in(os.environ[ENVIRONMENT], ENVIRONMENT), most)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8; write lines NAME KEY.") from None
    return Tenants(keys_in(text, str(file)), most)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ValueError where that cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}; choose others.") from error


def _run(app, place: socket.socket, queue: int) -> None:
    """Serve until a signal comes. What is under way then has GRACE seconds to end; says that it ended, and raises as Ctrl-C and
    SIGTERM do for any verb."""
    import uvicorn

    settings = uvicorn.Config(
        app, access_log=False, log_level="warning", limit_concurrency=4 * queue + 64, timeout_graceful_shutdown=GRACE
    )
    try:
        uvicorn.Server(settings).run(sockets=[place])
    except (KeyboardInterrupt, SystemExit):
        click.echo("The server has ended. What it acknowledged is on the disk.", err=True)
        raise
