"""Clients of a server over HTTP, and what they saw: when an answer came, and what it was.

A user sends a request when the one before is answered. Without times it does so at once, so that all users are busy (closed
loop). With times it waits for each request's time, and what counts is how long after that time the answer came (open loop).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from .measure import WrongNumbers
from .traffic import CHAT_TOKENS, Request

SECONDS = 3600.0  # that a client waits, at most


@dataclass(frozen=True)
class Way:
    """How a server is asked.

    name      of the server
    url       where it is
    memories  whether requests name one; if not, what a memory would be shown stands in the message
    asked     the words in which a question is put
    most      tokens of an ask's answer where there are no memories
    """

    name: str
    url: str
    memories: bool
    asked: Callable[[str], str]
    most: Callable[[Request], int]


@dataclass(frozen=True)
class Served:
    """A request and its answer: when it was due, and when the first text and the whole came, in seconds of one clock.

    pieces  when each piece of a streamed answer came
    prompt  tokens of the prompt, and `tokens` of the answer; 0 where the server does not say
    """

    request: Request
    due: float
    done: float
    text: str = ""
    pieces: tuple[float, ...] = ()
    prompt: int = 0
    tokens: int = 0


def drive(
    way: Way, plan: Sequence[Sequence[Request]], tag: str, times: Sequence[Sequence[float]] | None = None
) -> list[Served]:
    """Have every user send its requests; user i has the memory `tag`-i, which must be there. See the module's head."""
    return asyncio.run(_drive(way, plan, tag, times))


def make(way: Way, names: Sequence[str]) -> None:
    """Make memories, where the server has any."""
    if way.memories:
        with httpx.Client(base_url=way.url, timeout=SECONDS) as client:
            for name in names:
                _checked(client.post("/v1/memories", json={"name": name}))


async def _drive(way: Way, plan: Sequence[Sequence[Request]], tag: str, times) -> list[Served]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=way.url, timeout=SECONDS, limits=limits) as client:
        start = time.perf_counter()

        async def user(number: int, requests: Sequence[Request]) -> list[Served]:
            out = []
            for k, request in enumerate(requests):
                if times is not None:
                    await asyncio.sleep(max(0.0, start + times[number][k] - time.perf_counter()))
                due = time.perf_counter() if times is None else start + times[number][k]
                out.append(await send(client, way, f"{tag}-{number}", request, due))
            return out

        found = await asyncio.gather(*(user(i, requests) for i, requests in enumerate(plan)))
    return [served for some in found for served in some]


async def send(client: httpx.AsyncClient, way: Way, name: str, request: Request, due: float) -> Served:
    """One request. Raises WrongNumbers where it is refused."""
    if request.kind == "chat":
        return await _chat(client, way, name, request, due)
    if way.memories:
        asked = (
            {"question": request.text} if request.kind == "ask" else {"pairs": [[p.question, p.answer] for p in request.pairs]}
        )
        found = _checked(await client.post(f"/v1/memories/{name}/{request.kind}", json=asked))
        return Served(request, due, time.perf_counter(), found.get("answer", ""))
    body = {"messages": _messages(way, request), "max_tokens": way.most(request)}
    found = _checked(await client.post("/v1/chat/completions", json=body))
    text = found["choices"][0]["message"]["content"]
    return Served(request, due, time.perf_counter(), text, (), *_usage(found["usage"]))


async def _chat(client: httpx.AsyncClient, way: Way, name: str, request: Request, due: float) -> Served:
    body: dict[str, Any] = {"messages": _messages(way, request), "max_tokens": CHAT_TOKENS, "stream": True,
                            "stream_options": {"include_usage": True}}  # fmt: skip
    if way.memories:
        body["memory"] = name
    pieces, text, usage = [], "", {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            _checked(answer)
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise WrongNumbers(f"bench serve: a stream ended with {event['error']['message']!r}; nothing is reported.")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    pieces.append(time.perf_counter())
                    text += piece
    return Served(request, due, time.perf_counter(), text, tuple(pieces), *_usage(usage))


def _messages(way: Way, request: Request) -> list[dict[str, str]]:
    """What is sent: the text by itself, or, without a memory, as a memory would be shown it."""
    text = request.text
    if not way.memories:
        words = way.asked(text) if request.kind == "ask" else text
        text = "\n\n".join([*(f"user: {said}" for said in request.before), words])
    return [{"role": "user", "content": text}]


def _usage(usage: dict) -> tuple[int, int]:
    return usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)


def _checked(answer: httpx.Response) -> dict:
    if answer.status_code not in (200, 201):
        raise WrongNumbers(f"bench serve: a server answered {answer.status_code}: {answer.text:.200}; nothing is reported.")
    return answer.json()
