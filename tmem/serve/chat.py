"""/v1/chat/completions: plain and streamed."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .engine import Say, Work
from .requests import HEADER, ChatRequest, chat_request
from .said import Said
from .server import Server, server_of
from .wire import body_of, error_of, while_connected
from .words import SOURCE, catch_up, line, prompt, read

MOST = 256  # tokens of an answer where the request does not say


async def completions(request: Request) -> Response:
    """Answer the last message of a conversation; a memory reads what is new of it first, and the last message after."""
    server = server_of(request)
    asked = chat_request(await body_of(request), request.headers.get(HEADER), server.model)
    new = False
    if asked.memory is not None:
        work = Work(catch_up(server.store, asked.memory, asked))
        new, writes = await while_connected(request, server.engine.submit(work))
        server.metrics.wrote(writes)
    talk = _Talk(server, asked, new)
    if asked.stream:
        first = await talk.next()  # an error before the first word is an error of the request
        return StreamingResponse(talk.events(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    return JSONResponse(await while_connected(request, talk.whole()))


class _Talk:
    """One answer under way."""

    def __init__(self, server: Server, asked: ChatRequest, new: bool):
        self.server, self.asked, self.new = server, asked, new
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()  # None: it has ended
        loop, agent = asyncio.get_running_loop(), server.store.agent

        def put(piece: str | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and so has whoever listened
                loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        most = asked.most or MOST
        self.said = Said(agent.chat, most, asked.stops, put if asked.stream else None)
        key = secrets.token_hex(8) if asked.seed is None else f"seed {asked.seed}"
        job = Say(asked.memory, partial(prompt, agent, asked, self.said), self.said.add, most, asked.temperature, key)
        self.future: Future = server.engine.submit(job, follows=asked.memory is not None)
        self.future.add_done_callback(lambda _: put(None))

    async def next(self) -> str | None:
        """The next piece of text; None at the end. Raises what went wrong."""
        try:
            piece = await self.pieces.get()
        except asyncio.CancelledError:
            self.future.cancel()
            raise
        if piece is None:
            await self._ended()
        return piece

    async def _ended(self) -> dict:
        """When the answer is there: have the memory keep what was said to it, count, and give the usage."""
        reply = await asyncio.wrap_future(self.future)
        ids, said = reply.prompt, reply.generation.ids
        if self.new and self.asked.memory is not None:
            last = self.asked.messages[-1]
            steps = read(self.server.store, self.asked.memory, line(last), SOURCE, [last.digest], due=False)
            self.server.metrics.wrote(await asyncio.wrap_future(self.server.engine.submit(Work(steps), follows=True)))
            self.server.engine.later(self.asked.memory)
        self.server.metrics.add("tmem_prompt_tokens_total", len(ids))
        self.server.metrics.add("tmem_generated_tokens_total", len(said))
        self.usage = {"prompt_tokens": len(ids), "completion_tokens": len(said), "total_tokens": len(ids) + len(said)}
        return self.usage

    async def whole(self) -> dict:
        """The answer as one object."""
        usage = await self._ended()
        message = {"role": "assistant", "content": self.said.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.said.reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    async def events(self, piece: str | None) -> AsyncIterator[str]:
        """The answer as events, from its first piece on."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            while piece is not None:
                yield self._chunk({"content": piece})
                piece = await self.next()
            yield self._chunk({}, self.said.reason)
            if self.asked.usage:
                yield _event({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage})
        except Exception as error:
            yield _event(error_of(error)[1])
        finally:
            self.future.cancel()
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.server.model, "system_fingerprint": None}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})


def _event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"
