"""The server: a store, its engine, and the routes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..store.store import MemoryStore
from . import export, memories
from .chat import chat
from .completions import completions
from .door import LOOPBACK, Door
from .engine import Engine
from .metrics import Metrics
from .server import Server, server_of
from .tenants import Tenants
from .wire import Gone, refuse

PAGE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def application(
    store: MemoryStore, model: str, *, queue: int = 64, hosts: tuple[str, ...] = LOOPBACK, tenants: Tenants | None = None
) -> Starlette:
    """The ASGI application. It closes its engine when it ends; the store stays open.

    queue    requests that may wait; more are refused with 429
    hosts    names by which clients may call the server; a web page that has another name resolve to it is refused. Empty: any
    tenants  who may call; None: everybody, as one tenant
    """
    metrics = Metrics()
    server = Server(store, Engine(store, queue, metrics.wrote), metrics, model)

    @asynccontextmanager
    async def life(_):
        yield
        server.engine.close()

    routes = [
        Route("/", page), Route("/health", health), Route("/metrics", counters), Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/completions", completions, methods=["POST"]),
        *export.ROUTES, *memories.ROUTES,
    ]  # fmt: skip
    errors = (Exception, HTTPException, ValueError, RuntimeError, OSError, Gone, ClientDisconnect)
    app = Starlette(routes=routes, lifespan=life, exception_handlers=dict.fromkeys(errors, refuse))
    app.state.server = server
    app.add_middleware(Door, metrics=metrics, hosts=hosts, tenants=tenants or Tenants())
    return app


async def page(_: Request) -> Response:
    """The page: one file, which asks this server alone and shows what users said as text."""
    return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})


async def health(request: Request) -> Response:
    """Whether the engine runs."""
    alive = server_of(request).engine.alive
    return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)


async def counters(request: Request) -> Response:
    """The counters, for Prometheus."""
    server = server_of(request)
    now = {
        "tmem_waiting_requests": server.engine.waiting, "tmem_memories": len(server.store),
        "tmem_memories_with_a_slot": server.store.resident, "tmem_slots": server.store.slots,
    }  # fmt: skip
    return PlainTextResponse(server.metrics.page(now), media_type="text/plain; version=0.0.4")


async def models(request: Request) -> Response:
    """The model that is served."""
    server = server_of(request)
    model = {"id": server.model, "object": "model", "created": int(server.began), "owned_by": "tmem"}
    return JSONResponse({"object": "list", "data": [model]})
