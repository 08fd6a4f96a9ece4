"""What the routes share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request

from ..store.store import MemoryStore
from .engine import Engine
from .metrics import Metrics


@dataclass
class Server:
    """A store, its engine and the counters. model: the name under which the model is served."""

    store: MemoryStore
    engine: Engine
    metrics: Metrics
    model: str
    began: float = field(default_factory=time.time)


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    return request.app.state.server
