"""Batched decoding: one prompt per row, one slot per row, noise keyed by episode, finished rows leave.

A prompt may have a beginning that others share (the same text under many questions); it is read first, once for all of them.

Bits: prompts are read as prefill.py says; then all rows, whatever their bucket, take their steps together, each writing into
its own next column. Steps have a multiple of 4 rows, the mask is explicit, and a row draws its noise from its own key. So what
a row generates does not depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..models import forward as fw
from .nucleus import nucleus
from .prefill import Prompts, read, widths
from .steps import Growing, Lent

MAX_ROWS = 96  # rows decoded at once; bounds the key/value cache
SLIGHT = 0.1  # of the likeliest first token's probability; a generation that begins with a less probable one is not followed

_forced: ContextVar[Mapping[str, Sequence[int]] | None] = ContextVar("forced", default=None)


@dataclass(frozen=True)
class Generation:
    """`ids`: generated token ids, the closing one included if it came; `logprobs`: of each, under the sampling policy."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


@contextlib.contextmanager
def forced(texts: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """In this block and thread, sampling does its work and then takes the tokens `texts[key]` in the row of this noise key.

    For benchmarks: the work has the same length whatever the weights and the machine. After the end of a text comes token 0.
    Greedy decoding is not changed. Raises KeyError for a key that has no text.
    """
    token = _forced.set(texts)
    try:
        yield
    finally:
        _forced.reset(token)


def uniforms(key: str, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1), fp64, that depend on `key` alone (Philox, counter-based)."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))).random(count)


@torch.inference_mode()
def decode(
    model,
    prompts: Sequence[list[int]],
    *,
    bank: AdapterBank | None = None,
    slots: Sequence[int] | None = None,
    end: int | Set[int],
    max_new: int,
    begins: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    keys: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    watch: Callable[[int, int], bool] | None = None,
    fixed: bool | None = None,
) -> list[Generation]:
    """Generate up to `max_new` tokens after each prompt (token ids), with slot `slots[i]` (-1: base) for prompt i.

    `end`: the token id, or the ids, that finish a generation.
    `begins[i]`: how many tokens of prompt i are read first, once for all prompts that begin with the same under the same Δ;
    0, the default, reads it in one piece.
    `temperature` 0 is greedy; above it, row i samples with noise keyed by `keys[i]` and the position, out of the nucleus of
    `top_p` (see nucleus.py; 1: all tokens).
    `ranks[i]`: how many tokens are likelier than the first one of prompt i; 0, the default, takes the likeliest. The generation
    is empty where that token is less than `SLIGHT` times as probable as the likeliest. Greedy decoding only.
    `watch(i, token)` is told of every token of prompt i as it comes; where it returns True, that prompt's generation ends
    there, which changes no other's. `fixed`: steps at fixed addresses (see steps.py), by default
    on a GPU, where they are captured as CUDA graphs. Raises ValueError for an empty prompt, a beginning that leaves nothing
    of its prompt, missing keys, ranks of what is sampled, or a model that trains with gradient checkpointing.
    """
    begins = [0] * len(prompts) if begins is None else begins
    ranks = [0] * len(prompts) if ranks is None else ranks
    keys = keys if temperature > 0.0 else [""] * len(prompts)
    _check(model, prompts, begins, keys, ranks if temperature > 0.0 else [])
    fixed = next(model.parameters()).device.type == "cuda" if fixed is None else fixed
    tenants = None if slots is None else bank.hold(slots)
    job = _Job(
        model, None if slots is None else bank, {end} if isinstance(end, int) else end, max_new, fixed,
        None if tenants is None else tenants.alive,
    )  # fmt: skip
    out: list[Generation | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: widths(prompts[i], begins[i]))
    for at in range(0, len(order), MAX_ROWS):
        part = order[at : at + MAX_ROWS]
        some = Prompts([prompts[i] for i in part], [begins[i] for i in part], slots and [slots[i] for i in part])
        heard = None if watch is None else functools.partial(_of_part, watch, part)
        chooses = functools.partial(_Sampler, (temperature, top_p), [keys[i] for i in part], [ranks[i] for i in part], max_new)
        for i, generation in zip(part, _generate(job, some, chooses, heard)):
            out[i] = generation
    return out


def _of_part(watch: Callable[[int, int], bool], part: Sequence[int], i: int, token: int) -> bool:
    return watch(part[i], token)


def _check(
    model, prompts: Sequence[list[int]], begins: Sequence[int], keys: Sequence[str] | None, drawn: Sequence[int]
) -> None:
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise ValueError(
            "decode: the model trains with gradient checkpointing, which drops its cache; call model.eval() first."
        )
    if any(not p for p in prompts):
        raise ValueError("decode: a prompt is empty; every prompt needs at least one token.")
    for begin, p in zip(begins, prompts, strict=True):
        if not 0 <= begin < len(p):
            raise ValueError(f"decode: a beginning of {begin} tokens in a prompt of {len(p)}; expected 0 to {len(p) - 1}.")
    if keys is None:
        raise ValueError("decode: sampling needs one noise key per prompt.")
    if any(drawn):
        raise ValueError("decode: ranks say which first token is taken, and a temperature draws it; give one of them.")


@dataclass(frozen=True)
class _Job:
    """What is the same for all prompts of a call. bank: None without slots; still_held: raises when a slot changes hands."""

    model: object
    bank: AdapterBank | None
    ends: Set[int]
    max_new: int
    fixed: bool
    still_held: Callable[[], None] | None


def _generate(
    job: _Job, prompts: Prompts, chooses: Callable[..., _Sampler], watch: Callable[[int, int], bool] | None
) -> list[Generation]:
    """Read the prompts, then take steps until every row has ended; finished rows leave when half of them have."""
    cache, logits, slots = _prefilled(job, prompts)
    columns, said = _Columns(prompts, cache), _Said(len(prompts), len(logits), job.ends, watch)
    sampler = chooses(len(logits), logits.device)
    said.leave(sampler.slight(logits))
    with contextlib.ExitStack() as lent:
        stepper = Lent(lent, job.model, job.bank, cache, slots) if job.fixed else Growing(job.model, job.bank, cache, slots)
        for step in range(job.max_new):
            token, logp = sampler(logits, step)
            said.add(token.tolist(), logp.tolist())
            if not said.alive or step == job.max_new - 1:
                break
            if kept := said.halved():
                rows = torch.tensor(kept, device=token.device)
                token = token[rows]
                for state in (columns, sampler, stepper):
                    state.keep(rows)
            if job.still_held is not None:
                job.still_held()
            logits = stepper(token, columns.lengths + step, columns.visible(step), columns.first + step)
    return said.generations()


def _prefilled(job: _Job, prompts: Prompts) -> tuple[fw.KVCache, Tensor, list[int] | None]:
    """The cache of all prompts, the logits [rows, V] of their next tokens, and the rows' slots. Dummy rows, which serve no
    prompt, stand behind the prompts' own and fill them up to a multiple of 4."""
    found = list(read(job.model, job.bank, prompts))
    parts, states = [(cache, rows) for cache, rows, _ in found], [last for *_, last in found]
    dummies = fw.filled(len(prompts)) - len(prompts)
    if dummies:
        parts.append((parts[0][0], torch.zeros(dummies, dtype=torch.int64, device=states[0].device)))
        states.append(states[0][:1].expand(dummies, -1))
    logits = fw.logits(job.model, torch.cat(states))
    cache = fw.KVCache.joined(parts, max(c.length for c, _ in parts) + job.max_new)
    return cache, logits, None if prompts.slots is None else prompts.slots + [-1] * dummies


class _Columns:
    """Which columns of the cache belong to each row.

    lengths  tokens of the prompt, int64 [rows]; 1 for a dummy
    first    the column of the first token that is generated, int64 [rows]
    """

    def __init__(self, prompts: Prompts, cache: fw.KVCache):
        device, dummies = cache.columns.device, len(cache.columns) - len(prompts)
        self.lengths = torch.tensor([len(p) for p in prompts.ids] + [1] * dummies, device=device)
        self.first = cache.columns
        self.at = torch.arange(cache.capacity, device=device)
        begun, padded = (
            torch.tensor([*some, *[0] * dummies], device=device)[:, None]
            for some in (prompts.begins, [first for first, _ in prompts.widths])
        )
        rest = self.lengths[:, None] - begun
        self.prompt = (self.at < begun) | ((self.at >= padded) & (self.at < padded + rest))

    def visible(self, step: int) -> Tensor:
        """bool [rows, columns]: the prompt, and what was generated up to and with token `step`."""
        first = self.first[:, None]
        return self.prompt | ((self.at >= first) & (self.at <= first + step))

    def keep(self, rows: Tensor) -> None:
        self.lengths, self.first, self.prompt = self.lengths[rows], self.first[rows], self.prompt[rows]


class _Said:
    """What every prompt's row has said so far. row_of: which prompt a row of the batch serves, -1: none (any more)."""

    def __init__(self, prompts: int, rows: int, ends: Set[int], watch: Callable[[int, int], bool] | None):
        self.ends, self.watch, self.row_of = ends, watch, list(range(prompts)) + [-1] * (rows - prompts)
        self.tokens: list[list[int]] = [[] for _ in range(prompts)]
        self.logps: list[list[float]] = [[] for _ in range(prompts)]
        self.finished = [False] * prompts

    @property
    def alive(self) -> list[int]:
        """Rows that still serve a prompt."""
        return [r for r, p in enumerate(self.row_of) if p >= 0]

    def leave(self, rows: Sequence[int]) -> None:
        """These rows serve no prompt any more."""
        for row in rows:
            self.row_of[row] = -1

    def add(self, tokens: list[int], logps: list[float]) -> None:
        """One more token of every row."""
        for row, (token, logp) in enumerate(zip(tokens, logps)):
            prompt = self.row_of[row]
            if prompt >= 0:
                self.tokens[prompt].append(token)
                self.logps[prompt].append(logp)
                ended = self.watch is not None and self.watch(prompt, token)
                self.finished[prompt] = token in self.ends
                if ended or self.finished[prompt]:
                    self.row_of[row] = -1

    def halved(self) -> list[int]:
        """Once half of the rows or more have ended, those that stay, some that have ended among them up to a multiple of 4;
        they are all there are from then on. Else nothing."""
        alive = self.alive
        if len(alive) > len(self.row_of) // 2 or len(self.row_of) <= fw.ROWS:
            return []
        ended = [r for r, p in enumerate(self.row_of) if p < 0]
        kept = alive + ended[: fw.filled(len(alive)) - len(alive)]
        self.row_of = [self.row_of[r] for r in kept]
        return kept

    def generations(self) -> list[Generation]:
        return [Generation(t, lp, f) for t, lp, f in zip(self.tokens, self.logps, self.finished)]


class _Sampler:
    """Chooses the next token of every row: the likeliest at temperature 0, the first of its rank; else by the noise of the
    row's key. how: temperature and top_p."""

    def __init__(
        self, how: tuple[float, float], keys: list[str], ranks: list[int], max_new: int, rows: int, device: torch.device
    ):
        self.temperature, self.top_p = how
        self.ranks = ranks + [0] * (rows - len(ranks)) if any(ranks) else None
        self.noise: Tensor | None = None  # fp64 [rows, max_new]
        self.forced: Tensor | None = None  # int64 [rows, max_new]
        if self.temperature > 0.0:
            self.noise = torch.zeros(rows, max_new, dtype=torch.float64)
            self.noise[: len(keys)] = torch.from_numpy(np.stack([uniforms(key, max_new) for key in keys]))
            self.noise = self.noise.to(device)
            if (texts := _forced.get()) is not None:
                self.forced = fw.pad([list(texts[key][:max_new]) for key in keys], max_new).to(device)

    def __call__(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """logits fp32 [rows, V] -> token int64 [rows] and its log-probability [rows]."""
        if self.noise is None:
            token = self._first(logits) if step == 0 and self.ranks else logits.argmax(-1)
            return token, logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
        logp = nucleus((logits / self.temperature).log_softmax(-1), self.top_p)
        token = self._drawn(logp, self.noise[:, step])
        token = token if self.forced is None else self.forced[:, step]
        return token, logp.gather(-1, token[:, None])[:, 0]

    def _first(self, logits: Tensor) -> Tensor:
        """The token of each row's rank, int64 [rows]."""
        rank = torch.tensor(self.ranks, device=logits.device)[:, None]
        return logits.topk(1 + max(self.ranks)).indices.gather(-1, rank)[:, 0]

    def slight(self, logits: Tensor) -> list[int]:
        """Rows whose first token is too improbable to be followed."""
        if self.ranks is None:
            return []
        behind = logits.gather(-1, self._first(logits)[:, None])[:, 0] - logits.amax(-1)
        return (behind.exp() < SLIGHT).nonzero()[:, 0].tolist()

    @staticmethod
    def _drawn(logp: Tensor, noise: Tensor) -> Tensor:
        """Inverse-CDF sampling with `noise` [rows] in [0, 1)."""
        cdf = logp.exp().double().cumsum(-1)
        return torch.searchsorted(cdf, noise[:, None] * cdf[:, -1:], right=True)[:, 0].clamp_(max=logp.shape[-1] - 1)

    def keep(self, rows: Tensor) -> None:
        self.noise = None if self.noise is None else self.noise[rows]
        self.forced = None if self.forced is None else self.forced[rows]
