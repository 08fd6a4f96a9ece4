"""A judge of answers behind any OpenAI-compatible endpoint: asked concurrently, cached on disk, never silent about failures."""

import asyncio
import ipaddress
import json
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

__all__ = ["GIVE_UP", "MAX_BYTES", "STATUSES", "UNASKED", "Judge", "Prompt", "Spent", "Usage", "Verdict", "summary"]

STATUSES = ("judged", "unreachable", "malformed", "left out")
MAX_BYTES = 1 << 20  # of one HTTP body
GIVE_UP = 16  # prompts in a row without a verdict before the rest is not asked: no money goes into a judge that cannot
UNASKED = f"not asked, as the {GIVE_UP} prompts before it got no verdict"

_APPLICATION = 0x746D656D  # SQLite's application_id of a cache: "tmem"
_REFUSED = (401, 403, 404)
_TRANSIENT = (408, 409, 425, 429)


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


class Judge:
    """An endpoint that grades.

    url: an OpenAI base address such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1. model: its name there.
    cache: file of the replies so far (SQLite, made where there is none), and of what each model took; a reply is found by a
    hash of model, messages, temperature and token limit, and holds neither key nor address. concurrency: requests at a time.
    timeout: seconds for one request as a whole. attempts: requests for one prompt at most; between them it waits a random part
    of backoff, 2 backoff, 4 backoff, ... seconds on top of the server's Retry-After, `longest_wait` seconds at most.
    max_tokens: instead of the prompts' own, for judges that think before they answer. temperature: None leaves it out.
    token_field: the name of the token limit. An endpoint that answers 400 and names "max_tokens" is asked again with
    "max_completion_tokens", one that names "temperature" without it, and so from then on.
    prices: of a million prompt tokens and of a million completion tokens.

    The key is read from $TMEM_JUDGE_KEY, else $OPENAI_API_KEY, each time `ask` is called; it is never sent over http://
    to another machine. Raises ValueError for arguments out of range, a file that is not such a cache, or a bad key.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: str | Path,
        concurrency: int = 8,
        timeout: float = 60.0,
        attempts: int = 5,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        token_field: str = "max_tokens",
        prices: tuple[float, float] | None = None,
    ):
        self.url, self.local, self.private = _endpoint(url)
        for name, value, least in (
            ("concurrency", concurrency, 1), ("timeout", timeout, 1e-3), ("attempts", attempts, 1), ("backoff", backoff, 0),
            ("longest_wait", longest_wait, 0), ("temperature", temperature, 0), ("max_tokens", max_tokens, 1),
            *(("prices", price, 0) for price in prices or ()),
        ):  # fmt: skip
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"judge: {name} is {value}, expected a number of at least {least}")
        if prices is not None and len(prices) != 2:
            raise ValueError(f"judge: {len(prices)} prices given, expected two: of prompt and of completion tokens")
        if token_field not in ("max_tokens", "max_completion_tokens"):
            raise ValueError(f"judge: token_field is {token_field!r}, expected 'max_tokens' or 'max_completion_tokens'")
        self.model, self.cache, self.concurrency, self.timeout = model, Path(cache), concurrency, timeout
        self.attempts, self.backoff, self.longest_wait = attempts, backoff, longest_wait
        self.temperature, self.max_tokens, self.token_field, self.prices = temperature, max_tokens, token_field, prices
        self.usage = Usage(cost=None if prices is None else 0.0)
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

    def ask(
        self, prompts: Sequence[Prompt | Verdict], on_done: Callable[[int, Verdict], None] | None = None
    ) -> list[Verdict]:
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
        todo = iter([i for i, verdict in enumerate(verdicts) if verdict is None])
        key = _key() if self.private else _Key()

        async def work(some: Iterator[int]) -> None:
            for i in some:
                verdicts[i] = await self._verdict(run, prompts[i])
                on_done(i, verdicts[i])

        async with httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
            auth=_bearer(key) if key else None,
            follow_redirects=False,
            timeout=None,  # of each step; `_attempt` limits the whole
            limits=httpx.Limits(max_connections=self.concurrency),
            trust_env=not self.local,  # what is meant for this machine goes through no proxy
        ) as client:
            run = _Run(client, key, db, self.token_field, self.temperature, self.usage.refused)
            await work(islice(todo, 1))  # alone: a wrong key or address shows before thousands are sent
            workers = [asyncio.ensure_future(work(todo)) for _ in range(self.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return verdicts

    def _address(self, prompt: Prompt) -> bytes:
        content = [self.model, prompt.messages, self.temperature, self.max_tokens or prompt.max_tokens]
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).digest()

    def _recall(self, db: sqlite3.Connection, prompt: Prompt) -> Verdict | None:
        row = db.execute("SELECT reply FROM replies WHERE address = ?", (self._address(prompt),)).fetchone()
        verdict = prompt.parse(row[0]) if row and isinstance(row[0], str) else None
        self.usage.cached += verdict is not None
        return verdict

    async def _verdict(self, run: "_Run", prompt: Prompt) -> Verdict:
        if run.in_vain >= GIVE_UP:
            return self._fail(run, "unreachable", UNASKED)
        try:
            reply, cut = await AsyncRetrying(
                stop=stop_after_attempt(self.attempts),
                wait=self._wait,
                retry=retry_if_exception(lambda error: isinstance(error, _Failure) and error.again),
                before_sleep=self._count,
                reraise=True,
            )(self._attempt, run, json.dumps(self._body(run, prompt)).encode())
        except _Failure as failure:
            if failure.code == 400 and run.adapts(failure.reason):
                return await self._verdict(run, prompt)
            if failure.code in _REFUSED and not run.answered:
                raise ValueError(self._refusal(failure.code, bool(run.key))) from None
            return self._fail(run, failure.status, failure.reason)
        verdict = prompt.parse(reply)
        if verdict is None:  # not cached: the next run asks again
            reason = f"the reply {reply[:80]!r} is not in the form asked for" + (", cut at the token limit" if cut else "")
            return self._fail(run, "malformed", reason)
        with run.db:
            run.db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (self._address(prompt), reply))
        run.in_vain = 0
        return verdict

    def _body(self, run: "_Run", prompt: Prompt) -> dict:
        body = {"model": self.model, "messages": prompt.messages, run.token_field: self.max_tokens or prompt.max_tokens}
        return body if run.temperature is None else {**body, "temperature": run.temperature}

    def _fail(self, run: "_Run", status: str, reason: str) -> Verdict:
        setattr(self.usage, status, getattr(self.usage, status) + 1)
        run.in_vain += 1
        return Verdict(None, status, reason)

    def _refusal(self, code: int, with_key: bool) -> str:
        if code == 404:
            return f"judge: {self.url} does not exist (404); check the address, which mostly ends with /v1, and the model"
        if with_key:
            return f"judge: {self.url} refuses the key ({code}); put one for it into the environment variable TMEM_JUDGE_KEY"
        why = "TMEM_JUDGE_KEY is not set" if self.private else "a key goes over https:// alone, or to this machine"
        return f"judge: {self.url} refuses requests without a key ({code}), and none was sent: {why}"

    def _count(self, state: RetryCallState) -> None:
        self.usage.retries += 1

    def _wait(self, state: RetryCallState) -> float:
        jittered = wait_random_exponential(multiplier=self.backoff, max=self.longest_wait)(state)
        return min(self.longest_wait, state.outcome.exception().after + jittered)

    async def _attempt(self, run: "_Run", body: bytes) -> tuple[str, bool]:
        """The text of the reply to one request, and whether the token limit cut it. Raises _Failure."""
        self.usage.requests += 1
        self._spend(run, Spent(requests=1))
        try:
            code, after, raw = await asyncio.wait_for(_post(run.client, self.url, body), self.timeout)
        except asyncio.TimeoutError:
            raise _Failure("unreachable", f"no answer within {self.timeout:g} s", again=True) from None
        except httpx.HTTPError as error:  # its text may quote what was sent
            raise _Failure("unreachable", f"the connection failed ({type(error).__name__})", again=True) from None
        if raw is None:
            raise _Failure("malformed", f"the endpoint sent more than {MAX_BYTES} bytes")
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            answer = None
        if code != 200:
            said = _printable(_dig(answer, "error", "message"), run.key) if code == 400 else ""
            reason = f"the endpoint answered {code}" + (f": {said}" if said else "")
            again = code in _TRANSIENT or code >= 500
            raise _Failure("unreachable", reason, again=again, after=_seconds(after), code=code)
        run.answered = True
        self._spend(run, self._metered(answer))
        if not isinstance(message := _dig(answer, "choices", 0, "message"), dict):
            raise _Failure("malformed", "the endpoint's answer holds no choices[0].message", again=True)
        text = message.get("content")
        cut = _dig(answer, "choices", 0, "finish_reason") == "length"
        return _clean(text if isinstance(text, str) else "", run.key), cut

    def _metered(self, answer) -> Spent:
        """What a reply says that it took, and its price."""
        tokens = [_dig(answer, "usage", f"{side}_tokens") for side in ("prompt", "completion")]
        if not all(type(n) is int and 0 <= n < 1 << 40 for n in tokens):
            self.usage.unmetered += 1
            return Spent(unmetered=1)
        self.usage.prompt_tokens += tokens[0]
        self.usage.completion_tokens += tokens[1]
        if self.prices is None:
            return Spent(0, 0, *tokens)
        cost = sum(n * price for n, price in zip(tokens, self.prices)) / 1e6
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

    answered: there was a reply with status 200. in_vain: prompts without a verdict since the last.
    """

    client: httpx.AsyncClient
    key: _Key
    db: sqlite3.Connection
    token_field: str
    temperature: float | None
    refused: list[str]
    answered: bool = False
    in_vain: int = 0

    def adapts(self, complaint: str) -> bool:
        """Leave out what the endpoint complains of; False where there is nothing to leave out."""
        if "max_tokens" in complaint and self.token_field == "max_tokens":
            self.token_field = "max_completion_tokens"
            self.refused.append("max_tokens")
        elif "temperature" in complaint and self.temperature is not None:
            self.temperature = None
            self.refused.append("temperature")
        else:
            return False
        return True


