"""A judge of answers behind any OpenAI-compatible endpoint: asked concurrently, cached on disk, never silent about failures."""

import asyncio
import ipaddress
import json
import math
import os
import re
import sqlite3
import ssl
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

__all__ = [
    "GIVE_UP",
    "MAX_BYTES",
    "STATUSES",
    "UNASKED",
    "Judge",
    "JudgeConfig",
    "Prompt",
    "Spent",
    "Usage",
    "Verdict",
    "summary",
]

STATUSES = ("judged", "unreachable", "malformed", "left out")
MAX_BYTES = 1 << 20  # of one HTTP body
GIVE_UP = 16  # prompts in a row without a verdict before the rest is not asked: no money goes into a judge that cannot
UNASKED = f"not asked, as the {GIVE_UP} prompts before it got no verdict"

_LEASE = 15.0  # seconds after which a prompt of somebody who asked and died is free again
_POLL = 0.05  # seconds between two looks at a prompt that somebody else asks

_APPLICATION = 0x746D656D  # SQLite's application_id of a cache: "tmem"
_REFUSED = (401, 403, 404)
_TRANSIENT = (408, 409, 425, 429)
_TOKEN_FIELDS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_ENDED = {
    "length": ", cut at the token limit; a judge that thinks first needs a larger one (--judge-tokens)",
    "content_filter": ", stopped by the endpoint's content filter",
}
_ADAPTS = (200, 400, 422)  # where a complaint about a field is an answer to that field


class Verdict(NamedTuple):
    """What the judge found. score: 0..1, and None exactly where `status` is not "judged"; `reason` then says why.

    status: one of STATUSES. rubrics: 0 or 1 for each of the question's rubrics, empty for protocols without them.
    """

    score: float | None
    status: str = "judged"
    reason: str = ""
    rubrics: tuple[int, ...] = ()


class Prompt(NamedTuple):
    """What is sent, and how the reply is read. messages: OpenAI chat messages. max_tokens: of the reply.

    parse(reply): the verdict, None where the reply is none.
    """

    messages: tuple[dict[str, str], ...]
    parse: Callable[[str], Verdict | None]
    max_tokens: int


@dataclass
class Usage:
    """What a judge did since it was made.

    requests: HTTP requests sent, of these retries; cached: verdicts read from the cache. Tokens are those that the
    endpoint reports in `usage`; unmetered: replies without it. cost: in the currency of the prices, None without prices.
    refused: the fields that the endpoint would not take, of which it was then asked without.
    """

    requests: int = 0
    retries: int = 0
    cached: int = 0
    unreachable: int = 0
    malformed: int = 0
    unmetered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    refused: list[str] = field(default_factory=list)


class Spent(NamedTuple):
    """What all judges of one model have sent and paid for with one cache, those that were killed included; as in Usage.

    cost: of the replies that came while prices were given, None where that was never so.
    """

    requests: int = 0
    unmetered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


def summary(verdicts: Sequence[Verdict]) -> dict[str, float | int | None]:
    """How many verdicts have each status, and `score` and `rubric_rate`: means over the judged ones alone, else None.

    rubric_rate: the mean over verdicts with rubrics of the share of rubrics passed.
    """
    counts = Counter(verdict.status for verdict in verdicts)
    scores = [verdict.score for verdict in verdicts if verdict.status == "judged"]
    rates = [sum(v.rubrics) / len(v.rubrics) for v in verdicts if v.status == "judged" and v.rubrics]
    means = {"score": _mean(scores), "rubric_rate": _mean(rates)}
    return {**means, **{status.replace(" ", "_"): counts[status] for status in STATUSES}}


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


class _Key(str):
    """A key that no traceback with locals and no repr shows."""

    def __repr__(self) -> str:
        return "[key]"


def _key() -> _Key:
    """The key in $TMEM_JUDGE_KEY, else in $OPENAI_API_KEY, else "". ValueError where no header can carry it."""
    name = "TMEM_JUDGE_KEY" if os.environ.get("TMEM_JUDGE_KEY") else "OPENAI_API_KEY"
    key = _Key(os.environ.get(name, "").strip())
    if not all("!" <= character <= "~" for character in key):  # an HTTP library would quote it in its error
        raise ValueError(f"judge: the key in {name} has characters that no key has; set it again without spaces or breaks")
    return key


