"""Batched decoding: one prompt per row, one slot per row, noise keyed by episode, finished rows leave.

Bits: prompts of one length bucket are read together, padded on the right to the bucket; then all rows, whatever their bucket,
take their steps together, each writing into its own next column. Batches are filled to a multiple of 4 rows, the mask is
explicit, and a row draws its noise from its own key. So what a row generates does not depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import forward as fw
from ..bank import AdapterBank
from .steps import Steps

MAX_ROWS = 96  # rows decoded at once; bounds the key/value cache


@dataclass(frozen=True)
class Generation:
    """`ids`: generated token ids, the closing one included if it came; `logprobs`: of each, under the sampling policy."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


def uniforms(key: str, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1), fp64, that depend on `key` alone (Philox, counter-based)."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))).random(count)


def _choose(logits: Tensor, temperature: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Next token and its log-probability per row; temperature 0 is greedy, else inverse-CDF sampling with `noise` [B]."""
    if temperature == 0.0:
        token = logits.argmax(-1)
        return token, logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
    logp = (logits / temperature).log_softmax(-1)
    cdf = logp.exp().double().cumsum(-1)
    token = torch.searchsorted(cdf, noise[:, None] * cdf[:, -1:], right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    return token, logp.gather(-1, token[:, None])[:, 0]


@torch.inference_mode()
def decode(
    model,
    prompts: Sequence[list[int]],
    *,
    bank: AdapterBank | None = None,
    slots: Sequence[int] | None = None,
    end: int,
    max_new: int,
    temperature: float = 0.0,
    keys: Sequence[str] | None = None,
    on_token: Callable[[int], None] | None = None,
    fixed: bool | None = None,
) -> list[Generation]:
    """Generate up to `max_new` tokens after each prompt (token ids), with slot `slots[i]` (-1: base) for prompt i.

    `temperature` 0 is greedy; above it, row i samples with noise keyed by `keys[i]` and the position.
    `on_token(n)` is told how many tokens each step produced. `fixed`: steps at fixed addresses (see steps.py), by default
    on a GPU, where they are captured as CUDA graphs. Raises ValueError for an empty prompt or missing keys.
    """
    if any(not p for p in prompts):
        raise ValueError("decode: a prompt is empty; every prompt needs at least one token.")
    if temperature > 0.0 and keys is None:
        raise ValueError("decode: sampling needs one noise key per prompt.")
    out: list[Generation | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: fw.bucket(len(prompts[i])))
    for at in range(0, len(order), MAX_ROWS):
        part = order[at : at + MAX_ROWS]
        noise = None
        if temperature > 0.0:
            noise = torch.from_numpy(np.stack([uniforms(keys[i], max_new) for i in part]))
        found = _decode(
            model,
            [prompts[i] for i in part],
            bank,
            [slots[i] for i in part] if slots is not None else None,
            end,
            max_new,
            temperature,
            noise,
            on_token,
            fixed,
        )
        for i, generation in zip(part, found):
            out[i] = generation
    return out


def _shared(prompts, bank, slots) -> tuple[list[int], list[int]]:
    """Which prompts are to be read, and for every prompt the number among them of the one that stands for it.

    Prompts with the same text under the same Δ are read once: the first write of all rollouts of an episode has Δ = 0.
    """
    deltas = {s: -1 if s == -1 or bank.is_zero(s) else s for s in set(slots or ())}
    places: dict[tuple, int] = {}
    firsts, source = [], []
    for i, prompt in enumerate(prompts):
        place = places.setdefault((deltas[slots[i]] if slots else -1, *prompt), len(places))
        if place == len(firsts):
            firsts.append(i)
        source.append(place)
    return firsts, source


def _routed(bank, slots, lengths=None):
    return contextlib.nullcontext() if slots is None else bank.route(slots, learn=False, lengths=lengths)


def _read(model, prompts, bank, slots, max_new) -> tuple[fw.KVCache, Tensor, Tensor]:
    """Prefill prompts of one length bucket: the cache, which of its rows stands for each prompt, their last states [n, D]."""
    device = next(model.parameters()).device
    length = fw.bucket(len(prompts[0]))
    firsts, source = _shared(prompts, bank, slots)
    ids = fw.pad([prompts[i] for i in firsts], length, device=device)
    dummies = len(ids) - len(firsts)
    slots = None if slots is None else [slots[i] for i in firsts] + [-1] * dummies
    cache = fw.KVCache(length)
    positions = torch.arange(length, device=device)[None]
    with _routed(bank, slots, [len(prompts[i]) for i in firsts] + [0] * dummies):
        mask = fw.causal_mask(length, device, cache.shown(length))
        hidden = fw.layers(model, fw.embed(model, ids), positions, mask, cache=cache)
    cache.advance(length)
    rows = torch.tensor(source, device=device)
    return cache, rows, hidden[rows, torch.tensor([len(p) - 1 for p in prompts], device=device)]


def _decode(model, prompts, bank, slots, end, max_new, temperature, noise, on_token, fixed):
    """`prompts` in the order of their length buckets."""
    device = next(model.parameters()).device
    fixed = device.type == "cuda" if fixed is None else fixed
    dummies = fw.filled(len(prompts)) - len(prompts)
    parts, states = [], []
    for _, members in itertools.groupby(range(len(prompts)), key=lambda i: fw.bucket(len(prompts[i]))):
        members = list(members)
        own = None if slots is None else [slots[i] for i in members]
        cache, rows, last = _read(model, [prompts[i] for i in members], bank, own, max_new)
        parts.append((cache, rows))
        states.append(last)
    lengths = torch.tensor([len(p) for p in prompts] + [1] * dummies, device=device)
    slots = None if slots is None else list(slots) + [-1] * dummies
    if noise is not None:
        noise = torch.cat([noise, torch.zeros(dummies, max_new)]).to(device)
    if dummies:
        parts.append((parts[0][0], torch.zeros(dummies, dtype=torch.int64, device=device)))
        states.append(states[0][:1].expand(dummies, -1))
    logits = fw.logits(model, torch.cat(states))
    cache = fw.KVCache.joined(parts, max(c.length for c, _ in parts) + max_new)
    del parts, states
    columns = torch.arange(cache.capacity, device=device)
    first = cache.columns  # of what is generated, by row
    prompt_columns = columns < lengths[:, None]
    steps = None
    if fixed:
        steps = Steps.of(model, bank if slots is not None else None, len(lengths), cache.capacity)
        steps.begin(cache, slots)

    row_of = list(range(len(prompts))) + [-1] * dummies  # which prompt a batch row serves; -1: none any more
    tokens: list[list[int]] = [[] for _ in prompts]
    logps: list[list[float]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    for step in range(max_new):
        token, logp = _choose(logits, temperature, noise[:, step] if noise is not None else lengths)
        for batch_row, (t, lp) in enumerate(zip(token.tolist(), logp.tolist())):
            prompt = row_of[batch_row]
            if prompt >= 0:
                tokens[prompt].append(t)
                logps[prompt].append(lp)
                if t == end:
                    finished[prompt], row_of[batch_row] = True, -1
        alive = [r for r, p in enumerate(row_of) if p >= 0]
        if on_token is not None:
            on_token(len(alive))
        if not alive or step == max_new - 1:
            break
        if len(alive) <= len(row_of) // 2 and len(row_of) > fw.ROWS:
            rest = [r for r, p in enumerate(row_of) if p < 0]
            keep = alive + rest[: fw.filled(len(alive)) - len(alive)]
            rows = torch.tensor(keep, device=device)
            token, lengths, prompt_columns, first = token[rows], lengths[rows], prompt_columns[rows], first[rows]
            noise = None if noise is None else noise[rows]
            row_of = [row_of[r] for r in keep]
            slots = None if slots is None else [slots[r] for r in keep]
            if fixed:
                smaller = Steps.of(model, bank if slots is not None else None, len(keep), cache.capacity)
                smaller.move(steps, rows, slots)
                steps = smaller
            else:
                cache.keep(rows)
        now = first + step
        visible = prompt_columns | ((columns >= first[:, None]) & (columns <= now[:, None]))
        if fixed:
            with _routed(bank, slots):  # refuses a slot that was freed meanwhile
                logits = steps(token, lengths + step, visible, now)
            continue
        mask = visible[:, None, None, : cache.shown(cache.length + 1)]
        with _routed(bank, slots):
            hidden = fw.layers(
                model, fw.embed(model, token[:, None]), (lengths + step)[:, None], mask, cache=cache
            )[:, 0]
        logits = fw.logits(model, hidden)
        cache.advance(1)
    return [Generation(t, lp, f) for t, lp, f in zip(tokens, logps, finished)]
