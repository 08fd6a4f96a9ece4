"""A worker of a training run over HTTP: θ0 comes in by PUT /theta, requests by POST /generate; see tmem.rl.wire."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..rl.wire import KIND, generations_bytes
from ..rl.worker import Outdated, Worker
from .door import LOOPBACK, Door
from .fields import Refused
from .metrics import Metrics
from .tenants import Tenants
from .wire import Gone, content_of, refuse, while_connected

MOST_BYTES = 2 << 30  # of a body: θ0 as an adapter, or the Δ of a request's slots
SECONDS = 300.0  # in which a body must have come


def application(
    worker: Worker, *, hosts: tuple[str, ...] = LOOPBACK, tenants: Tenants | None = None, most: int = MOST_BYTES
) -> Starlette:  # fmt: skip
    """The ASGI application, whose worker does one thing at a time.

    hosts, tenants  as of tmem.serve.app.application
    most            bytes of a body
    """
    thread = ThreadPoolExecutor(1)

    @asynccontextmanager
    async def life(_):
        yield
        thread.shutdown(wait=False, cancel_futures=True)

    async def done(request: Request, verb: Callable[[bytes], Any]) -> Any:
        content = await content_of(request, KIND, most, SECONDS)
        try:
            return await while_connected(request, thread.submit(verb, content))
        except Outdated as error:
            raise Refused(str(error), "theta", 409, "theta") from error

    async def health(_: Request) -> Response:
        """Whether the worker is there, and which θ0 it has."""
        return JSONResponse({"status": "ok", "theta": worker.theta})

    async def take(request: Request) -> Response:
        """Go on with the θ0 of the body."""
        return JSONResponse({"theta": await done(request, worker.take)})

    async def generate(request: Request) -> Response:
        """Generate what the body asks for."""
        return Response(generations_bytes(await done(request, worker.generate)), media_type="application/json")

    routes = [Route("/health", health), Route("/theta", take, methods=["PUT"]), Route("/generate", generate, methods=["POST"])]
    errors = (Exception, HTTPException, ValueError, RuntimeError, OSError, Gone, ClientDisconnect)
    app = Starlette(routes=routes, lifespan=life, exception_handlers=dict.fromkeys(errors, refuse))
    app.add_middleware(Door, metrics=Metrics(), hosts=hosts, tenants=tenants or Tenants())
    return app