@dataclass(frozen=True)
class JudgeConfig:
    """How an endpoint is asked.

    concurrency: requests at a time. timeout: seconds for one request as a whole. attempts: requests for one prompt at most;
    between them it waits a random part of backoff, 2 backoff, 4 backoff, ... seconds on top of the server's Retry-After,
    `longest_wait` seconds at most. temperature: None leaves it out. max_tokens: instead of the prompts' own, for judges that
    think before they answer. token_field: the name of the token limit. An endpoint that complains of it is asked again with the
    other name, one that complains of "temperature" without it, and so from then on. prices: of a million prompt tokens and of a
    million completion tokens. Raises ValueError for a value out of range.
    """

    concurrency: int = 8
    timeout: float = 60.0
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    temperature: float | None = 0.0
    max_tokens: int | None = None
    token_field: str = "max_tokens"
    prices: tuple[float, float] | None = None

    def __post_init__(self):
        least = {"concurrency": 1, "timeout": 1e-3, "attempts": 1, "backoff": 0, "longest_wait": 0, "temperature": 0,
                 "max_tokens": 1}  # fmt: skip
        numbers = [(name, getattr(self, name), bound) for name, bound in least.items()]
        for name, value, bound in (*numbers, *(("prices", price, 0) for price in self.prices or ())):
            if value is not None and not bound <= value < math.inf:
                raise ValueError(f"judge: {name} is {value}, expected a number of at least {bound}")
        if self.prices is not None and len(self.prices) != 2:
            raise ValueError(f"judge: {len(self.prices)} prices given, expected two: of prompt and of completion tokens")
        if self.token_field not in _TOKEN_FIELDS:
            raise ValueError(f"judge: token_field is {self.token_field!r}, expected 'max_tokens' or 'max_completion_tokens'")


USUAL = JudgeConfig()


