"""Bench `step`: one AdamW step of many adapters, one call over the bank's rows against torch's fused AdamW."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import SQUARED, bank_step_
from .cases import StepCase, step_cases
from .measure import Provider

LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
CHECKED = 3  # steps compared with the oracle: enough for both moments and both corrections to matter
RATIO_TO = "flat"

cases = step_cases


def gradients(case: StepCase, device: str, step: int) -> Tensor:
    """[slots, width] fp32, another for each step."""
    generator = torch.Generator(device).manual_seed(step)
    return torch.randn(case.slots, case.width, generator=generator, device=device)


def oracle(case: StepCase, device: str) -> dict[str, Tensor]:
    """Parameters after CHECKED steps from zero, in fp64: AdamW with decoupled decay (Loshchilov and Hutter 2019)."""
    p = torch.zeros(case.slots, case.width, dtype=torch.float64, device=device)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t in range(1, CHECKED + 1):
        g = gradients(case, device, t).double()
        m.lerp_(g, 1 - BETA1)
        v.lerp_(g * g, 1 - BETA2)
        p.mul_(1 - LR * DECAY).sub_(LR * (m / (1 - BETA1**t)) / ((v / (1 - BETA2**t)).sqrt() + EPS))
    return {"param": p}


def providers(case: StepCase, device: str) -> dict[str, Provider]:
    expected = oracle(case, device)
    return {
        "tmem": bank_provider(case, device, expected, summed=True),
        "tmem, sums to make": bank_provider(case, device, expected),
        "group per slot": _grouped(case, device, expected),
        RATIO_TO: _flat(case, device, expected),
        "flat, zeroing": _flat(case, device, expected, zero=True),
    }


def _provider(case: StepCase, device: str, expected: dict, grad: Tensor, param, step, given=lambda: None) -> Provider:
    """`step()` takes the gradient [slots, width] that lies in `grad`; `param()` gives [slots, width]; `given()`: after a
    gradient has come."""
    last = gradients(case, device, CHECKED)

    def results():
        for t in range(1, CHECKED + 1):
            grad.copy_(gradients(case, device, t))
            given()
            step()
        return {"param": param()}

    def prepare():
        grad.copy_(last)
        given()

    return Provider(step, results, expected, prepare=prepare)


def bank_provider(case: StepCase, device: str, expected: dict, active: Tensor | None = None, summed: bool = False) -> Provider:
    """One call as a bank makes it, which also takes each row's norm. The next backward writes over the gradients.

    summed: the squares of the gradients are known, as backward leaves them. They are made where no time is taken: in gram
    they come from what it has just computed (`tmem bench lora` times that).
    """
    if active is None:
        active = torch.ones(case.slots, dtype=torch.bool, device=device)
    slots, places = len(active), active.nonzero().flatten()
    p = torch.zeros(slots, case.width, device=device)
    g, m, v = (torch.zeros_like(p) for _ in range(3))
    count = torch.zeros(slots, dtype=torch.int32, device=device)
    hyper = torch.tensor([LR, BETA1, BETA2, EPS, DECAY, 0.0], dtype=torch.float64, device=device).repeat(slots, 1)
    grad = g[:: slots // case.slots]  # the rows that `active` names
    assert places.tolist() == list(range(0, slots, slots // case.slots))

    squares = torch.zeros(slots, -(-case.width // (SQUARED * case.rank)), dtype=torch.float64, device=device)

    def known() -> None:
        squares[:, 0] = g.double().square().sum(1)

    def step():
        bank_step_(p, g, m, v, count, hyper, active, clear=False, squares=squares if summed else None)

    return _provider(case, device, expected, grad, lambda: p[places], step, known if summed else lambda: None)


def _grouped(case: StepCase, device: str, expected: dict) -> Provider:
    """PEFT's tensors, one per site and adapter, and a parameter group per adapter so that it has its own settings."""
    grad = torch.zeros(case.slots, case.width, device=device)
    sizes = [case.rank * n for n in case.widths]
    groups = [[torch.zeros(n, case.rank, device=device) for n in case.widths] for _ in range(case.slots)]
    for tensors, row in zip(groups, grad):
        for p, g in zip(tensors, row.split(sizes)):
            p.grad = g.view_as(p)
    optimizer = torch.optim.AdamW([{"params": g} for g in groups], **_SETTINGS)
    return _provider(
        case, device, expected, grad, lambda: torch.stack([torch.cat([p.flatten() for p in g]) for g in groups]),
        optimizer.step,
    )  # fmt: skip


def _flat(case: StepCase, device: str, expected: dict, zero: bool = False) -> Provider:
    """All adapters as one tensor in one group: the least overhead, and the same settings for all."""
    p = torch.zeros(case.slots, case.width, device=device)
    p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW([p], **_SETTINGS)

    def step():
        optimizer.step()
        if zero:
            p.grad.zero_()

    return _provider(case, device, expected, p.grad, lambda: p, step)


_SETTINGS = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY, "fused": True}
