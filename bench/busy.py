"""How much of a program's time its ops take: what is left is Python, and whatever else stands between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..agent.loop import Clock

OPS = ("aten::", "tmem::")  # of a CPU; what autograd and its functions in Python take beside them is no op's


class Busy(Clock):
    """A clock that keeps in `in_ops`, by the same names, for how many of the seconds some op was running; on a GPU: some
    kernel or copy. Parts do not nest.

    By torch.profiler, whose own time counts as taken and not as an op's: the share of ops is a lower bound. It keeps every op
    of a part in memory, some 2 KB each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_ops: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        cuda = torch.cuda.is_available()
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
            start = time.perf_counter()
            yield
            if cuda:
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
        # Read as they are: as objects of Python the events of a step would take gigabytes.
        spans = sorted(
            (e.start_ns(), e.start_ns() + e.duration_ns())
            for e in found.profiler.kineto_results.events()
            if (e.device_type() == DeviceType.CUDA if cuda else e.name().startswith(OPS))
        )
        self[name] = self.get(name, 0.0) + taken
        self.in_ops[name] = self.in_ops.get(name, 0.0) + union(spans) / 1e9

    @property
    def outside(self) -> float:
        """The share of all that was told in which no op was running."""
        return 1 - sum(self.in_ops.values()) / sum(self.values())


def union(spans: list[tuple[int, int]]) -> int:
    """What intervals, sorted by their beginnings, cover together."""
    covered, reached = 0, 0
    for start, end in spans:
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered
