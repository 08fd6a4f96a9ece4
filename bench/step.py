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
    expected, memory = oracle(case, device), _memory(case.slots, case.width, device)
    return {
        "tmem": bank_provider(case, device, expected, summed=True, memory=memory),
        "tmem, sums to make": bank_provider(case, device, expected, memory=memory),
        "group per slot": _grouped(case, device, expected),
        RATIO_TO: _flat(case, device, expected, memory),
        "flat, zeroing": _flat(case, device, expected, memory, zero=True),
    }


def _memory(slots: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameters, gradients and both moments, [slots, width] fp32 each. Those compared step the same ones: where pages lie
    is worth a tenth of the time on a CPU."""
    return tuple(torch.zeros(slots, width, device=device) for _ in range(4))


def _provider(
    case: StepCase, device: str, expected: dict, grad: Tensor, param, step, given=lambda: None, begin=lambda: None
) -> Provider:
    """`step()` takes the gradient [slots, width] that lies in `grad`; `param()` gives [slots, width]; `given()`: after a
    gradient has come; `begin()`: sets parameters, moments and counts to zero."""
    last = gradients(case, device, CHECKED)

    def results():
        begin()
        for t in range(1, CHECKED + 1):
            grad.copy_(gradients(case, device, t))
            given()
            step()
        return {"param": param()}

    def prepare():
        grad.copy_(last)
        given()

    return Provider(step, results, expected, prepare=prepare)


def bank_provider(
    case: StepCase, device: str, expected: dict, active: Tensor | None = None, summed: bool = False, memory=None
) -> Provider:
    """One call as a bank makes it, which also takes each row's norm. The next backward writes over the gradients.

    summed: the squares of the gradients are known, as backward leaves them. They are made where no time is taken: in gram
    they come from what it has just computed (`tmem bench lora` times that).
    """
    if active is None:
        active = torch.ones(case.slots, dtype=torch.bool, device=device)
    slots, places = len(active), active.nonzero().flatten()
    p, g, m, v = memory or _memory(slots, case.width, device)
    count = torch.zeros(slots, dtype=torch.int32, device=device)
    hyper = torch.tensor([LR, BETA1, BETA2, EPS, DECAY, 0.0], dtype=torch.float64, device=device).repeat(slots, 1)
    grad = g[:: slots // case.slots]  # the rows that `active` names
    assert places.tolist() == list(range(0, slots, slots // case.slots))

    squares = torch.zeros(slots, -(-case.width // (SQUARED * case.rank)), dtype=torch.float64, device=device)

    def known() -> None:
        squares[:, 0] = g.double().square().sum(1)

    def step():
        bank_step_(p, g, m, v, count, hyper, active, clear=False, squares=squares if summed else None)

    def begin() -> None:
        for x in (p, m, v, count):
            x.zero_()

    return _provider(case, device, expected, grad, lambda: p[places].clone(), step, known if summed else lambda: None, begin)


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


def _flat(case: StepCase, device: str, expected: dict, memory: tuple[Tensor, ...], zero: bool = False) -> Provider:
    """All adapters as one tensor in one group: the least overhead, and the same settings for all."""
    p, g, m, v = (x.view(-1) for x in memory)
    count = torch.zeros((), device=device)
    p.grad = g
    optimizer = torch.optim.AdamW([p], **_SETTINGS)
    optimizer.state[p] = {"step": count, "exp_avg": m, "exp_avg_sq": v}

    def begin() -> None:
        for x in (p, m, v, count):
            x.zero_()

    def step():
        optimizer.step()
        if zero:
            g.zero_()

    return _provider(case, device, expected, memory[1], lambda: memory[0].clone(), step, begin=begin)


_SETTINGS = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY, "fused": True}