class Judge:
    """An endpoint that grades.

    url: an OpenAI base address such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1. model: its name there.
    cache: file of the replies so far (SQLite, made where there is none), and of what each model took; a reply is found by a
    hash of model, messages, temperature and token limit, and holds neither key nor address. Whoever shares it, in this process
    or another, asks each prompt once: the others wait for the reply.

    The key is read from $TMEM_JUDGE_KEY, else $OPENAI_API_KEY, each time `ask` is called; it is never sent over http://
    to another machine. Raises ValueError for a bad address, a file that is not such a cache, or a bad key.
    """

    def __init__(self, url: str, model: str, *, cache: str | Path, config: JudgeConfig = USUAL):
        self.url, self.local, self.private = _endpoint(url)
        self.model, self.cache, self.config = model, Path(cache), config
        self.usage = Usage(cost=None if config.prices is None else 0.0)
        _key()
        with _open(self.cache):
            pass  # a file that is no cache is named before anything is spent

    @property
    def host(self) -> str:
        """The endpoint's machine, without port, path, user or query."""
        return httpx.URL(self.url).host

    def spent(self) -> Spent:
        """What this model cost with this cache, this judge and all before it together."""
        with _open(self.cache) as db:
            found = db.execute(f"SELECT {', '.join(Spent._fields)} FROM spent WHERE model = ?", (self.model,)).fetchone()
        return Spent(*found or ())

    def ask(self, prompts: Sequence[Prompt | Verdict], on_done: Callable[[int, Verdict], None] | None = None) -> list[Verdict]:
        """A verdict for each prompt, in their order; what is a Verdict already is handed back.

        on_done(i, verdict): called as each is known; what it raises ends the work. Every verdict is on the disk before it
        is reported, so whatever stops the work, the next call asks for the rest alone. What failed is asked again then.
        Raises ValueError where the first request is refused (401, 403, 404), or when the cache cannot be read or written.
        Not to be called inside a running event loop.
        """
        with _open(self.cache) as db:
            return asyncio.run(self._ask(db, prompts, on_done or (lambda i, verdict: None)))

    async def _ask(self, db: sqlite3.Connection, prompts: Sequence[Prompt | Verdict], on_done) -> list[Verdict]:
        verdicts: list[Verdict | None] = [p if isinstance(p, Verdict) else self._recall(db, p) for p in prompts]
        for i, verdict in enumerate(verdicts):
            if verdict is not None:
                on_done(i, verdict)
        alike: dict[bytes, list[int]] = {}
        for i, verdict in enumerate(verdicts):
            if verdict is None:
                alike.setdefault(self._address(prompts[i]), []).append(i)
        todo = iter(alike.values())
        key = _key() if self.private else _Key()

        async def work(some: Iterator[list[int]]) -> None:
            for i, *others in some:
                verdicts[i] = await self._verdict(run, prompts[i])
                on_done(i, verdicts[i])
                for j in others:  # the same prompt, whose reply may be read otherwise
                    verdicts[j] = await self._again(run, prompts[j], verdicts[i])
                    on_done(j, verdicts[j])

        async with httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
            auth=_bearer(key) if key else None,
            follow_redirects=False,
            timeout=None,  # of each step; `_attempt` limits the whole
            limits=httpx.Limits(max_connections=self.config.concurrency),
            trust_env=not self.local,  # what is meant for this machine goes through no proxy
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept, none is sent
        ) as client:
            run = _Run(client, key, db, self.config.token_field, self.config.temperature, self.usage.refused)
            tasks = [asyncio.ensure_future(run.keep())]
            try:
                await work(islice(todo, 1))  # alone: a wrong key or address shows before thousands are sent
                workers = [asyncio.ensure_future(work(todo)) for _ in range(self.config.concurrency)]
                tasks += workers
                await asyncio.gather(*workers)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                run.release()
        return verdicts

    def _address(self, prompt: Prompt) -> bytes:
        content = [self.model, prompt.messages, self.config.temperature, self.config.max_tokens or prompt.max_tokens]
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).digest()

    def _recall(self, db: sqlite3.Connection, prompt: Prompt) -> Verdict | None:
        row = db.execute("SELECT reply FROM replies WHERE address = ?", (self._address(prompt),)).fetchone()
        verdict = prompt.parse(row[0]) if row and isinstance(row[0], str) else None
        self.usage.cached += verdict is not None
        return verdict

    async def _again(self, run: "_Run", prompt: Prompt, first: Verdict) -> Verdict:
        """The verdict on a prompt that has just been asked for another answer."""
        if first.status != "judged":
            return self._fail(run, first.status, first.reason)
        return self._recall(run.db, prompt) or await self._verdict(run, prompt)

    async def _verdict(self, run: "_Run", prompt: Prompt) -> Verdict:
        if run.in_vain >= GIVE_UP:
            return self._fail(run, "unreachable", UNASKED)
        address = self._address(prompt)
        while not run.claims(address):
            await asyncio.sleep(_POLL)
        try:
            known = self._recall(run.db, prompt)  # by whoever had it until now, or since `ask` began
            return known or await self._asked(run, prompt)
        finally:
            run.release(address)

    async def _asked(self, run: "_Run", prompt: Prompt) -> Verdict:
        body = self._body(run, prompt)
        try:
            reply, why = await AsyncRetrying(
                stop=stop_after_attempt(self.config.attempts),
                wait=self._wait,
                retry=retry_if_exception(lambda error: isinstance(error, _Failure) and error.again),
                before_sleep=self._count,
                reraise=True,
            )(self._attempt, run, body)
        except _Failure as failure:
            if failure.code in _ADAPTS and (body != self._body(run, prompt) or run.adapts(failure.reason)):
                return await self._asked(run, prompt)
            if failure.code in _REFUSED and not run.answered:
                raise ValueError(self._refusal(failure.code, bool(run.key), failure.reason)) from None
            return self._fail(run, failure.status, failure.reason)
        verdict = prompt.parse(reply)
        if verdict is None:  # not cached: the next run asks again
            return self._fail(run, "malformed", f"the reply {reply[:80]!r} is not in the form asked for{why}")
        with run.db:
            run.db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (self._address(prompt), reply))
        run.in_vain = 0
        return verdict

    def _body(self, run: "_Run", prompt: Prompt) -> dict:
        body = {"model": self.model, "messages": prompt.messages, run.token_field: self.config.max_tokens or prompt.max_tokens}
        return body if run.temperature is None else {**body, "temperature": run.temperature}

    def _fail(self, run: "_Run", status: str, reason: str) -> Verdict:
        setattr(self.usage, status, getattr(self.usage, status) + 1)
        run.in_vain += 1
        return Verdict(None, status, reason)

    def _refusal(self, code: int, with_key: bool, reason: str) -> str:
        said = reason.partition(": ")[2]
        said = f"({code}: {said})" if said else f"({code})"
        if code == 404:
            return f"judge: {self.url} does not exist {said}; check the address, which mostly ends with /v1, and the model"
        if with_key:
            return f"judge: {self.url} refuses the key {said}; put one for it into the environment variable TMEM_JUDGE_KEY"
        why = "TMEM_JUDGE_KEY is not set" if self.private else "a key goes over https:// alone, or to this machine"
        return f"judge: {self.url} refuses requests without a key {said}, and none was sent: {why}"

    def _count(self, state: RetryCallState) -> None:
        self.usage.retries += 1

    def _wait(self, state: RetryCallState) -> float:
        jittered = wait_random_exponential(multiplier=self.config.backoff, max=self.config.longest_wait)(state)
        return min(self.config.longest_wait, state.outcome.exception().after + jittered)

    async def _attempt(self, run: "_Run", body: dict) -> tuple[str, str]:
        """The text of the reply to one request, and what explains a reply that is none. Raises _Failure."""
        self.usage.requests += 1
        self._spend(run, Spent(requests=1))
        try:
            code, after, raw = await asyncio.wait_for(
                _post(run.client, self.url, json.dumps(body).encode()), self.config.timeout
            )
        except asyncio.TimeoutError:
            raise _Failure("unreachable", f"no answer within {self.config.timeout:g} s", again=True) from None
        except Exception as error:  # its text may quote what was sent
            if not all(isinstance(one, (httpx.HTTPError, OSError, UnicodeError)) for one in _each(error)):
                raise
            why, again = _unconnected(error)
            raise _Failure("unreachable", f"the connection failed ({why})", again=again) from None
        if raw is None:
            raise _Failure("malformed", f"the endpoint sent more than {MAX_BYTES} bytes")
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            answer = None
        said = _printable(_complaint(raw.decode("utf-8", "replace") if answer is None else answer), run.key)
        if code != 200:
            moved = " (a redirect, which is not followed; give the address that it leads to)" if 300 <= code < 400 else ""
            reason = f"the endpoint answered {code}{moved}" + (f": {said}" if said else "")
            again = code in _TRANSIENT or code >= 500
            raise _Failure("unreachable", reason, again=again, after=_seconds(after), code=code)
        run.answered = True
        self._spend(run, self._metered(answer))
        message = _dig(answer, "choices", 0, "message")
        if not isinstance(message, dict):
            instead = "but an error" if answer is not None else "but"
            reason = f"the endpoint's answer holds no choices[0].message{said and f', {instead}: {said}'}"
            raise _Failure("malformed", reason, again=not run.could_adapt(said), code=code)
        text, ended = _text(message.get("content")), _dig(answer, "choices", 0, "finish_reason")
        refusal = _printable(message.get("refusal"), run.key)
        why = f", refused: {refusal}" if refusal else _ENDED.get(ended, "") if isinstance(ended, str) else ""
        if not text.strip() and not why:
            raise _Failure("malformed", f"the reply holds no text{said and f', but an error: {said}'}", again=True)
        return _clean(text, run.key), why

    def _metered(self, answer) -> Spent:
        """What a reply says that it took, and its price."""
        tokens = [_dig(answer, "usage", f"{side}_tokens") for side in ("prompt", "completion")]
        if not all(type(n) is int and 0 <= n < 1 << 40 for n in tokens):
            self.usage.unmetered += 1
            return Spent(unmetered=1)
        self.usage.prompt_tokens += tokens[0]
        self.usage.completion_tokens += tokens[1]
        if self.config.prices is None:
            return Spent(0, 0, *tokens)
        cost = sum(n * price for n, price in zip(tokens, self.config.prices)) / 1e6
        self.usage.cost += cost
        return Spent(0, 0, *tokens, cost)

    def _spend(self, run: "_Run", more: Spent) -> None:
        """On the disk at once, as what was paid for is paid for, whatever stops the work or becomes of the reply."""
        with run.db:
            run.db.execute("INSERT OR IGNORE INTO spent (model) VALUES (?)", (self.model,))
            run.db.execute(
                "UPDATE spent SET requests = requests + ?, unmetered = unmetered + ?, prompt_tokens = prompt_tokens + ?, "
                "completion_tokens = completion_tokens + ?, cost = coalesce(cost + ?, cost, ?) WHERE model = ?",
                (*more, more.cost, self.model),
            )


