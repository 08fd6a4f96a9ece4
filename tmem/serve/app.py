"""The server: a store, its engine, and the routes."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..store.store import MemoryStore
from . import export, memories
from .chat import chat
from .completions import completions
from .engine import Engine
from .fields import Refused
from .metrics import Metrics
from .server import Server, server_of
from .tenants import Tenants
from .wire import Gone, refuse

PAGE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")

logger = logging.getLogger("tmem.serve")


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
    app.add_middleware(_Door, server=server, hosts=hosts, tenants=tenants or Tenants())
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


class _Door:
    """Refuses foreign hosts and who has no key; counts and logs requests by route, which holds nothing that a user said."""

    def __init__(self, app: ASGIApp, server: Server, hosts: tuple[str, ...], tenants: Tenants):
        self.app, self.server, self.hosts, self.tenants = app, server, hosts, tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                if self.hosts and _host(scope) not in self.hosts:
                    names = ", ".join(self.hosts)
                    raise Refused(f"this server is called {names}; call it by one of these names.", None, 421, "host")
                scope["tenant"] = self.tenants.caller(scope)
            except Refused as error:
                await (await refuse(Request(scope), error))(scope, receive, sent)
            else:
                await self.app(scope, receive, sent)
        finally:
            route, method = getattr(scope.get("route"), "path", "none"), scope["method"]
            method = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
            seconds = time.monotonic() - began
            self.server.metrics.add("tmem_requests_total", route=route, method=method, status=str(status))
            self.server.metrics.add("tmem_request_seconds_total", seconds, route=route)
            logger.info(f"{method} {route} {status} {seconds:.3f} s")


def _host(scope: Scope) -> str:
    """The name in the request's Host header, without its port."""
    host = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"host"), "").lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
