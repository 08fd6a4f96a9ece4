"""/v1/completions: raw text that the model goes on with, plain and streamed. A memory lends its Δ and learns nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..store.kept import Kept
from .requests import CompletionRequest, completion_request
from .server import server_of
from .talk import Talk
from .tenants import tenant_of
from .wire import body_of, memory_header
from .words import continued

MOST = 16  # tokens where the request does not say, as OpenAI has it


async def completions(request: Request) -> Response:
    """Go on with a text, without a chat's turns."""
    asked = completion_request(await body_of(request), memory_header(request), server_of(request).model)
    if asked.memory is not None:
        asked = replace(asked, memory=tenant_of(request).inside(asked.memory))
    return await _TextTalk(request, asked).response()


class _TextTalk(Talk):
    """What comes after a text."""

    prefix, whole_kind, part_kind = "cmpl", "text_completion", "text_completion"
    asked: CompletionRequest

    def __init__(self, request: Request, asked: CompletionRequest):
        super().__init__(request, asked, MOST, raw=True)

    def prompt(self, memory: Kept | None) -> list[int]:
        return continued(self.server.store.agent, self.asked, self.said)

    def whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def part(self, text: str) -> dict[str, Any]:
        return {"text": text}
