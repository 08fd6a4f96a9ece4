"""The share of a program's time in which an op runs."""

import time

import torch

from tmem.bench.busy import Busy, union


def test_union():
    assert union([]) == 0 and union([(3, 7)]) == 4
    assert union([(0, 4), (1, 2), (2, 6), (8, 9), (8, 9)]) == 7  # within another, over its end, apart, twice


def test_ops_are_told_from_python():
    """Within ops: their own time, once however they nest. Outside: what sleeps, and what autograd runs in Python."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            time.sleep(0.02)
            return 2 * grad

    x, clock = torch.randn(64, 64, requires_grad=True), Busy()
    with clock("asleep"):
        time.sleep(0.001)
    with clock("slow"):
        Slow.apply(x @ x).sum().backward()
    assert clock.in_ops["asleep"] == 0 and 0 < clock.in_ops["slow"] < clock["slow"] - 0.02
    assert 0 < clock.outside < 1
    before = dict(clock.in_ops)
    with clock("slow"):
        x @ x
    assert clock.in_ops["slow"] > before["slow"] and clock.in_ops["asleep"] == 0
