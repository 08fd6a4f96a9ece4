"""What the routes share."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from ..store.store import MemoryStore
from .batch import Say
from .engine import Engine, Learn, Steps, Work
from .metrics import Metrics
from .tenants import tenant_of
from .wire import while_connected


@dataclass
class Server:
    """A store, its engine and the counters. model: the name under which the model is served."""

    store: MemoryStore
    engine: Engine
    metrics: Metrics
    model: str
    began: float = field(default_factory=time.time)


def submit(request: Request, job: Say | Work | Learn, *, follows: bool = False) -> Future:
    """Have the engine do a job for whoever the request is of, as Engine.submit."""
    return server_of(request).engine.submit(job, who=tenant_of(request).begins, follows=follows)


async def worked(request: Request, verb: Callable[[], Any]) -> Any:
    """What a verb of the store gives, done by the engine in one step, while the client waits."""

    def steps() -> Steps:
        return verb()
        yield

    return await while_connected(request, submit(request, Work(steps())))


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    return request.app.state.server