@dataclass
class _Run:
    """One call of `ask`, how it names the token limit and which temperature it sends by now, and what had to change for that.

    answered: there was a reply with status 200. in_vain: prompts without a verdict since the last. renamed: the token limit has
    its other name by now. owner: of the prompts that this run asks.
    """

    client: httpx.AsyncClient
    key: _Key
    db: sqlite3.Connection
    token_field: str
    temperature: float | None
    refused: list[str]
    answered: bool = False
    in_vain: int = 0
    renamed: bool = False
    owner: str = field(default_factory=lambda: uuid4().hex)

    def adapts(self, complaint: str) -> bool:
        """Leave out what the endpoint complains of; False where there is nothing to leave out."""
        if not (field := self.could_adapt(complaint)):
            return False
        if field == "temperature":
            self.temperature = None
        else:
            self.token_field, self.renamed = _TOKEN_FIELDS[field], True
        self.refused.append(field)
        return True

    def could_adapt(self, complaint: str) -> str:
        """The field complained of that can be sent otherwise, else ""."""
        if self.token_field in complaint and not self.renamed:
            return self.token_field
        return "temperature" if "temperature" in complaint and self.temperature is not None else ""

    def claims(self, address: bytes) -> bool:
        """Whether this prompt is this run's to ask, until it is released; False while somebody else asks it."""
        now = time.time()
        with self.db:
            return 1 == self.db.execute(
                "INSERT INTO claims VALUES (?, ?, ?) ON CONFLICT (address) DO UPDATE SET owner = excluded.owner, "
                "until = excluded.until WHERE until < ? OR until > ?",
                (address, self.owner, now + _LEASE, now, now + 2 * _LEASE),
            ).rowcount  # fmt: skip

    def release(self, address: bytes | None = None) -> None:
        """Give up the claim to one prompt, or all claims."""
        with self.db:
            self.db.execute("DELETE FROM claims WHERE owner = ? AND address = coalesce(?, address)", (self.owner, address))

    async def keep(self) -> None:
        """Renew the claims for as long as this run lives."""
        while True:
            await asyncio.sleep(_LEASE / 3)
            with self.db:
                self.db.execute("UPDATE claims SET until = ? WHERE owner = ?", (time.time() + _LEASE, self.owner))


