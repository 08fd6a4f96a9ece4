"""Nucleus sampling: what is drawn is one of the likeliest tokens, which together have a probability of top_p.

Holtzman et al. 2020, arXiv:1904.09751.
"""

from __future__ import annotations

from torch import Tensor

LIKELY = 128  # tokens among which the nucleus is looked for first: sorting a whole vocabulary takes longer than a step


def nucleus(logp: Tensor, top_p: float) -> Tensor:
    """Log-probabilities fp32 [rows, V] -> those of the nucleus, which sum to a probability of 1; -inf outside.

    A token is in the nucleus where all that are likelier have together less than top_p. So equally likely tokens are in it or
    not together, and the likeliest always is. A row's nucleus depends on that row alone. top_p 1 changes nothing.
    """
    if top_p >= 1.0:
        return logp
    return logp.masked_fill(logp < _least(logp, top_p, LIKELY), float("-inf")).log_softmax(-1)


def _least(logp: Tensor, top_p: float, count: int) -> Tensor:
    """The log-probability [rows, 1] of the least likely token of each row's nucleus, sought among the `count` likeliest, and
    among more of them in rows that need more."""
    count = min(count, logp.shape[-1])
    best = logp.topk(count).values
    less = best.double().exp().cumsum(-1) < top_p
    least = best.gather(-1, less.sum(-1, keepdim=True).clamp_(max=count - 1))
    more = less[:, -1]
    if count < logp.shape[-1] and more.any():
        least[more] = _least(logp[more], top_p, 16 * count)
    return least
