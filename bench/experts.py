"""Bench `experts`: forward and backward of a mixture of experts under many adapters, one for every expert and slot, against the
frozen mixture.

Which rows an expert and a slot have is told to the other ways beforehand; tmem finds it in every call.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.bank import AdapterBank
from ..models.experts import rows_apart
from .measure import Provider

RATIO_TO = "base"
SCALE = 2.0


@dataclass(frozen=True)
class ExpertsCase:
    """Tokens of `slots` episodes, `tokens` each, of which each chooses `top` of `experts` experts.

    Weights in `dtype`, frozen; A shared and frozen, one B of `rank` for each expert, slot and projection, in fp32.
    """

    hidden: int
    inner: int
    experts: int
    top: int
    slots: int
    tokens: int
    rank: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.experts} experts x {self.slots} slots x {self.tokens} tokens, {self.hidden}→{self.inner} r={self.rank}"

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """(K, N)"""
        return (self.hidden, 2 * self.inner), (self.inner, self.hidden)

    @property
    def flops(self) -> int:
        """As LoraCase, for every row of an expert."""
        rows, r = self.slots * self.tokens * self.top, self.rank
        return sum(4 * rows * k * n + 2 * rows * r * (2 * k + 3 * n) for k, n in self.projections)

    @property
    def bytes(self) -> int:
        """As LoraCase, with x and y once a row; every expert's weights twice, B read twice, dB read and written."""
        rows, r, each = self.slots * self.tokens * self.top, self.rank, self.experts * self.slots
        base = sum(2 * (rows * (k + n) + self.experts * k * n) for k, n in self.projections) * self.dtype.itemsize
        return base + 4 * sum(2 * r * k + 4 * each * r * n + 2 * rows * r for k, n in self.projections)


def cases(quick: bool, device: str = "cpu") -> list[ExpertsCase]:
    dtypes = (torch.float32, torch.bfloat16)
    if quick:
        return [ExpertsCase(64, 32, 4, 2, 3, 5, 4, dtype) for dtype in dtypes]
    return [ExpertsCase(576, 384, 16, 2, 16, tokens, 16, dtype) for dtype in dtypes for tokens in (16, 64)]


class Experts(nn.Module):
    """A mixture's experts as transformers has them."""

    act_fn = staticmethod(F.silu)

    def __init__(self, gate_up: Tensor, down: Tensor):
        super().__init__()
        self.gate_up_proj, self.down_proj = (nn.Parameter(w, requires_grad=False) for w in (gate_up, down))

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return rows_apart(self, hidden, index, weights)


class _Decoder(nn.Module):
    """A decoder of one layer, as far as a bank looks at it."""

    def __init__(self, experts: Experts):
        super().__init__()
        mixture = nn.ModuleDict({"experts": experts})
        self.model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": mixture})])})
        self.embeddings = nn.Embedding(1, 1, dtype=experts.down_proj.dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings


@dataclass(frozen=True)
class Inputs:
    """x and dy [M, D], index [M, top] and weights; W [E, N, K], a [R, K], b [S, E, R, N] of both projections."""

    case: ExpertsCase
    x: Tensor
    dy: Tensor
    index: Tensor
    weights: Tensor
    w: tuple[Tensor, Tensor]
    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]

    @functools.cached_property
    def order(self) -> Tensor:
        """Choices, token · top + j, by expert and then slot."""
        owner = torch.arange(len(self.x)) // self.case.tokens
        return (self.index * self.case.slots + owner[:, None]).flatten().argsort(stable=True)

    @functools.cached_property
    def counts(self) -> Tensor:
        """Rows of every expert and slot, [E, S]."""
        owner = torch.arange(len(self.x)) // self.case.tokens
        key = (self.index * self.case.slots + owner[:, None]).flatten()
        return key.bincount(minlength=self.case.experts * self.case.slots).view(self.case.experts, self.case.slots)

    @functools.cached_property
    def oracle(self) -> dict[str, Tensor]:
        """y, dx and both db in fp64."""
        return _loop(self, torch.float64).results()