class _Failure(Exception):
    """A request without a reply. again: another may do better, not before `after` seconds; code: the HTTP status, or 0."""

    def __init__(self, status: str, reason: str, *, again: bool = False, after: float = 0.0, code: int = 0):
        super().__init__(reason)
        self.status, self.reason, self.again, self.after, self.code = status, reason, again, after, code


def _endpoint(url: str) -> tuple[str, bool, bool]:
    """The address to post to, whether it is on this machine, and whether a key may be sent there."""
    try:
        parts = httpx.URL(url)
        host = parts.host
    except (httpx.InvalidURL, TypeError, UnicodeError):  # of a name that IDNA has not, the last
        parts, host = httpx.URL(""), ""
    # What could carry a secret is not shown.
    named = parts.scheme in ("http", "https") and host and not (parts.userinfo or parts.query or parts.fragment)
    if not named or not (parts.port is None or 0 < parts.port < 1 << 16) or not _resolvable(host):
        raise ValueError(
            "judge: the address is not of the form https://host/v1 or http://127.0.0.1:port/v1, without user, query or "
            "fragment; a key belongs into the environment variable TMEM_JUDGE_KEY"
        )
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    path = str(parts).rstrip("/")
    return path if path.endswith("/chat/completions") else f"{path}/chat/completions", local, local or parts.scheme == "https"


def _resolvable(host: str) -> bool:
    """Whether a host's name has the form of one (RFC 1035, 2.3.4), or is an IPv6 address."""
    labels = host.removesuffix(".").split(".")
    return len(host) < 254 and (":" in host or all(re.fullmatch(r"[\w-]{1,63}", label) for label in labels))


def _each(error: BaseException) -> Iterator[BaseException]:
    """The error, or those that it is a group of."""
    several = getattr(error, "exceptions", None)
    if several is None:
        yield error
    for one in several or ():
        yield from _each(one)


def _unconnected(error: BaseException) -> tuple[str, bool]:
    """Why there was no connection, in the words of the innermost error that says so, and whether another may do better."""
    error = next(_each(error))
    name, why, again = type(error).__name__, "", True
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            why, again = f"the certificate is not trusted: {error.verify_message}", False
        elif isinstance(error, OSError) and error.strerror:
            why = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror
        error = error.__cause__ or error.__context__
        error = error and next(_each(error))  # of a group, one for each of the host's addresses
    return f"{name}: {why}" if why else name, again


