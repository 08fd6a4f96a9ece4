"""Choosing the next token of every row: the likeliest, or one drawn by noise that depends on the row's key alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .nucleus import nucleus

BLOCK = 128  # tokens whose probability is one step of a coarse cumulative sum: a fine one over all of them is slow
BELOW_ONE = 1 - 2.0**-53
SLIGHT = 0.1  # of the likeliest first token's probability; a generation that begins with a less probable one is not followed

_forced: ContextVar[Mapping[str, Sequence[int]] | None] = ContextVar("forced", default=None)


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


COLD = 1e-4  # a temperature below which nothing but the likeliest token is drawn, long before logits / temperature leave fp32


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a generation are chosen.

    temperature  below COLD: the likeliest ones. Above, they are drawn by noise that depends on `key` and the position
    top_p        of a drawn token's nucleus, see nucleus.py; 1: all tokens
    key          of the noise
    rank         how many tokens are likelier than the first one; of greedy decoding only
    """

    temperature: float = 0.0
    top_p: float = 1.0
    key: str = ""
    rank: int = 0


class Sampler:
    """Chooses the tokens of one generation, `most` at most."""

    def __init__(self, how: Sampling, most: int):
        self.how = how
        self.noise: np.ndarray | None = None
        self.text: list[int] | None = None  # what is taken whatever is drawn
        if how.temperature > 0.0:
            self.noise = uniforms(how.key, most)
            if (texts := _forced.get()) is not None:
                own = list(texts[how.key][:most])
                self.text = own + [0] * (most - len(own))


def choose(logits: Tensor, samplers: Sequence[Sampler], counts: Sequence[int]) -> tuple[list[int], list[float]]:
    """The next token of every row and its log-probability under the sampling policy.

    logits  fp32 [rows, V]
    counts  how many tokens each row has so far
    """
    tokens, logprobs = [0] * len(samplers), [0.0] * len(samplers)
    ways: dict[tuple[float, float], list[int]] = {}
    for row, sampler in enumerate(samplers):
        ways.setdefault((sampler.how.temperature, sampler.how.top_p), []).append(row)
    for way, rows in ways.items():
        mine = logits if len(ways) == 1 else logits[rows]
        token, logp = _chosen(mine, way, [samplers[r] for r in rows], [counts[r] for r in rows])
        for row, one, value in zip(rows, token.tolist(), logp.tolist()):
            tokens[row], logprobs[row] = one, value
    return tokens, logprobs


def _chosen(
    logits: Tensor, way: tuple[float, float], samplers: Sequence[Sampler], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Of rows that are sampled in one way: token int64 [rows], log-probability [rows]."""
    temperature, top_p = way
    if temperature < COLD:
        token = ranked(logits, [0 if count else s.how.rank for s, count in zip(samplers, counts)])
        return token, logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
    logp = nucleus((logits if temperature == 1.0 else logits / temperature).log_softmax(-1), top_p)
    noise = [s.noise[count] for s, count in zip(samplers, counts)]
    token = _drawn(logp, torch.tensor(noise, dtype=torch.float64, device=logits.device))
    if samplers[0].text is not None:
        token = torch.tensor([s.text[count] for s, count in zip(samplers, counts)], device=logits.device)
    return token, logp.gather(-1, token[:, None])[:, 0]


def ranked(logits: Tensor, ranks: Sequence[int]) -> Tensor:
    """The token of each row than which so many are likelier, int64 [rows]."""
    if not any(ranks):
        return logits.argmax(-1)
    rank = torch.tensor(ranks, device=logits.device)[:, None]
    return logits.topk(1 + max(ranks)).indices.gather(-1, rank)[:, 0]


def slight(logits: Tensor, samplers: Sequence[Sampler]) -> list[bool]:
    """Whether a row's first token is too improbable to be followed."""
    ranks = [s.how.rank for s in samplers]
    if not any(ranks):
        return [False] * len(ranks)
    behind = logits.gather(-1, ranked(logits, ranks)[:, None])[:, 0] - logits.amax(-1)
    return (behind.exp() < SLIGHT).tolist()


def _drawn(logp: Tensor, noise: Tensor) -> Tensor:
    """Inverse-CDF sampling with `noise` [rows] in [0, 1), fp64: first among blocks of tokens, then inside one."""
    blocks = F.pad(logp.exp(), (0, -logp.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    cdf = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    aim = noise[:, None] * cdf[:, -1:]
    block = torch.searchsorted(cdf, aim, right=True).clamp_(max=blocks.shape[1] - 1)
    inside = blocks[torch.arange(len(blocks), device=logp.device), block[:, 0]].double().cumsum(-1)
    # A sum of another order is another by rounding: what is aimed at stays below it.
    aim = torch.minimum(aim - F.pad(cdf, (1, 0)).gather(-1, block), inside[:, -1:] * BELOW_ONE)
    return (block * BLOCK + torch.searchsorted(inside, aim, right=True))[:, 0]
