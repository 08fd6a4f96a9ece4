"""A memory's Δ as the two files of a PEFT adapter."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..adapters.peft import peft_files
from ..models.lora import CONFIG, WEIGHTS
from .engine import Steps, Work
from .server import server_of, submit
from .tenants import memory_of
from .wire import while_connected


async def weights(request: Request) -> Response:
    """The weights, in safetensors."""
    content = (await _files(request))[WEIGHTS]
    named = {"Content-Disposition": f'attachment; filename="{WEIGHTS}"'}
    return Response(content, media_type="application/octet-stream", headers=named)


async def config(request: Request) -> Response:
    """The config beside them. It names the model as it is served, not where it lies on the server."""
    found = json.loads((await _files(request))[CONFIG])
    found["base_model_name_or_path"] = server_of(request).model
    return Response(json.dumps(found, indent=1), media_type="application/json")


async def _files(request: Request) -> dict[str, bytes]:
    server, name = server_of(request), memory_of(request)

    def steps() -> Steps:
        with server.store.using([name]) as (memory,):
            return peft_files(server.store.agent.bank, memory.row)
        yield

    return await while_connected(request, submit(request, Work(steps())))


ROUTES = [
    Route("/v1/memories/{name:path}/adapter", weights, methods=["GET"]),
    Route("/v1/memories/{name:path}/adapter/config", config, methods=["GET"]),
]