def inputs(case: ExpertsCase) -> Inputs:
    """Random inputs with an adapter's part about as large as the base's."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, size=1.0, dtype=torch.float32):
        return (torch.randn(*shape, generator=generator) * size).to(dtype)

    m, e, r = case.slots * case.tokens, case.experts, case.rank
    index = torch.rand(m, e, generator=generator).topk(case.top).indices
    weights = torch.rand(m, case.top, generator=generator).softmax(-1).to(case.dtype)
    return Inputs(
        case, random(m, case.hidden, dtype=case.dtype), random(m, case.hidden, dtype=case.dtype), index, weights,
        tuple(random(e, n, k, size=k**-0.5, dtype=case.dtype) for k, n in case.projections),
        tuple(random(r, k, size=k**-0.5) for k, _ in case.projections),
        tuple(random(case.slots, e, r, n, size=0.5 * r**-0.5) for _, n in case.projections),
    )  # fmt: skip


def providers(case: ExpertsCase, device: str) -> dict[str, Provider]:
    data = inputs(case)
    return {
        "base": _base(data),
        "tmem": _tmem(data),
        "loop": _loop(data, case.dtype),
        "padded bmm": _padded_bmm(data),
        "grouped stacked": _grouped_mm(data),
    }


def _tolerance(case: ExpertsCase) -> float | None:
    """Two projections and what lies between them round one after another."""
    return 0.02 if case.dtype == torch.bfloat16 else None


def _base(data: Inputs) -> Provider:
    """The frozen mixture alone: y and dX."""
    x = data.x.clone().requires_grad_()

    def results(w: tuple[Tensor, Tensor], x: Tensor) -> dict[str, Tensor]:
        y = Experts(*w)(x, data.index, data.weights.to(x.dtype))
        return dict(zip(("y", "dx"), (y, *torch.autograd.grad(y, x, data.dy.to(x.dtype)))))

    oracle = results(tuple(w.double() for w in data.w), data.x.double().requires_grad_())
    once = functools.partial(results, data.w, x)
    return Provider(once, once, oracle, tolerance=_tolerance(data.case))


def _tmem(data: Inputs) -> Provider:
    """What an attached bank runs, dB accumulated into its gradient rows."""
    case = data.case
    experts = Experts(*data.w)
    model = _Decoder(experts)
    bank = AdapterBank(model, case.slots, case.rank, targets=("gate_up_proj", "down_proj"), init="random")
    sites = {site.parameter: site for site in bank.sites}
    ordered = [sites["gate_up_proj"], sites["down_proj"]]
    of = dict(zip(ordered, zip(data.a, data.b)))
    bank.take([of[site][0] for site in bank.sites])
    slots = [bank.alloc(alpha=SCALE * case.rank) for _ in range(case.slots)]
    for site in ordered:
        site.bt.copy_(of[site][1].flatten(0, 1))
    for slot in slots:
        bank.written(slot)
    x = data.x.clone().requires_grad_()

    def call():
        with bank.route(slots):
            y = experts(x, data.index, data.weights)
        return y, *torch.autograd.grad(y, x, data.dy)

    def clear():
        bank.zero_grad(slots)

    def results():
        clear()
        y, dx = call()
        dbs = [site.bt_grad.unflatten(0, (case.slots, case.experts)).clone() for site in ordered]
        return dict(zip(("y", "dx", "db up", "db down"), (y, dx, *dbs)))

    return Provider(call, results, data.oracle, prepare=clear, tolerance=_tolerance(case))


def _adapter(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """scale·(x Aᵀ) B of one adapter, in the dtype of its factors."""
    return F.linear(x.to(b.dtype), a) @ b * SCALE


def _loop(data: Inputs, dtype: torch.dtype) -> Provider:
    """One expert and slot after another, on their own rows: two frozen projections and their adapters, plain torch."""
    case, low = data.case, torch.float64 if dtype == torch.float64 else torch.float32
    x, dy, weights = data.x.to(dtype, copy=True).requires_grad_(), data.dy.to(dtype), data.weights.to(dtype)
    w, a = [w.to(dtype) for w in data.w], [a.to(low) for a in data.a]
    b = [[[part.clone().requires_grad_() for part in row] for row in b.to(low)] for b in data.b]
    pairs = [(e, s) for e in range(case.experts) for s in range(case.slots)]
    parts = [(e, s, rows) for (e, s), rows in zip(pairs, data.order.split(data.counts.flatten().tolist())) if len(rows)]
    leaves = [b[i][s][e] for i in range(2) for s in range(case.slots) for e in range(case.experts)]

    def call():
        y = torch.zeros_like(x)
        for e, s, rows in parts:
            token = rows // case.top
            h = x[token]
            gate, up = (F.linear(h, w[0][e]) + _adapter(h, a[0], b[0][s][e])).to(dtype).chunk(2, -1)
            h = F.silu(gate) * up
            said = (F.linear(h, w[1][e]) + _adapter(h, a[1], b[1][s][e])).to(dtype)
            y = y.index_add(0, token, said * weights.flatten()[rows, None])
        return y, *torch.autograd.grad(y, (x, *leaves), dy, allow_unused=True)

    def results():
        y, dx, *found = call()
        found = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found)]
        half, shape = len(found) // 2, (case.slots, case.experts)
        up, down = (torch.stack(part).unflatten(0, shape) for part in (found[:half], found[half:]))
        return {"y": y, "dx": dx, "db up": up, "db down": down}

    return Provider(call, results, {} if dtype == torch.float64 else data.oracle, tolerance=_tolerance(case))


def _padded_bmm(data: Inputs) -> Provider:
    """One expert after another, the adapters of its slots by bmm over rows that are padded to the longest."""
    case = data.case
    x, b = data.x.clone().requires_grad_(), [b.clone().requires_grad_() for b in data.b]
    parts = []
    for e, rows in enumerate(data.order.split(data.counts.sum(1).tolist())):
        counts = data.counts[e]
        column = torch.cat([torch.arange(n) for n in counts.tolist()])
        parts.append((e, rows, torch.arange(case.slots).repeat_interleave(counts), column, int(counts.max())))

    def adapter(x: Tensor, i: int, part) -> Tensor:
        e, _, slot, column, longest = part
        z = F.linear(x.float(), data.a[i])
        padded = z.new_zeros(case.slots, longest, case.rank).index_put((slot, column), z)
        return torch.bmm(padded, b[i][:, e])[slot, column] * SCALE

    def call():
        y = torch.zeros_like(x)
        for part in parts:
            e, rows = part[:2]
            token = rows // case.top
            h = x[token]
            gate, up = (F.linear(h, data.w[0][e]) + adapter(h, 0, part)).to(x.dtype).chunk(2, -1)
            h = F.silu(gate) * up
            said = (F.linear(h, data.w[1][e]) + adapter(h, 1, part)).to(x.dtype)
            y = y.index_add(0, token, said * data.weights.flatten()[rows, None])
        return y, *torch.autograd.grad(y, (x, *b), data.dy)

    def results():
        return dict(zip(("y", "dx", "db up", "db down"), call()))

    return Provider(call, results, data.oracle, tolerance=_tolerance(case))


def _grouped_mm(data: Inputs) -> Provider:
    """torch's grouped GEMM, over experts for the weights and over (expert, slot) for the adapters, which are tensors of their
    own and stacked in every forward, as in published trainers."""
    case = data.case
    x = data.x.clone().requires_grad_()
    leaves = [[b[s, e].clone().requires_grad_() for e in range(case.experts) for s in range(case.slots)] for b in data.b]
    experts, each = (n.cumsum(0).to(torch.int32) for n in (data.counts.sum(1), data.counts.flatten()))
    token, back = data.order // case.top, data.order.argsort()

    def projection(x: Tensor, i: int) -> Tensor:
        z = F.linear(x.float(), data.a[i]) * SCALE
        y = torch._grouped_mm(x, data.w[i].mT, offs=experts)
        return (y + torch._grouped_mm(z, torch.stack(leaves[i]), offs=each)).to(x.dtype)

    def call():
        gate, up = projection(x[token], 0).chunk(2, -1)
        said = projection(F.silu(gate) * up, 1)[back].unflatten(0, (len(x), case.top))
        y = (said * data.weights[..., None]).sum(1)
        return y, *torch.autograd.grad(y, (x, *leaves[0], *leaves[1]), data.dy)

    def results():
        y, dx, *found = call()
        half, shape = len(found) // 2, (case.experts, case.slots)
        up, down = (torch.stack(part).unflatten(0, shape).transpose(0, 1) for part in (found[:half], found[half:]))
        return {"y": y, "dx": dx, "db up": up, "db down": down}

    return Provider(call, results, data.oracle, tolerance=_tolerance(case))
