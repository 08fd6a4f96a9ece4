"""/v1/chat/completions: plain and streamed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..store.kept import Kept
from .engine import Work
from .requests import ChatRequest, chat_request
from .server import server_of, submit
from .talk import Talk
from .tenants import tenant_of
from .wire import body_of, memory_header, while_connected
from .words import SOURCE, catch_up, line, prompt, read

MOST = 256  # tokens of an answer where the request does not say


async def chat(request: Request) -> Response:
    """Answer the last message of a conversation; a memory reads what is new of it first, and the last message after."""
    server = server_of(request)
    asked = chat_request(await body_of(request), memory_header(request), server.model)
    tenant, new = tenant_of(request), False
    if asked.memory is not None:
        name = tenant.inside(asked.memory)
        asked = replace(asked, memory=name)
        work = Work(catch_up(server.store, tenant, name, asked))
        new, writes = await while_connected(request, submit(request, work))
        server.metrics.wrote(writes)
    return await _ChatTalk(request, asked, new).response()


class _ChatTalk(Talk):
    """An answer of the assistant. new: the memory has yet to read the last message."""

    prefix, whole_kind, part_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    opening = {"delta": {"role": "assistant", "content": ""}}
    asked: ChatRequest

    def __init__(self, request: Request, asked: ChatRequest, new: bool):
        self.new = new and asked.memory is not None
        super().__init__(request, asked, MOST, follows=asked.memory is not None)

    def prompt(self, memory: Kept | None) -> list[int]:
        return prompt(self.server.store.agent, self.asked, self.said, memory)

    def whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    async def answered(self) -> None:
        """Have the memory keep what was said to it."""
        if self.new and self.asked.memory is not None:
            last = self.asked.messages[-1]
            steps = read(self.server.store, self.asked.memory, line(last), SOURCE, [last.digest], due=False)
            self.server.metrics.wrote(await asyncio.wrap_future(submit(self.request, Work(steps), follows=True)))
            self.server.engine.later(self.asked.memory)
