"""Batched decoding: one prompt per row, one slot per row, noise keyed by episode, finished rows leave.

A prompt may have a beginning that others share (the same text under many questions); it is read first, once for all of them.

Bits: prompts of one length bucket are read together, padded on the right to the bucket, and a beginning that was named is
read apart from the rest whether another prompt shares it or not; then all rows, whatever their bucket, take their steps
together, each writing into its own next column. Steps have a multiple of 4 rows, the mask is explicit, and a row
draws its noise from its own key. So what a row generates does not depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..adapters.routes import alone
from ..models import forward as fw
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
    end: int | Set[int],
    max_new: int,
    begins: Sequence[int] | None = None,
    temperature: float = 0.0,
    keys: Sequence[str] | None = None,
    on_token: Callable[[int], None] | None = None,
    fixed: bool | None = None,
) -> list[Generation]:
    """Generate up to `max_new` tokens after each prompt (token ids), with slot `slots[i]` (-1: base) for prompt i.

    `end`: the token id, or the ids, that finish a generation.
    `begins[i]`: how many tokens of prompt i are read first, once for all prompts that begin with the same under the same Δ;
    0, the default, reads it in one piece.
    `temperature` 0 is greedy; above it, row i samples with noise keyed by `keys[i]` and the position.
    `on_token(n)` is told how many tokens each step produced. `fixed`: steps at fixed addresses (see steps.py), by default
    on a GPU, where they are captured as CUDA graphs. Raises ValueError for an empty prompt, a beginning that leaves nothing
    of its prompt, missing keys, or a model that trains with gradient checkpointing.
    """
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise ValueError(
            "decode: the model trains with gradient checkpointing, which drops its cache; call model.eval() first."
        )
    if any(not p for p in prompts):
        raise ValueError("decode: a prompt is empty; every prompt needs at least one token.")
    ends = {end} if isinstance(end, int) else end
    begins = [0] * len(prompts) if begins is None else begins
    for begin, p in zip(begins, prompts, strict=True):
        if not 0 <= begin < len(p):
            raise ValueError(f"decode: a beginning of {begin} tokens in a prompt of {len(p)}; expected 0 to {len(p) - 1}.")
    if temperature > 0.0 and keys is None:
        raise ValueError("decode: sampling needs one noise key per prompt.")
    out: list[Generation | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: _widths(prompts[i], begins[i]))
    tenants = None if slots is None else bank.hold(slots)
    for at in range(0, len(order), MAX_ROWS):
        part = order[at : at + MAX_ROWS]
        noise = None
        if temperature > 0.0:
            noise = torch.from_numpy(np.stack([uniforms(keys[i], max_new) for i in part]))
        with contextlib.ExitStack() as lent:
            found = _decode(
                model,
                [prompts[i] for i in part],
                [begins[i] for i in part],
                bank,
                [slots[i] for i in part] if slots is not None else None,
                ends,
                max_new,
                temperature,
                noise,
                on_token,
                fixed,
                tenants,
                lent,
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


@contextlib.contextmanager
def _routed(bank, slots, lengths=None) -> Iterator[None]:
    """This route alone: whatever is open around decode serves another batch."""
    with alone(), contextlib.nullcontext() if slots is None else bank.route(slots, learn=False, lengths=lengths):
        yield


def _widths(prompt: Sequence[int], begin: int) -> tuple[int, int]:
    """The padded lengths of a prompt's beginning and of its rest."""
    return fw.bucket(begin) if begin else 0, fw.bucket(len(prompt) - begin)


def _read(model, prompts, begins, bank, slots) -> Iterator[tuple[fw.KVCache, Tensor, Tensor]]:
    """Prefill prompts in the order of their `_widths`; of all that have the same: the cache, which of its rows stands for each
    prompt, their last states [n, D]."""
    widths = [_widths(p, b) for p, b in zip(prompts, begins)]
    for begun, members in itertools.groupby(range(len(prompts)), key=lambda i: widths[i][0]):
        members = list(members)
        first = _piece(model, prompts, members, [0] * len(prompts), begins, bank, slots)[:2] if begun else None
        for _, same in itertools.groupby(members, key=lambda i: widths[i][1]):
            same = list(same)
            after = None if first is None else (first[0], first[1][[i - members[0] for i in same]])
            yield _piece(model, prompts, same, begins, [len(p) for p in prompts], bank, slots, after)


