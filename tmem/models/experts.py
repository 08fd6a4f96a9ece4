"""Experts of a mixture, computed so that a row's bits do not depend on which experts its neighbours are sent to.

Every expert multiplies the tokens that chose it. How many there are decides how a product is rounded, so their number is filled
up to one that rounds all rows alike. What a token's experts say is summed in the order in which it chose them. On a CPU
torch._grouped_mm is a loop over experts as well, and fills nothing up.

A step that is captured as a graph cannot ask how many tokens an expert has. There every choice of every token multiplies by
itself, with a copy of its expert's weights (`fixed_shapes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

from ..ops import _autocast
from ..ops._once import once_differentiable
from .families import APART, FAMILIES
from .forward import filled

CHUNK = 64  # rows of every product on a GPU, whose kernel follows from the shape
COPIED = 32  # experts whose weights are copied at once where shapes are fixed
PROJECTIONS = ("gate_up_proj", "down_proj")  # of all experts as one tensor [E, N, K], in the order in which a module has them


def prepare(model: nn.Module) -> None:
    """Have a mixture of experts compute them as here; other models stay as they are."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.experts:
        model.set_experts_implementation(APART)


_fixed: ContextVar[bool] = ContextVar("fixed", default=False)


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """Within the block no shape follows from what tokens choose, and nothing is read on the host. Without gradients."""
    token = _fixed.set(True)
    try:
        yield
    finally:
        _fixed.reset(token)


def fixed() -> bool:
    """Whether `fixed_shapes` is open here."""
    return _fixed.get()


class Rows(NamedTuple):
    """The rows of all experts, one after another: one for every token and each of the `top` experts that it chose, P in all.

    Those of an expert stand in the order of their tokens' owners, then of the tokens, and are filled up with rows of zeros.
    """

    place: Tensor  # int64 [M, top]: the row of a token's choice
    pair: Tensor  # int64 [P]: the choice of a row, token · top + j; 0 where it only fills up
    filling: Tensor  # int64: the rows that only fill up
    products: list[tuple[int, int, int]]  # (expert, first row, end): what is multiplied at once
    segments: list[tuple[int, int, int]]  # (expert, owner, rows), in their order; owner -1: nobody's


def sort(index: Tensor, owner: Tensor | None = None, owners: int = 0) -> Rows:
    """index int64 [M, top] of the experts that each token chose; owner int [M] in -1..owners-1, -1 and None: nobody."""
    span = owners + 1
    key = (index if owner is None else index * span + owner[:, None] + 1).flatten()
    order = key.argsort(stable=True)
    kinds, counts = key[order].unique_consecutive(return_counts=True)
    products, segments, moved, filling, end = [], [], [], [], 0
    for expert, group in groupby(zip(kinds.tolist(), counts.tolist()), lambda kind: kind[0] // span):
        first = end
        for kind, count in group:
            segments.append((expert, kind % span - 1, count))
            moved.append(len(filling))
            end += count
        size = CHUNK if index.is_cuda else filled(end - first)
        if lacks := (first - end) % size:
            segments.append((expert, -1, lacks))
            filling += range(end, end + lacks)
            end += lacks
        products += [(expert, at, at + size) for at in range(first, end, size)]
    at = torch.arange(len(key), device=key.device)
    at += torch.tensor(moved, dtype=torch.int64, device=key.device).repeat_interleave(counts, output_size=len(key))
    place = torch.empty_like(key).scatter_(0, order, at).view(index.shape)
    pair = key.new_zeros(end).scatter_(0, at, order)
    return Rows(place, pair, torch.tensor(filling, dtype=torch.int64, device=key.device), products, segments)


Adapt = Callable[[str, Tensor, Tensor], Tensor]


def compute(module: nn.Module, hidden: Tensor, weights: Tensor, rows: Rows, adapt: Adapt = lambda name, x, y: y) -> Tensor:
    """hidden [M, D], weights [M, top] of the experts that each token chose, `sort(index)` -> [M, D].

    module: transformers' experts, with `gate_up_proj` [E, 2F, D] and `down_proj` [E, D, F]. adapt: what becomes of a
    projection's output y [P, N], by its name and what it read, x [P, K].
    """
    said = _said(module, _Given.apply(hidden, rows), lambda x, weight: _products(x, weight, rows), adapt)
    return (_Chosen.apply(said, rows) * weights[..., None]).sum(1)


def compute_each(
    module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor, adapt: Adapt = lambda name, x, y: y
) -> Tensor:
    """As `compute`, of few tokens and at fixed shapes: P is M · top, the rows in the order of tokens and their choices."""
    expert, x = index.flatten(), hidden[:, None].expand(-1, index.shape[1], -1).flatten(0, 1)
    said = _said(module, x, lambda x, weight: _copied(x, weight, expert), adapt)
    return (said.unflatten(0, index.shape) * weights[..., None]).sum(1)


def _said(module: nn.Module, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor], adapt: Adapt) -> Tensor:
    gate, up = adapt("gate_up_proj", x, multiply(x, module.gate_up_proj)).chunk(2, -1)
    x = module.act_fn(gate) * up
    return adapt("down_proj", x, multiply(x, module.down_proj))


