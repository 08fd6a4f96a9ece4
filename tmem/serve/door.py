"""The door of a server: who may come in, and what is logged of each request."""

from __future__ import annotations

import logging
import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .fields import Refused
from .metrics import Metrics
from .tenants import Tenants
from .wire import refuse

LOOPBACK = ("localhost", "127.0.0.1", "::1")

logger = logging.getLogger("tmem.serve")


class Door:
    """Refuses foreign hosts and who has no key; counts and logs requests by route, which holds nothing that a user said."""

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: tuple[str, ...], tenants: Tenants):
        self.app, self.metrics, self.hosts, self.tenants = app, metrics, hosts, tenants

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
            self.metrics.add("tmem_requests_total", route=route, method=method, status=str(status))
            self.metrics.add("tmem_request_seconds_total", seconds, route=route)
            logger.info(f"{method} {route} {status} {seconds:.3f} s")


def _host(scope: Scope) -> str:
    """The name in the request's Host header, without its port."""
    host = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"host"), "").lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
