"""Generations on other machines: the workers of a training run (`tmem worker`), asked over HTTP.

The episode loop, its tools and all learning stay with the run. What a worker is asked is a function of what is sent (see
wire.py). So what one worker leaves undone, another does, and the numbers are those of a run without workers, on equal machines
bit for bit. Prompts of one slot go to one worker, so that no Δ is sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from itertools import cycle

import httpx

from ..adapters.bank import AdapterBank, Snapshot
from ..agent.decode import Generation
from ..files.objects import parsed
from ..terminal.plain import printable
from .wire import KIND, Request, Theta, generations_in, request_bytes, theta_bytes, version_of

PATIENCE = 600.0  # seconds in which a worker must have answered
GREETING = 10.0  # seconds in which it must say that it is there
OUTDATED = 409  # the status of a worker that has another θ0
SMALL = 1 << 16  # bytes of a reply that holds no generations
PER_TOKEN = 64  # bytes of a reply for each token that may be generated


class NoWorkerLeft(ConnectionError):
    """No worker answers any more."""


class _Failed(Exception):
    """A request without a sound reply. status: of HTTP, 0 where there was none."""

    def __init__(self, why: str, status: int = 0):
        super().__init__(why)
        self.status = status


@dataclass
class _Worker:
    """A worker, and why it is lost; "": it is not."""

    url: str
    why: str = ""


class Workers:
    """The workers of a run. Called as `decode` is, it gives what `decode` gives; see tmem.agent.agent.Generate.

        urls      http://HOST:PORT of each
        key       that they ask for
        patience  seconds in which a worker must have answered
        warn      is told in a sentence of every worker that is lost or back

    A worker is lost where it cannot be reached, takes too long, or answers with an error or with what is no answer. What it was
    asked goes to the others; it is tried again when θ0 changes. Raises ValueError for an address that is none.
    """

    def __init__(
        self, urls: Sequence[str], key: str | None = None, *, patience: float = PATIENCE,
        warn: Callable[[str], None] = lambda sentence: None,
    ):  # fmt: skip
        self._workers = [_Worker(url) for url in dict.fromkeys(map(_address, urls))]
        self._key, self.patience, self.warn = key, patience, warn
        self._content, self._theta = b"", ""
        self._vocabulary = self._lost = self._again = 0

    def publish(self, theta: Theta, vocabulary: int) -> None:
        """Have all workers, the lost ones as well, go on with this θ0 of a model of so many tokens. Raises NoWorkerLeft."""
        self._vocabulary = vocabulary
        self._content = theta_bytes(theta)
        self._theta = version_of(self._content)
        asyncio.run(self._publish())
        self._alive()

    def counted(self) -> dict[str, int]:
        """Since the last call: how many workers are there, how many were lost, and how many requests were made again."""
        found = {"workers": sum(not w.why for w in self._workers), "workers_lost": self._lost, "asked_again": self._again}
        self._lost = self._again = 0
        return found

    def __call__(
        self,
        prompts: Sequence[list[int]],
        *,
        bank: AdapterBank | None,
        slots: Sequence[int] | None,
        end: Set[int],
        max_new: int,
        begins: Sequence[int] | None,
        temperature: float,
        top_p: float,
        keys: Sequence[str] | None,
        ranks: Sequence[int] | None,
    ) -> list[Generation]:
        """Arguments as of `decode`, after `publish`. Raises NoWorkerLeft."""
        if not prompts:
            return []
        shares = _shares(prompts, slots, begins, len(self._alive()))
        how = dict(end=sorted(end), max_new=max_new, temperature=temperature, top_p=top_p)
        each = {"begins": begins, "keys": keys if temperature > 0.0 else None, "ranks": ranks}
        requests = {}
        for mine in shares:
            under, rows = _taken(bank, None if slots is None else [slots[i] for i in mine])
            own = {name: value and [value[i] for i in mine] for name, value in each.items()}
            requests[tuple(mine)] = Request(self._theta, [prompts[i] for i in mine], under, rows=rows, **how, **own)
        out: dict[int, Generation] = {}
        for mine, found in asyncio.run(self._generated(requests)).items():
            out |= dict(zip(mine, found))
        return [out[i] for i in range(len(prompts))]

    # asking --------------------------------------------------------------------------------------------------------

    def _alive(self) -> list[_Worker]:
        """Those that are not lost. Raises NoWorkerLeft."""
        found = [w for w in self._workers if not w.why]
        if not found:
            why = "; ".join(f"{w.url}: {w.why}" for w in self._workers)
            raise NoWorkerLeft(f"train: no worker is left ({why}). Start workers (tmem worker), and go on with --resume.")
        return found

    async def _publish(self) -> None:
        async with self._client() as client:
            await asyncio.gather(*(self._greeted(client, worker) for worker in self._workers))

    async def _greeted(self, client: httpx.AsyncClient, worker: _Worker) -> None:
        try:
            await self._brought_up_to_date(client, worker)
        except _Failed as error:
            self._lose(worker, str(error))
            return
        if worker.why:
            self.warn(f"worker {worker.url} is back")
        worker.why = ""

    async def _brought_up_to_date(self, client: httpx.AsyncClient, worker: _Worker) -> None:
        """Send θ0 to a worker that does not have it."""
        if await self._version(client, worker, "GET", "/health", b"", GREETING) != self._theta:
            if await self._version(client, worker, "PUT", "/theta", self._content, self.patience) != self._theta:
                raise _Failed("it has another θ0 than was sent")

    async def _version(self, client, worker: _Worker, method: str, path: str, content: bytes, seconds: float) -> str:
        said = await self._reply(client, method, worker.url + path, content, seconds, SMALL)
        try:
            found = parsed(said)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("theta"), str):
            raise _Failed("this is no worker: it does not name its θ0")
        return found["theta"]

    async def _generated(self, requests: dict[tuple[int, ...], Request]) -> dict[tuple[int, ...], list[Generation]]:
        """What was generated to every request. What a worker did not do, those that are left do."""
        out: dict[tuple[int, ...], list[Generation]] = {}
        async with self._client() as client:
            while todo := [mine for mine in requests if mine not in out]:
                jobs = list(zip(todo, cycle(self._alive())))
                found = await asyncio.gather(*(self._asked(client, worker, requests[mine]) for mine, worker in jobs))
                out |= {mine: generations for mine, generations in zip(todo, found) if generations is not None}
                self._again += sum(generations is None for generations in found)
        return out

    async def _asked(self, client: httpx.AsyncClient, worker: _Worker, request: Request) -> list[Generation] | None:
        """What a worker generates; None where it is lost."""
        most = SMALL + PER_TOKEN * len(request.prompts) * request.max_new
        content = request_bytes(request)

        async def ask() -> list[Generation]:
            reply = await self._reply(client, "POST", f"{worker.url}/generate", content, self.patience, most)
            try:
                return generations_in(reply, request, self._vocabulary)
            except ValueError as error:
                raise _Failed(str(error).rstrip(".")) from error

        try:
            try:
                return await ask()
            except _Failed as error:
                if error.status != OUTDATED:
                    raise
            await self._brought_up_to_date(client, worker)  # it was started anew, or another run has it too
            return await ask()
        except _Failed as error:
            self._lose(worker, str(error))
            return None

    def _lose(self, worker: _Worker, why: str) -> None:
        why = " ".join(printable(why).split())
        if not worker.why:
            self._lost += 1
            self.warn(f"worker {worker.url} is lost: {why}")
        worker.why = why

    # HTTP ----------------------------------------------------------------------------------------------------------

    def _client(self) -> httpx.AsyncClient:
        headers = {"Content-Type": KIND, "Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return httpx.AsyncClient(headers=headers, timeout=None, follow_redirects=False, trust_env=False)

    async def _reply(
        self, client: httpx.AsyncClient, method: str, url: str, content: bytes, seconds: float, most: int
    ) -> bytes:
        """The body of a reply of `most` bytes at most, which must have come in so many seconds. Raises _Failed."""
        try:
            status, body = await asyncio.wait_for(_exchanged(client, method, url, content, most), seconds)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise _Failed(f"no reply within {seconds:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise _Failed(f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")) from error
        if body is None:
            raise _Failed(f"a reply of more than {most} bytes")
        if status != 200:
            raise _Failed(f"{status} {_sentence(body)}".strip(), status)
        return body


async def _exchanged(client: httpx.AsyncClient, method: str, url: str, content: bytes, most: int) -> tuple[int, bytes | None]:
    """Status and body of a reply; None for a body that is too long."""
    async with client.stream(method, url, content=content) as response:
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > most:
                return response.status_code, None
        return response.status_code, bytes(body)


def _sentence(body: bytes) -> str:
    """What a worker says of an error, "" where it says nothing."""
    try:
        return str(parsed(body)["error"]["message"])[:200].rstrip(".")
    except (ValueError, KeyError, TypeError):
        return ""


def _address(text: str) -> str:
    """The address of a worker. Raises ValueError for anything but http(s)://HOST:PORT."""
    try:
        url = httpx.URL(text.strip())
        sound = url.scheme in ("http", "https") and url.host and not (url.userinfo or url.query or url.fragment)
        sound = sound and url.path in ("", "/") and (url.port is None or 0 < url.port < 1 << 16)
    except (httpx.InvalidURL, UnicodeError):
        sound = False
    if not sound:
        raise ValueError(
            "train: --workers: expected addresses such as http://127.0.0.1:8430, between commas; keys go into --keys."
        )
    return str(url).rstrip("/")


def _taken(bank: AdapterBank | None, slots: list[int] | None) -> tuple[list[int] | None, list[Snapshot]]:
    """The rows of some slots, each once, and which of them each slot has; see Request."""
    if bank is None or slots is None:
        return None, []
    used = sorted({slot for slot in slots if slot >= 0})
    return [used.index(s) if s >= 0 else -1 for s in slots], [bank.snapshot(slot, optimizer=False) for slot in used]


def _shares(
    prompts: Sequence[list[int]], slots: Sequence[int] | None, begins: Sequence[int] | None, count: int
) -> list[list[int]]:  # fmt: skip
    """The numbers of the prompts in at most `count` parts of about one size. Prompts of one slot, and those without a Δ that
    begin alike, are in one part."""
    alike: dict[object, list[int]] = {}
    for i, prompt in enumerate(prompts):
        slot, begin = -1 if slots is None else slots[i], begins[i] if begins else 0
        alike.setdefault(slot if slot >= 0 else tuple(prompt[:begin] if begin else prompt), []).append(i)
    parts: list[list[int]] = [[] for _ in range(count)]
    for mine in sorted(alike.values(), key=len, reverse=True):
        min(parts, key=len).extend(mine)
    return [sorted(part) for part in parts if part]