class _Failure(Exception):
    """A request without a reply. again: another may do better, not before `after` seconds; code: the HTTP status, or 0."""

    def __init__(self, status: str, reason: str, *, again: bool = False, after: float = 0.0, code: int = 0):
        super().__init__(reason)
        self.status, self.reason, self.again, self.after, self.code = status, reason, again, after, code


def _endpoint(url: str) -> tuple[str, bool, bool]:
    """The address to post to, whether it is on this machine, and whether a key may be sent there."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parts = httpx.URL("")
    # What could carry a secret is not shown.
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or parts.query or parts.fragment:
        raise ValueError(
            "judge: the address is not of the form https://host/v1 or http://127.0.0.1:port/v1, without user, query or "
            "fragment; a key belongs into the environment variable TMEM_JUDGE_KEY"
        )
    try:
        local = ipaddress.ip_address(parts.host).is_loopback
    except ValueError:
        local = parts.host == "localhost"
    path = str(parts).rstrip("/")
    return path if path.endswith("/chat/completions") else f"{path}/chat/completions", local, local or parts.scheme == "https"


def _bearer(key: _Key) -> Callable[[httpx.Request], httpx.Request]:
    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign


async def _post(client: httpx.AsyncClient, url: str, body: bytes) -> tuple[int, str, bytes | None]:
    """The HTTP status, Retry-After and the body, None where it is larger than MAX_BYTES."""
    async with client.stream("POST", url, content=body) as response:
        raw = bytearray()
        async for part in response.aiter_raw():  # as sent: nothing is unpacked to a larger size
            raw += part
            if len(raw) > MAX_BYTES:
                return response.status_code, "", None
        return response.status_code, response.headers.get("Retry-After", ""), bytes(raw)


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


def _clean(text: str, key: str) -> str:
    """Without the key, should the endpoint repeat it, and without halves of surrogates, which no file can hold."""
    text = text.encode("utf-8", "replace").decode()
    return text.replace(key, "[key]") if len(key) >= 8 else text  # a shorter one is a placeholder such as "none"


def _printable(text, key: str) -> str:
    """At most 200 characters in one line, without control characters."""
    if not isinstance(text, str):
        return ""
    return "".join(c for c in " ".join(_clean(text, key).split()) if c.isprintable())[:200]


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
