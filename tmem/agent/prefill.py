"""Reading prompts: keys, values and last states of many prompts in few passes.

Prompts of one length bucket are read together, as many as a pass takes, padded on the right to the bucket. A beginning that
was named is read apart from the rest, whether another prompt shares it or not, so that a row's bits do not depend on its
neighbours. Prompts with the same tokens under the same Δ are read once: the first write of all rollouts of an episode has
Δ = 0.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters.attach import Route
from ..adapters.bank import AdapterBank
from ..adapters.routes import alone
from ..models import forward as fw
from ..models.rope import positions as standing

AT_ONCE = 32768  # columns of keys and values that a pass makes, or one prompt's; they last until the steps have taken them

_kept: ContextVar[dict[tuple, Read] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """In this block and thread a beginning is read once, in whatever call it comes again: its keys and values are kept.

    No Δ and no weight may change in it.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def widths(prompt: Sequence[int], begin: int) -> tuple[int, int]:
    """The padded lengths of a prompt's beginning (0: none) and of its rest, in tokens."""
    return fw.bucket(begin) if begin else 0, fw.bucket(len(prompt) - begin)


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their `widths`.

    ids     tokens of each
    begins  how many of its tokens are read first
    slots   the slot of the bank whose Δ each is read under, -1: the base model; None: there is no bank
    """

    ids: list[list[int]]
    begins: list[int]
    slots: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def widths(self) -> list[tuple[int, int]]:
        return [widths(p, b) for p, b in zip(self.ids, self.begins)]

    def slots_of(self, members: Sequence[int]) -> list[int] | None:
        return self.slots and [self.slots[i] for i in members]


class Read(NamedTuple):
    """What one pass over some prompts gives: a cache, the row of it that stands for each prompt (int64 [n]), and the state of
    the last layer at each prompt's last token [n, D]."""

    cache: fw.KVCache
    rows: Tensor
    last: Tensor


@contextlib.contextmanager
def routed(bank: AdapterBank | None, slots: list[int] | None, lengths: list[int] | None = None) -> Iterator[Route | None]:
    """This route alone: whatever is open around decode serves another batch."""
    with alone(), contextlib.nullcontext() if slots is None else bank.route(slots, learn=False, lengths=lengths) as route:
        yield route


def under(bank: AdapterBank | None, slot: int) -> int:
    """The slot whose Δ changes what the model computes, -1: none does."""
    return -1 if slot == -1 or bank is None or bank.is_zero(slot) else slot


def at_once(first: int, then: int) -> int:
    """How many prompts of these `widths` one pass reads."""
    return max(1, AT_ONCE // (first + then))


def read(model, bank: AdapterBank | None, prompts: Prompts) -> Iterator[tuple[list[int], Read]]:
    """Prefill the prompts; pass after pass the places of those that it read, and what was read of them.

    A pass has prompts of the same `widths`, and is made when it is asked for.
    """
    padded = prompts.widths
    for begun, members in itertools.groupby(range(len(prompts)), key=lambda i: padded[i][0]):
        members = list(members)
        first = _piece(model, bank, prompts, members, [(0, prompts.begins[i]) for i in members]) if begun else None
        for then, same in itertools.groupby(members, key=lambda i: padded[i][1]):
            for part in _parts(bank, prompts, list(same), at_once(begun, then)):
                after = None if first is None else (first.cache, first.rows[[i - members[0] for i in part]])
                yield part, _piece(model, bank, prompts, part, [(prompts.begins[i], len(prompts.ids[i])) for i in part], after)


def _parts(bank: AdapterBank | None, prompts: Prompts, members: list[int], most: int) -> list[list[int]]:
    """`members` in parts of at most `most` prompts that are not read for others."""
    _, firsts, source = _shared(bank, prompts, members, [(prompts.begins[i], len(prompts.ids[i])) for i in members])
    out: list[list[int]] = [[] for _ in range(0, len(firsts), most)]
    for member, place in zip(members, source):
        out[place // most].append(member)
    return out


def _piece(
    model,
    bank: AdapterBank | None,
    prompts: Prompts,
    members: list[int],
    spans: list[tuple[int, int]],
    after: tuple[fw.KVCache, Tensor] | None = None,
) -> Read:
    """Prefill tokens `spans[k]` (from, to) of prompt `members[k]`, once for all that have the same tokens up to there under the
    same Δ. after: the cache that holds what comes before, and which of its rows does for each member."""
    keys, firsts, source = _shared(bank, prompts, members, spans)
    pieces = [prompts.ids[members[k]][slice(*spans[k])] for k in firsts]
    kept = None if after is not None else _kept.get()
    if kept is not None and all(key in kept for key in keys):
        parts = [kept[key] for key in keys]
        cache = fw.KVCache.together([(part.cache, part.rows) for part in parts], fw.bucket(len(pieces[0])))
        last = torch.cat([part.last for part in parts])
    else:
        before = None if after is None else (after[0], after[1][firsts], [spans[k][0] for k in firsts])
        with routed(bank, prompts.slots_of([members[k] for k in firsts]), [len(p) for p in pieces]):
            cache, last = _computed(model, pieces, before)
    rows = torch.arange(len(keys), device=last.device)
    if kept is not None:
        kept.update((key, Read(cache, rows[k : k + 1], last[k : k + 1])) for k, key in enumerate(keys))
    return Read(cache, rows[source], last[source])


def _computed(model, pieces: list[list[int]], after: tuple[fw.KVCache, Tensor, list[int]] | None) -> tuple[fw.KVCache, Tensor]:
    """The cache of pieces of prompts, and the last layer's state [n, D] at the last token of each.

    after: a cache, the row of it that each goes on from, and of how many tokens.
    """
    device, width = next(model.parameters()).device, fw.bucket(len(pieces[0]))
    ids = fw.pad(pieces, width, device=device, dummies=False)  # products have 16 rows and more
    lengths = [len(piece) for piece in pieces]
    positions = standing(model.config, lengths, width, device)
    if after is None:
        cache, mask = fw.KVCache(width), None
    else:
        (cache, rows, begun), old = after, after[0].length
        cache = cache.widened(rows, old + width)
        before = torch.tensor(begun, device=device)[:, None]
        mask = fw.Branches(torch.zeros(1, width, dtype=torch.int64, device=device), before, old)
        positions = positions + before
    hidden = fw.layers(model, fw.embed(model, ids), positions, mask, cache=cache)
    cache.advance(width)
    return cache, hidden[torch.arange(len(pieces), device=device), torch.tensor(lengths, device=device) - 1]


def _shared(
    bank, prompts: Prompts, members: list[int], spans: list[tuple[int, int]]
) -> tuple[list[tuple], list[int], list[int]]:
    """What is to be read, each by a key, Δ, first token and all tokens; which of `members` (by their places in it) it is of;
    and for every member the number among these of the one that stands for it: one with the same tokens up to the end of its
    span, the span begun at the same token, under the same Δ."""
    slots = prompts.slots_of(members)
    deltas = {s: under(bank, s) for s in set(slots or ())}
    places: dict[tuple, int] = {}
    firsts, source = [], []
    for k, (i, (start, stop)) in enumerate(zip(members, spans)):
        key = (deltas[slots[k]] if slots else -1, start, *prompts.ids[i][:stop])
        place = places.setdefault(key, len(places))
        if place == len(firsts):
            firsts.append(k)
        source.append(place)
    return list(places), firsts, source
