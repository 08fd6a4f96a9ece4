"""Work on several shapes, step by step together, so that one launch serves the small problems of all."""

from collections.abc import Generator, Sequence
from typing import Any

import torch

from tmem.ops import _svd

_ORDER = (_svd.factor, _svd.eigh, _svd.small)

Steps = Generator[tuple, tuple, Any]
"""Work on the matrices of one shape, up to a call of an op on problems that no longer depend on that shape: it yields (op,
problems [b,l,l], other argument) and is sent what the op returns."""


def in_lockstep(works: Sequence[Steps]) -> list:
    """What each work returns. One call of an op serves all works that wait for it: what is small fills a GPU only together.

    Works that wait for an earlier op go first, until all wait for the same.
    """
    out: list = [None] * len(works)
    waiting: dict[int, tuple] = {}

    def go_on(i: int, answer: tuple | None) -> None:
        try:
            waiting[i] = works[i].send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            out[i] = end.value

    for i in range(len(works)):
        go_on(i, None)
    while waiting:
        first = min(waiting.values(), key=lambda call: _ORDER.index(call[0]))
        served = [i for i, call in waiting.items() if _kind(call) == _kind(first)]
        op, problems, *rest = first
        many = [waiting.pop(i)[1] for i in served]
        answers = op(torch.cat(many) if len(many) > 1 else problems, *rest)
        for i, *answer in zip(served, *(answer.split([len(one) for one in many]) for answer in answers)):
            go_on(i, tuple(answer))
    return out


def _kind(call: tuple) -> tuple:
    op, problems, *rest = call
    return op, problems.dtype, problems.device, rest
