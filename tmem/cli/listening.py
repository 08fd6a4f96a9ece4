"""What the verbs that start a server share: who may call, where it listens, and how it ends."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .group import refuse

if TYPE_CHECKING:
    from ..serve.tenants import Tenants

ENVIRONMENT = "TMEM_KEYS"  # lines as in the file of --keys
SILENT = 20.0  # seconds that a connection may be open before its first request has begun
GRACE = 5  # seconds that answers under way have when the server is to end


def keys_in_file(what: str) -> Callable[[Callable], Callable]:
    """Gives a command the option --keys, described so."""
    return click.option("--keys", type=click.Path(dir_okay=False, path_type=Path), help=what)


def needs(verb: str) -> None:
    """Raises ValueError where the packages of a server are not there."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"tmem {verb} needs starlette and uvicorn: pip install 'tmem[serve]'.") from error


def keys_of(file: Path | None) -> list[tuple[str, str]]:
    """Names and keys in a file, or else in the environment; none where neither says any. Raises ValueError."""
    from ..serve.keys import keys_in

    if file is None:
        return keys_in(os.environ[ENVIRONMENT], ENVIRONMENT) if ENVIRONMENT in os.environ else []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8; write lines NAME KEY.") from None
    return keys_in(text, str(file))


def tenants_of(host: str, file: Path | None, would: str, most: int | None = None) -> Tenants:
    """Who may call. most: memories that each may have; would: what whoever has no key would else do.

    Raises ValueError for keys that are none, and for an address that others reach without any.
    """
    from ..serve.door import LOOPBACK
    from ..serve.tenants import MEMORIES, Tenants

    if keys := keys_of(file):
        return Tenants(keys, MEMORIES if most is None else most)
    if most is not None:
        refuse("a server without keys", ["most"])
    if host not in LOOPBACK:
        raise ValueError(
            f"--host {host}: others reach this address, and without keys they would {would}; give --keys or {ENVIRONMENT}."
        )
    return Tenants()


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens there, and its address. Raises ValueError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}; choose others.") from error
    with place:
        name = f"[{host}]" if ":" in host else host
        yield place, f"http://{name}:{place.getsockname()[1]}"


def _impatient() -> type:
    """uvicorn's protocol, which closes a connection whose first request has not begun after SILENT seconds: connections are
    bounded, and idle ones would keep others out."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Impatient(AutoHTTPProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(SILENT, lambda: transport.close() if self.cycle is None else None)

    return Impatient


def run(app: Any, place: socket.socket, queue: int, kept: str) -> None:
    """Serve until a signal comes, and log each request. What is under way then has GRACE seconds to end; says that it ended,
    with the sentence `kept`, and raises as Ctrl-C and SIGTERM do for any verb."""
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = uvicorn.Config(
        app, access_log=False, log_level="warning", limit_concurrency=4 * queue + 64, timeout_graceful_shutdown=GRACE,
        http=_impatient(),
    )  # fmt: skip
    try:
        uvicorn.Server(settings).run(sockets=[place])
    except (KeyboardInterrupt, SystemExit):
        click.echo(f"The server has ended. {kept}", err=True)
        raise
