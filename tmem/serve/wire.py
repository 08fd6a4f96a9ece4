"""What is the same for all routes: a body of bounded size, errors of OpenAI's shape, and clients that go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ..files.objects import parsed
from ..store.store import Missing, Taken
from .engine import Full
from .fields import Refused
from .requests import HEADER
from .tenants import Tenant

MOST_BYTES = 1 << 20  # of a body
SECONDS = 30.0  # in which a body must have come

logger = logging.getLogger("tmem")


class Gone(Exception):
    """The client has closed the connection."""


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request's body. Raises Refused."""
    content = await content_of(request, "application/json", MOST_BYTES, SECONDS)
    try:
        found = parsed(content)
    except ValueError as error:
        raise Refused("the body is not JSON in UTF-8; mend it.") from error
    if not isinstance(found, dict):
        raise Refused("the body is not a JSON object; send an object.")
    return found


def memory_header(request: Request) -> str | None:
    """The memory that the header names, in UTF-8 as in a body. Raises Refused."""
    value = request.headers.get(HEADER)
    try:
        return value and value.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise Refused(f"{HEADER}: it is not UTF-8; send the name in UTF-8.") from error


async def content_of(request: Request, kind: str, most: int, seconds: float) -> bytes:
    """A request's body of a kind, of `most` bytes at most, which must come in so many seconds. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise Refused(f"the body is to be of another kind; send it with Content-Type: {kind}.", status=415)
    content = bytearray()
    try:
        with anyio.fail_after(seconds):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise Refused(f"the body has more than {most} bytes; send less at once.", status=413)
    except TimeoutError as error:
        raise Refused(f"the body did not come within {seconds:.0f} s; send it again.", status=408) from error
    except ClientDisconnect as error:
        raise Gone from error
    return bytes(content)


async def while_connected(request: Request, work: Future | Awaitable) -> Any:
    """The result of `work`, which is cancelled when the client goes. Raises Gone then."""
    task = asyncio.ensure_future(asyncio.wrap_future(work) if isinstance(work, Future) else work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def error_of(error: Exception, tenant: Tenant | None) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error, in the words of the tenant that gets it.

    What is nobody's mistake is logged by its kind and says nothing of the inside.
    """
    status, param, code, headers = 400, None, None, {}
    message, kind = str(error), "invalid_request_error"
    if isinstance(error, Refused):
        status, param, code = error.status, error.param, error.code
    elif isinstance(error, (Missing, Taken)):
        status, code = (404, "not_found") if isinstance(error, Missing) else (409, "taken")
        message = message if tenant is None else tenant.told(message)
    elif isinstance(error, Full):
        status, kind, code, headers = 429, "rate_limit_error", "queue_full", {"Retry-After": str(error.seconds)}
    elif isinstance(error, HTTPException):
        status, message = error.status_code, f"{error.detail.lower()}; docs/serving.md has the routes."
    elif not isinstance(error, ValueError):
        status, kind, message = 500, "server_error", "the server could not do this; its log says why."
        why = f": {error}" if isinstance(error, OSError) else ""
        logger.error(f"a request failed: {type(error).__name__}{why}", exc_info=None if why else error)
    if status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers


async def refuse(request: Request, error: Exception) -> Response:
    """The response to an error."""
    if isinstance(error, (Gone, ClientDisconnect)):
        return Response(status_code=499)
    status, body, headers = error_of(error, request.scope.get("tenant"))
    return JSONResponse(body, status, headers)
