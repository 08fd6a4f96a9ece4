"""What the routes share."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from starlette.requests import Request

from ..store.store import MemoryStore
from .batch import Say
from .engine import Engine, Learn, Work
from .metrics import Metrics
from .tenants import tenant_of


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


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    return request.app.state.server
