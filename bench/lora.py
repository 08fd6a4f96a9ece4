"""Bench `lora`: forward and backward of one linear layer under many adapters, against the frozen layer alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.attach import Route, Segments, bits
from ..adapters.bank import AdapterBank
from ..adapters.routes import serving
from ..ops import lora_plan
from ..testing import segments
from .cases import LoraCase, lora_cases
from .measure import Provider

RATIO_TO = "base"
SCALE = 2.0

cases = lora_cases


@dataclass(frozen=True)
class Inputs:
    """x [M, K], w [N, K] and dy [M, N] in the case's dtype, a [R, K] and b [S, R, N] fp32; rows of episode i: rows[i]."""

    x: Tensor
    w: Tensor
    dy: Tensor
    a: Tensor
    b: Tensor
    rows: list[slice]

    @functools.cached_property
    def frozen(self) -> dict[str, Tensor]:
        """y and dx of the layer alone in fp64."""
        w = self.w.double()
        return {"y": self.x.double() @ w.T, "dx": self.dy.double() @ w}

    @functools.cached_property
    def oracle(self) -> dict[str, Tensor]:
        """y, dx and db in fp64."""
        x, dy, a = self.x.double(), self.dy.double(), self.a.double()
        y, dx, db = self.frozen["y"].clone(), self.frozen["dx"].clone(), []
        for rows, b in zip(self.rows, self.b.double()):
            z = SCALE * x[rows] @ a.T
            y[rows] += z @ b
            dx[rows] += SCALE * dy[rows] @ b.T @ a
            db.append(z.T @ dy[rows])
        return {"y": y, "dx": dx, "db": torch.stack(db)}


def inputs(case: LoraCase, device: str) -> Inputs:
    """Random inputs with an adapter's part as large as the base's."""
    generator = torch.Generator(device).manual_seed(0)
    m, slots = sum(case.lengths), len(case.lengths)

    def random(*shape, size=1.0, dtype=torch.float32):
        return (torch.randn(*shape, generator=generator, device=device) * size).to(dtype)

    ends = torch.tensor(case.lengths).cumsum(0).tolist()
    return Inputs(
        random(m, case.k, dtype=case.dtype),
        random(case.n, case.k, size=case.k**-0.5, dtype=case.dtype),
        random(m, case.n, dtype=case.dtype),
        random(case.rank, case.k, size=case.k**-0.5),
        random(slots, case.rank, case.n, size=case.rank**-0.5),
        [slice(end - length, end) for end, length in zip(ends, case.lengths)],
    )


def providers(case: LoraCase, device: str) -> dict[str, Provider]:
    data = inputs(case, device)
    return {
        "base": _base(data),
        "tmem": adapted(case, data, frozen_layer(data)),
        "peft loop": _peft_loop(data),
        "padded bmm": _padded_bmm(case, data),
        "grouped stacked": _grouped_mm(case, data, stacked=True),
        "grouped bank": _grouped_mm(case, data, stacked=False),
    }


def _low(data: Inputs) -> tuple[torch.dtype, float | None]:
    """What the batched baselines compute the adapters in, and how far they may be off: on a GPU the activations' dtype,
    in which their products run on matrix units, as published trainers have it; on a CPU fp32, its bank's."""
    return (data.x.dtype, 0.01) if data.x.is_cuda else (torch.float32, None)


def _base(data: Inputs) -> Provider:
    """The frozen layer alone: y and dX."""
    x = data.x.clone().requires_grad_()

    def call():
        y = F.linear(x, data.w)
        return y, *torch.autograd.grad(y, x, data.dy)

    return Provider(call, lambda: dict(zip(("y", "dx"), call())), data.frozen)


class _Ragged(Route):
    """A route whose segments are given, not one of equal length per batch row."""

    def __init__(self, bank: AdapterBank, lengths: tuple[int, ...], device: str):
        super().__init__(bank, list(range(len(lengths))), learn=True)
        off, slot = segments(lengths, self.slots, device)
        plan = lora_plan(off, slot, bank.rank, sum(lengths)) if device == "cuda" else None
        self.given = Segments(off, slot, bank.rank, bank.scale, plan, bits(range(len(lengths))))

    def segments(self, x: Tensor) -> Segments:
        return self.given


def frozen_layer(data: Inputs) -> nn.Linear:
    """The layer itself, with w as its weight."""
    linear = nn.Linear(*data.w.T.shape, bias=False, device="meta")
    linear.weight = nn.Parameter(data.w, requires_grad=False)
    return linear


