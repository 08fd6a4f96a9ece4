"""An answer under way, whole or as a stream of events. What it looks like is for the routes to say."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..agent.agent import Reply
from ..agent.sampling import Sampling
from ..store.kept import Kept
from .batch import Say
from .requests import Options
from .said import Said
from .server import server_of, submit
from .tenants import tenant_of
from .wire import error_of, while_connected


class Talk(ABC):
    """One answer.

    most     tokens of it where the request does not say
    raw      it goes on with its prompt's text, see Said
    follows  work for this request has been let in already, see Engine.submit
    """

    prefix: str  # of its id
    whole_kind: str  # what OpenAI calls the answer as one object, and a part of it
    part_kind: str
    opening: dict[str, Any] | None = None  # what a stream begins with

    def __init__(self, request: Request, asked: Options, most: int, *, raw: bool = False, follows: bool = False):
        self.request, self.server, self.asked = request, server_of(request), asked
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()  # None: it has ended
        loop = asyncio.get_running_loop()

        def put(piece: str | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and so has whoever listened
                loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        most = asked.most or most
        self.said = Said(self.server.store.agent.chat, most, asked.stops, put if asked.stream else None, raw=raw)
        key = secrets.token_hex(8) if asked.seed is None else f"seed {asked.seed}"
        how = Sampling(asked.temperature, asked.top_p, key)
        job = Say(asked.memory, self.prompt, self.said.add, most, how)
        self.future: Future = submit(self.request, job, follows=follows)
        self.future.add_done_callback(lambda _: put(None))

    @abstractmethod
    def prompt(self, memory: Kept | None) -> list[int]:
        """Token ids to be answered; called with the memory while it has a slot. Raises Refused."""

    @abstractmethod
    def whole(self, text: str) -> dict[str, Any]:
        """What a choice says, as one object."""

    @abstractmethod
    def part(self, text: str) -> dict[str, Any]:
        """What a choice says, as a piece of a stream; "" at its end."""

    async def answered(self) -> None:
        """What is to be done before the answer counts as given."""
        return None

    async def response(self) -> Response:
        """The answer as the request wants it."""
        if self.asked.stream:
            first = await self._next()  # an error before the first word is an error of the request
            return StreamingResponse(self._events(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return JSONResponse(await while_connected(self.request, self._whole()))

    async def _next(self) -> str | None:
        """The next piece of text; None at the end. Raises what went wrong."""
        try:
            piece = await self.pieces.get()
        except asyncio.CancelledError:
            self.future.cancel()
            raise
        if piece is None:
            await self._ended()
        return piece

    async def _ended(self) -> dict[str, int]:
        """When the answer is there: do what is left to do, count, and give the usage."""
        reply: Reply = await asyncio.wrap_future(self.future)
        await self.answered()
        read, generated = reply.read, reply.generated
        self.server.metrics.add("tmem_prompt_tokens_total", read)
        self.server.metrics.add("tmem_generated_tokens_total", generated)
        self.usage = {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}
        return self.usage

    async def _whole(self) -> dict[str, Any]:
        usage = await self._ended()
        choice = self._choice(self.whole(self.said.text), self.said.reason)
        return {**self._head(self.whole_kind, [choice]), "usage": usage}

    async def _events(self, piece: str | None) -> AsyncIterator[str]:
        """The answer as events, from its first piece on."""
        try:
            if self.opening is not None:
                yield self._part(self.opening)
            while piece is not None:
                yield self._part(self.part(piece))
                piece = await self._next()
            yield self._part(self.part(""), self.said.reason)
            if self.asked.usage:
                yield _event({**self._head(self.part_kind, []), "usage": self.usage})
        except Exception as error:
            yield _event(error_of(error, tenant_of(self.request))[1])
        finally:
            self.future.cancel()
        yield "data: [DONE]\n\n"

    def _part(self, said: dict[str, Any], reason: str | None = None) -> str:
        return _event(self._head(self.part_kind, [self._choice(said, reason)]))

    def _head(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.server.model}
        return {**about, "system_fingerprint": None, "choices": list(choices)}

    @staticmethod
    def _choice(said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
