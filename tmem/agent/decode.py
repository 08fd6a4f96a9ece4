"""Batched decoding: one prompt per row, one slot per row, noise keyed by episode, finished rows leave.

Bits: rows of one length bucket share a batch filled to a multiple of 4 rows, prompts are padded on the right to the bucket, the
mask is explicit, and a row draws its noise from its own key. So what a row generates does not depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import hashlib
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
    groups: dict[int, list[int]] = {}
    for i, p in enumerate(prompts):
        groups.setdefault(fw.bucket(len(p)), []).append(i)
    out: list[Generation | None] = [None] * len(prompts)
    for length, members in sorted(groups.items()):
        for at in range(0, len(members), MAX_ROWS):
            part = members[at : at + MAX_ROWS]
            noise = None
            if temperature > 0.0:
                noise = torch.from_numpy(np.stack([uniforms(keys[i], max_new) for i in part]))
            found = _decode_bucket(
                model,
                [prompts[i] for i in part],
                length,
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


def _decode_bucket(model, prompts, length, bank, slots, end, max_new, temperature, noise, on_token, fixed):
    device = next(model.parameters()).device
    fixed = device.type == "cuda" if fixed is None else fixed
    ids = fw.pad(prompts, length, device=device)
    dummies = len(ids) - len(prompts)
    lengths = torch.tensor([len(p) for p in prompts] + [1] * dummies, device=device)
    slots = None if slots is None else list(slots) + [-1] * dummies
    if noise is not None:
        noise = torch.cat([noise, torch.zeros(dummies, max_new)]).to(device)

    def routed(lengths=None):
        return contextlib.nullcontext() if slots is None else bank.route(slots, learn=False, lengths=lengths)

    cache = fw.KVCache(length + max_new)
    positions = torch.arange(length, device=device)[None]
    with routed([*map(len, prompts)] + [0] * dummies):
        mask = fw.causal_mask(length, device, cache.shown(length))
        hidden = fw.layers(model, fw.embed(model, ids), positions, mask, cache=cache)
    cache.advance(length)
    hidden = hidden[torch.arange(len(ids), device=device), lengths - 1]
    logits = fw.logits(model, hidden)
    columns = torch.arange(cache.capacity, device=device)
    prompt_columns = columns < lengths[:, None]
    steps = None
    if fixed:
        steps = Steps.of(model, bank if slots is not None else None, len(ids), cache.capacity)
        steps.begin(cache, torch.arange(len(ids), device=device), slots)

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
            token, lengths, prompt_columns = token[rows], lengths[rows], prompt_columns[rows]
            noise = None if noise is None else noise[rows]
            row_of = [row_of[r] for r in keep]
            slots = None if slots is None else [slots[r] for r in keep]
            if fixed:
                smaller = Steps.of(model, bank if slots is not None else None, len(keep), cache.capacity)
                smaller.move(steps, rows, slots)
                steps = smaller
            else:
                cache.keep(rows)
        visible = prompt_columns | ((columns >= length) & (columns <= length + step))
        if fixed:
            with routed():  # refuses a slot that was freed meanwhile
                logits = steps(token, lengths + step, visible[:, : length + step + 1], length + step)
            continue
        mask = visible[:, None, None, : cache.shown(length + step + 1)]
        with routed():
            hidden = fw.layers(
                model, fw.embed(model, token[:, None]), (lengths + step)[:, None], mask, cache=cache
            )[:, 0]
        logits = fw.logits(model, hidden)
        cache.advance(1)
    return [Generation(t, lp, f) for t, lp, f in zip(tokens, logps, finished)]