def _copied(x: Tensor, weight: Tensor, expert: Tensor) -> Tensor:
    """Row i times the weights of expert[i]: x [P, K], weight [E, N, K] -> [P, N]."""
    pieces = zip(x.split(COPIED), expert.split(COPIED))
    return torch.cat([torch.bmm(weight.index_select(0, chosen), rows[..., None])[..., 0] for rows, chosen in pieces])


def rows_apart(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """hidden [M, D], index int64 [M, top] of the experts that each token chose, their weights [M, top] -> [M, D]."""
    return compute_each(module, hidden, index, weights) if fixed() else compute(module, hidden, weights, sort(index))


class _Given(torch.autograd.Function):
    """What each row's expert reads: hidden [M, D] -> [P, D]."""

    @staticmethod
    def forward(ctx, hidden, rows):
        ctx.place = rows.place
        return hidden.index_select(0, rows.pair // rows.place.shape[1]).index_fill_(0, rows.filling, 0)

    @staticmethod
    @once_differentiable("experts")
    def backward(ctx, saved, dx):
        return dx.index_select(0, ctx.place.flatten()).unflatten(0, ctx.place.shape).sum(1), None


class _Chosen(torch.autograd.Function):
    """What each token's experts said: [P, D] -> [M, top, D]."""

    @staticmethod
    def forward(ctx, said, rows):
        ctx.rows = rows
        return said.index_select(0, rows.place.flatten()).unflatten(0, rows.place.shape)

    @staticmethod
    @once_differentiable("experts")
    def backward(ctx, saved, dy):
        return dy.flatten(0, 1).index_select(0, ctx.rows.pair).index_fill_(0, ctx.rows.filling, 0), None


def _products(x: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    x, weight, _ = _autocast.linear(x, weight, None)
    return _Products.apply(x, weight, rows.products)


class _Products(torch.autograd.Function):
    """Rows times the weights of their experts: x [P, K], weight [E, N, K] -> [P, N]."""

    @staticmethod
    def forward(ctx, x, weight, products):
        ctx.products = products
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        y = x.new_empty(x.shape[0], weight.shape[1])
        for expert, at, end in products:
            torch.mm(x[at:end], weight[expert].T, out=y[at:end])
        return y

    @staticmethod
    @once_differentiable("experts")
    def backward(ctx, saved, dy):
        (x, weight), dx, dw = saved, None, None
        if ctx.needs_input_grad[0]:
            dx = dy.new_empty(dy.shape[0], weight.shape[2])
            for expert, at, end in ctx.products:
                torch.mm(dy[at:end], weight[expert], out=dx[at:end])
        if ctx.needs_input_grad[1]:
            dw = torch.zeros_like(weight)
            for expert, at, end in ctx.products:
                dw[expert].addmm_(dy[at:end].T, x[at:end])
        return dx, dw, None


ExpertsInterface.register(APART, rows_apart)
