"""The servers that are compared, each in a process of its own on loopback, and what they say of themselves."""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ..agent.agent import Agent
from ..agent.config import DEFAULT_PRESET, agent_config
from ..models import loading
from ..models.quantised import hush
from ..models.tiny import default_or_tiny

NAMES = ("tmem", "straightforward")
MINUTES = 10  # that a server may take to start


@dataclass(frozen=True)
class Setup:
    """quick: a tiny random model; slots, queue: as of `tmem serve`; threads: of torch."""

    quick: bool
    slots: int
    queue: int
    threads: int


@dataclass
class Running:
    """A server's address, and `about`: what it heard since it was asked last, and what it did since it began.

    heard     digests of the bodies of its requests with their paths, sorted
    steps     of optimizers, one for each slot that took it
    resident  bytes of memory that its process held at most
    gpu       bytes of a GPU's memory that it held at most
    """

    url: str
    about: Callable[[], dict[str, Any]]


@contextmanager
def running(name: str, setup: Setup) -> Iterator[Running]:
    """A server of NAMES. Raises RuntimeError where it does not start."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(name, setup, there), daemon=True)
    process.start()
    there.close()
    lock = threading.Lock()

    def told(word: str) -> Any:
        with lock:
            here.send(word)
            return here.recv()

    try:
        try:
            port = here.recv() if here.poll(60 * MINUTES) else None
        except EOFError:
            port = None
        if port is None:
            raise RuntimeError(f"bench serve: the server {name!r} did not start; its error stands above.")
        yield Running(f"http://127.0.0.1:{port}", lambda: told("about"))
        here.send("end")
    finally:
        process.join(20)
        if process.is_alive():
            process.terminate()
            process.join()


@dataclass
class _Heard:
    """An ASGI application that remembers what was asked for."""

    app: Any
    digests: list[str] = field(default_factory=list)

    async def __call__(self, scope, receive, send) -> None:
        content = bytearray()

        async def read():
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                content.extend(message.get("body", b""))
                self.digests.append(hashlib.sha256(scope["path"].encode() + bytes(content)).hexdigest()[:16])
            elif message["type"] == "http.request":
                content.extend(message.get("body", b""))
            return message

        await self.app(scope, read if scope["type"] == "http" else receive, send)


def _serve(name: str, setup: Setup, pipe: Connection) -> None:
    hush()
    torch.set_num_threads(setup.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = loading.default_dtype(device)
    model = default_or_tiny(True, device, dtype) if setup.quick else loading.load_model(adapter="default")
    agent = Agent.build(*model, agent_config(DEFAULT_PRESET), slots=setup.slots if name == "tmem" else 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        (_tmem if name == "tmem" else _plain)(agent, setup, Path(folder)) as (app, steps),
    ):
        heard = _Heard(app)
        with listening(heard) as port:
            pipe.send(port)
            while pipe.recv() == "about":
                unit = 1 if sys.platform == "darwin" else 1024
                gpu = torch.cuda.max_memory_allocated() if device == "cuda" else 0
                resident = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                told, heard.digests = sorted(heard.digests), []
                pipe.send({"heard": told, "steps": steps(), "resident": resident, "gpu": gpu})


@contextmanager
def _tmem(agent: Agent, setup: Setup, folder: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    """The application that `tmem serve` runs."""
    from ..serve.app import application
    from ..store.store import MemoryStore

    taken: list[int] = []
    step = agent.bank.step

    def counted(slots):
        taken.append(len(slots))
        return step(slots)

    agent.bank.step = counted  # type: ignore[method-assign]
    with MemoryStore(agent, folder / "store") as store:
        yield application(store, "model", queue=setup.queue), lambda: sum(taken)


@contextmanager
def _plain(agent: Agent, setup: Setup, folder: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    from .plain_server import PlainServer, plain_application

    server = PlainServer(agent)
    yield plain_application(server), lambda: server.steps


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """The port at which an application listens while the block runs."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
