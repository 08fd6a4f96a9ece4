"""/v1/memories: what there is, and of one memory the verbs of MemoryStore."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..agent.agent import first_line
from ..store.database import Write
from ..store.facts import About
from ..store.store import Missing, Telling
from .batch import Say
from .engine import Learn, Work
from .fields import Refused, only, text_field
from .said import Said
from .server import Server, server_of, submit, worked
from .tenants import Tenant, memory_of, tenant_of
from .wire import body_of, while_connected
from .words import fitting, make, read

MOST_PAIRS = 512  # of one request


async def listed(request: Request) -> Response:
    """All memories of the tenant."""
    tenant = tenant_of(request)
    found = server_of(request).store.memories(tenant.begins)
    return JSONResponse({"object": "list", "data": [_about(tenant, a) for a in found]})


async def made(request: Request) -> Response:
    """A new memory."""
    body = await body_of(request)
    only(body, "name")
    name, store, tenant = text_field(body, "name"), server_of(request).store, tenant_of(request)
    await worked(request, partial(make, store, tenant, tenant.inside(name)))
    return JSONResponse({"name": name}, 201)


async def deleted(request: Request) -> Response:
    """Delete a memory."""
    await worked(request, partial(server_of(request).store.delete, memory_of(request)))
    return JSONResponse({"name": request.path_params["name"], "deleted": True})


async def about(request: Request) -> Response:
    """What a list says of one memory."""
    store, name = server_of(request).store, memory_of(request)
    store.messages(name)  # raises where there is none
    for found in store.memories(name):
        if found.name == name:
            return JSONResponse(_about(tenant_of(request), found))
    raise Missing(f"there is no memory {name!r:.60} any more; make it again.")


async def pairs(request: Request) -> Response:
    """What a memory has learned, and where from."""
    found = server_of(request).store.pairs(memory_of(request))
    return JSONResponse({"object": "list", "data": [asdict(f) for f in found]})


async def log(request: Request) -> Response:
    """All its writes."""
    return JSONResponse({"object": "list", "data": [_shown(w) for w in server_of(request).store.log(memory_of(request))]})


async def observe(request: Request) -> Response:
    """Read text; what exceeds the window is written now."""
    body = await body_of(request)
    only(body, "text", "source")
    server, text, source = server_of(request), text_field(body, "text"), text_field(body, "source", "")
    steps = read(server.store, memory_of(request), text, source, [])
    return _written(server, await while_connected(request, submit(request, Work(steps))))


async def write(request: Request) -> Response:
    """Write and learn what waits."""
    only(await body_of(request))
    server = server_of(request)
    return _written(server, await worked(request, partial(server.store.write, memory_of(request))))


async def learn(request: Request) -> Response:
    """Learn pairs."""
    body = await body_of(request)
    only(body, "pairs", "source")
    server, source, given = server_of(request), text_field(body, "source", ""), _pairs(body.get("pairs"))
    job = Learn(Telling(memory_of(request), given, source))
    return _written(server, [await while_connected(request, submit(request, job))])


async def ask(request: Request) -> Response:
    """A short answer, as `Memory.ask` gives it: "unknown" where Δ does not know the question again, unless text waits."""
    body = await body_of(request)
    only(body, "question")
    server, question = server_of(request), text_field(body, "question")
    if not question.strip():
        raise Refused("question: it is empty; expected text.", "question")
    agent = server.store.agent
    most = agent.config.answer.max_new
    said = Said(agent.chat, most, ())

    def prompt(memory: Any) -> list[int]:
        return fitting(agent, "\n\n".join([*memory.waiting, agent.asked(question)]), most)

    job = Say(memory_of(request), prompt, said.add, most, asks=question)
    reply = await while_connected(request, submit(request, job))
    return JSONResponse({"answer": first_line(reply.text)})


async def fork(request: Request) -> Response:
    """A copy under another name."""
    body = await body_of(request)
    only(body, "name")
    new, store, tenant = text_field(body, "name"), server_of(request).store, tenant_of(request)
    name, copy = memory_of(request), tenant.inside(new)

    def forked() -> None:
        tenant.room_for(copy, store)
        store.fork(name, copy)

    await worked(request, forked)
    return JSONResponse({"name": new}, 201)


async def undo(request: Request) -> Response:
    """Be as after an earlier write."""
    body = await body_of(request)
    only(body, "write")
    if type(body.get("write")) is not int or not 0 <= body["write"] < 1 << 53:
        raise Refused("write: expected the id of a write, or 0.", "write")
    await worked(request, partial(server_of(request).store.undo, memory_of(request), body["write"]))
    return await log(request)


async def unlearn(request: Request) -> Response:
    """Delete a fact, or all that came from a source."""
    body = await body_of(request)
    only(body, "question", "source")
    if len(body) != 1:
        raise Refused("expected either question (of the fact to delete) or source (of which all is deleted).")
    store, name = server_of(request).store, memory_of(request)
    verb = store.delete_fact if "question" in body else store.delete_source
    (field,) = body
    return JSONResponse({"deleted": [asdict(p) for p in await worked(request, partial(verb, name, text_field(body, field)))]})


async def correct(request: Request) -> Response:
    """Replace the answer of a fact."""
    body = await body_of(request)
    only(body, "question", "answer")
    question, answer = text_field(body, "question"), text_field(body, "answer")
    verb = partial(server_of(request).store.correct, memory_of(request), question, answer)
    return JSONResponse({"corrected": [asdict(p) for p in await worked(request, verb)]})


def _written(server: Server, writes: list[Write]) -> Response:
    server.metrics.wrote(writes)
    return JSONResponse({"writes": [_shown(w) for w in writes]})


def _about(tenant: Tenant, found: About) -> dict[str, Any]:
    return {**asdict(found), "name": tenant.outside(found.name)}


def _shown(write: Write) -> dict[str, Any]:
    """A write as JSON, without the names of files."""
    return {k: v for k, v in asdict(write).items() if k not in ("row", "digest")}


def _pairs(value: Any) -> list[tuple[str, str]]:
    """Pairs as lists of two texts, or as objects with question and answer."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_PAIRS:
        raise Refused(f"pairs: expected a list of 1 to {MOST_PAIRS} pairs.", "pairs")
    out = []
    for i, pair in enumerate(value):
        parts = [pair.get("question"), pair.get("answer")] if isinstance(pair, dict) and len(pair) == 2 else pair
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) and p.strip() for p in parts)):
            raise Refused(f"pairs[{i}]: expected a question and an answer, two texts that are not empty.", f"pairs[{i}]")
        out.append((parts[0], parts[1]))
    return out


_OF_ONE = {"observe": observe, "write": write, "learn": learn, "ask": ask, "fork": fork, "undo": undo, "delete": unlearn,
           "correct": correct}  # fmt: skip

ROUTES = [
    Route("/v1/memories", listed, methods=["GET"]),
    Route("/v1/memories", made, methods=["POST"]),
    Route("/v1/memories/{name:path}/pairs", pairs, methods=["GET"]),
    Route("/v1/memories/{name:path}/log", log, methods=["GET"]),
    *(Route(f"/v1/memories/{{name:path}}/{verb}", handler, methods=["POST"]) for verb, handler in _OF_ONE.items()),
    Route("/v1/memories/{name:path}", about, methods=["GET"]),
    Route("/v1/memories/{name:path}", deleted, methods=["DELETE"]),
]