class _Decoder(nn.Module):
    """A decoder of one layer with one projection, as far as a bank looks at it."""

    def __init__(self, projection: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"proj": projection})])})
        self.embeddings = nn.Embedding(1, 1, dtype=dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings


def adapted(case: LoraCase, data: Inputs, linear: nn.Module) -> Provider:
    """What an attached bank runs over `linear`, dB accumulated into the bank's gradient rows."""
    model = _Decoder(linear, data.x.dtype)
    bank = AdapterBank(model, len(case.lengths), case.rank, targets=("proj",), init="random")
    bank.take([data.a])
    slots, site = [bank.alloc(alpha=SCALE * case.rank) for _ in case.lengths], bank.sites[0]
    site.bt.copy_(data.b)
    for slot in slots:
        bank.written(slot)
    route = _Ragged(bank, case.lengths, data.x.device.type)
    x = data.x.clone().requires_grad_()

    def call():
        with serving(route):
            y = linear(x)
        return y, *torch.autograd.grad(y, x, data.dy)

    def results():
        clear()
        return dict(zip(("y", "dx", "db"), (*call(), site.bt_grad.clone())))

    def clear():
        bank.zero_grad(slots)

    held = data
    if bank.copy is not None:  # what the layer reads
        a, b = (factor.to(bank.copy.dtype).float() for factor in (data.a, data.b))
        held = replace(data, a=a, b=b)
    return Provider(call, results, held.oracle, prepare=clear)


def _peft_loop(data: Inputs) -> Provider:
    """One adapter after another on its own rows, the base layer included: PEFT's lora.Linear with A frozen."""
    xs = [data.x[rows].clone().requires_grad_() for rows in data.rows]
    dys = [data.dy[rows].clone() for rows in data.rows]
    bs = [b.T.contiguous().requires_grad_() for b in data.b]  # lora_B.weight [N, R]

    def call():
        out = []
        for x, dy, b in zip(xs, dys, bs):
            y = F.linear(x, data.w)
            y = (y + F.linear(F.linear(x.to(b.dtype), data.a), b) * SCALE).to(x.dtype)
            out.append((y, *torch.autograd.grad(y, (x, b), dy)))
        return out

    def results():
        ys, dxs, dbs = zip(*call())
        return {"y": torch.cat(ys), "dx": torch.cat(dxs), "db": torch.stack([db.T for db in dbs])}

    return Provider(call, results, data.oracle)


def _grouped_mm(case: LoraCase, data: Inputs, *, stacked: bool) -> Provider:
    """torch's grouped GEMM over the segments; A is shared, so one GEMM. `stacked`: adapters are tensors of their own and
    are stacked in every forward, as in published trainers; else they are one bank already, the strongest form.

    Its rows of memory must be multiples of 16 bytes: adapters of another rank are kept padded.
    """
    dtype, tolerance = _low(data)
    each = 16 // dtype.itemsize
    ranks = -(-case.rank // each) * each
    a = F.pad(data.a, (0, 0, 0, ranks - case.rank)).to(dtype)
    padded = F.pad(data.b, (0, 0, 0, ranks - case.rank)).to(dtype)
    bank = [b.clone().requires_grad_() for b in padded] if stacked else padded.clone().requires_grad_()
    x = data.x.clone().requires_grad_()
    offs = torch.tensor([rows.stop for rows in data.rows], dtype=torch.int32, device=data.x.device)

    def call():
        b = torch.stack(bank) if stacked else bank
        z = F.linear(x.to(a.dtype), a) * SCALE
        y = (F.linear(x, data.w) + torch._grouped_mm(z, b, offs=offs)).to(x.dtype)
        return y, *torch.autograd.grad(y, (x, *bank) if stacked else (x, bank), data.dy)

    def results():
        y, dx, *db = call()
        return {"y": y, "dx": dx, "db": (torch.stack(db) if stacked else db[0])[:, : case.rank]}

    return Provider(call, results, data.oracle, tolerance=tolerance)


def _padded_bmm(case: LoraCase, data: Inputs) -> Provider:
    """Episodes padded to the longest, the base layer on the padded batch, A and B by bmm. Padding itself is not timed."""
    slots, longest = len(case.lengths), max(case.lengths)

    def padded(flat: Tensor) -> Tensor:
        out = flat.new_zeros(slots, longest, flat.shape[1])
        for i, rows in enumerate(data.rows):
            out[i, : case.lengths[i]] = flat[rows]
        return out

    def flat(batch: Tensor) -> Tensor:
        return torch.cat([batch[i, :length] for i, length in enumerate(case.lengths)])

    dtype, tolerance = _low(data)
    x, dy = padded(data.x).requires_grad_(), padded(data.dy)
    a, b = data.a.to(dtype).T.expand(slots, -1, -1), data.b.to(dtype).clone().requires_grad_()

    def call():
        adapter = torch.bmm(torch.bmm(x.to(b.dtype), a), b) * SCALE
        y = (F.linear(x, data.w) + adapter).to(x.dtype)
        return y, *torch.autograd.grad(y, (x, b), dy)

    def results():
        y, dx, db = call()
        return {"y": flat(y), "dx": flat(dx), "db": db}

    return Provider(call, results, data.oracle, tolerance=tolerance)