def _bearer(key: _Key) -> Callable[[httpx.Request], httpx.Request]:
    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign


async def _post(client: httpx.AsyncClient, url: str, body: bytes) -> tuple[int, str, bytes | None]:
    """The HTTP status, Retry-After and the body, None where it is larger than MAX_BYTES, also unpacked."""
    async with client.stream("POST", url, content=body) as response:
        raw = bytearray()
        async for part in response.aiter_raw():
            raw += part
            if len(raw) > MAX_BYTES:
                return response.status_code, "", None
        if response.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip", "deflate"):  # though none was asked for
            raw = _unpacked(bytes(raw))
        small = len(raw) <= MAX_BYTES
        return response.status_code, response.headers.get("Retry-After", ""), bytes(raw) if small else None


def _unpacked(raw: bytes) -> bytes:
    """What gzip or zlib packed, no more than a byte above MAX_BYTES; as it is where that is not so."""
    try:
        return zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(raw, MAX_BYTES + 1)
    except zlib.error:
        return raw


def _seconds(retry_after: str) -> float:
    """Retry-After, seconds or an HTTP date (RFC 9110, 10.2.3), in seconds from now; 0 where it is neither."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0


def _dig(value, *path: str | int):
    """value[path[0]][path[1]]..., None where there is no such thing."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _text(content) -> str:
    """A message's content: text, a part, or a list of such, of which those that are text are joined."""
    if isinstance(content, list):
        return "".join(_text(part) for part in content if isinstance(part, dict))
    if isinstance(content, dict):
        content = content.get("text") if content.get("type", "text") in ("text", "output_text") else None
    return content if isinstance(content, str) else ""


def _complaint(answer) -> str:
    """What an error says, in whatever shape: {"error": {"message", "param"}}, {"error": ""}, {"detail": [{"loc", "msg"}]}, a
    list of such, or text, also HTML; "" where the answer says nothing of one."""
    if isinstance(answer, str):
        return re.sub(r"<(style|script)\b.*?</\1\s*>|<[^<>]*>", " ", answer[:10_000], flags=re.DOTALL | re.IGNORECASE)
    if isinstance(answer, list):
        return "; ".join(filter(None, (_complaint(part) for part in answer[:8])))
    if not isinstance(answer, dict):
        return ""
    where = answer.get("param") or answer.get("loc")
    where = " ".join(map(str, where)) if isinstance(where, list) else where if isinstance(where, str) else ""
    found = (answer.get(name) for name in ("error", "errors", "message", "msg", "detail", "title", "description", "code"))
    said = next((text for value in found if (text := _complaint(value))), "")
    return f"{where}: {said}" if where and where not in said else said


def _clean(text: str, key: str) -> str:
    """Without the key, should the endpoint repeat it, and without halves of surrogates, which no file can hold."""
    text = text.encode("utf-8", "replace").decode()
    return text.replace(key, "[key]") if len(key) >= 8 else text  # a shorter one is a placeholder such as "none"


def _printable(text, key: str) -> str:
    """At most 200 characters in one line, without control characters."""
    if not isinstance(text, str):
        return ""
    return _clean("".join(c for c in " ".join(text.split()) if c.isprintable()), key)[:200]


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """The cache's database; what goes wrong with it inside the block is one sentence."""
    try:
        with closing(sqlite3.connect(path, timeout=30)) as db:
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and db.execute("PRAGMA application_id").fetchone() != (_APPLICATION,):
                raise ValueError(f"judge: {path} is a database of something else; choose another file for the cache")
            if (found := db.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            if not tables:
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
                db.execute("CREATE TABLE IF NOT EXISTS replies (address BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID")
            counts = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in Spent._fields[:-1])
            db.execute("CREATE TABLE IF NOT EXISTS claims (address BLOB PRIMARY KEY, owner TEXT, until REAL) WITHOUT ROWID")
            db.execute(f"CREATE TABLE IF NOT EXISTS spent (model TEXT PRIMARY KEY, {counts}, cost REAL)")  # old caches lack it
            yield db
    except sqlite3.OperationalError as error:
        raise ValueError(
            f"judge: the cache {path} cannot be read or written ({error}); check its folder, the space left, and whether "
            "another run holds it"
        ) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"judge: the cache {path} is damaged or no cache ({error}); move it away to ask for its verdicts again, or "
            "choose another file"
        ) from error