def _piece(model, prompts, members, starts, ends, bank, slots, after=None) -> tuple[fw.KVCache, Tensor, Tensor]:
    """Prefill tokens `starts[i]` to `ends[i]` of the prompts i in `members`, once for all that have the same tokens up to there
    under the same Δ. after: the cache that holds what comes before, and which of its rows does for each member."""
    device = next(model.parameters()).device
    read = [[starts[i], *prompts[i][: ends[i]]] for i in members]  # the same tokens, read in the same two pieces
    firsts, source = _shared(read, bank, slots and [slots[i] for i in members])
    pieces = [prompts[members[i]][starts[members[i]] : ends[members[i]]] for i in firsts]
    width = fw.bucket(len(pieces[0]))
    ids = fw.pad(pieces, width, device=device, dummies=False)  # products have 16 rows and more
    positions = torch.arange(width, device=device)[None]
    if after is None:
        cache = fw.KVCache(width)
        mask = fw.causal_mask(width, device, cache.shown(width))
    else:
        (cache, rows), old = after, after[0].length
        cache = cache.widened(rows[firsts], old + width)
        before = torch.tensor([starts[members[i]] for i in firsts], device=device)[:, None]
        mask = fw.continued_mask(before, old, width, cache.shown(old + width))
        positions = positions + before
    with _routed(bank, slots and [slots[members[i]] for i in firsts], [len(p) for p in pieces]):
        hidden = fw.layers(model, fw.embed(model, ids), positions, mask, cache=cache)
    cache.advance(width)
    rows = torch.tensor(source, device=device)
    return cache, rows, hidden[rows, torch.tensor([ends[i] - starts[i] - 1 for i in members], device=device)]


def _decode(model, prompts, begins, bank, slots, ends, max_new, temperature, noise, on_token, fixed, tenants, lent):
    """`prompts` in the order of their `_widths`; `tenants` knows whether a slot changes hands, `lent` gives steps back."""
    device = next(model.parameters()).device
    fixed = device.type == "cuda" if fixed is None else fixed
    dummies = fw.filled(len(prompts)) - len(prompts)
    parts, states = [], []
    for cache, rows, last in _read(model, prompts, begins, bank, slots):
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
    padded = [_widths(p, b)[0] for p, b in zip(prompts, begins)]
    begun, padded = (torch.tensor([*x, *[0] * dummies], device=device)[:, None] for x in (begins, padded))
    prompt_columns = (columns < begun) | ((columns >= padded) & (columns < padded + lengths[:, None] - begun))
    steps = None
    if fixed:
        steps = lent.enter_context(Steps.lend(model, bank if slots is not None else None, len(lengths), cache.capacity))
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
                if t in ends:
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
                owner = bank if slots is not None else None
                smaller = lent.enter_context(Steps.lend(model, owner, len(keep), cache.capacity))
                smaller.move(steps, rows, slots)
                steps = smaller
            else:
                cache.keep(rows)
        now = first + step
        visible = prompt_columns | ((columns >= first[:, None]) & (columns <= now[:, None]))
        if tenants is not None:
            tenants.alive()
        if fixed:
            logits = steps(token, lengths + step, visible, now)
            continue
        mask = visible[:, None, None, : cache.shown(cache.length + 1)]
        with _routed(bank, slots):
            hidden = fw.layers(model, fw.embed(model, token[:, None]), (lengths + step)[:, None], mask, cache=cache)[:, 0]
        logits = fw.logits(model, hidden)
        cache.advance(1)
    return [Generation(t, lp, f) for t, lp, f in zip(tokens, logps, finished)]
