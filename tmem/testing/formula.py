"""The values that all implementations are held against, and gradients by autograd."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .cases import Case


def dense(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """All ops by one dense formula, a factor gathered for every row. Differentiable in every tensor of floats.

    Returns in dtype: "z" [M,R] of lora_shrink; "up" [M,N], what lora_expand_ adds of it; "y" [M,N] of lora_linear; "gram"
    [S,R,K] of z and x.
    """
    slot = torch.repeat_interleave(case.seg_slot.long(), case.seg_off.long().diff())
    named = slot.clamp(min=0)
    used = (torch.arange(case.bt.shape[1], device=case.x.device) < case.rank[named, None]) & (slot >= 0)[:, None]

    def rows_of(f):
        f = f.to(dtype)[named if f.shape[0] > 1 else torch.zeros_like(named)]
        return torch.where(used[:, :, None], f, 0.0)

    x, a, bt = case.x.to(dtype), rows_of(case.a), rows_of(case.bt)
    z = torch.einsum("mk,mjk->mj", x, a) * torch.where(slot >= 0, case.scale.to(dtype)[named], 0.0)[:, None]
    up = torch.einsum("mj,mjn->mn", z, bt)
    base = torch.nn.functional.linear(x, case.w.to(dtype), None if case.bias is None else case.bias.to(dtype))
    owner = torch.nn.functional.one_hot(named, case.rank.shape[0]).to(dtype)
    gram = torch.einsum("ms,mj,mk->sjk", owner, torch.where(used, z, 0.0), x)
    return {"z": z, "up": up, "y": base + up, "gram": gram}


def by_autograd(
    forward: Callable[[Case], Tensor], names: Sequence[str] = ("x", "a", "bt")
) -> Callable[[Case, Tensor], dict[str, Tensor]]:
    """gradients(case, dy) of a forward(case) -> y that torch can differentiate: {"dx": ..., "da": ..., "dbt": ...}, each in
    the shape and dtype of its tensor, zero where y does not depend on it."""

    def gradients(case: Case, dy: Tensor) -> dict[str, Tensor]:
        leaves = {name: getattr(case, name).detach().clone().requires_grad_() for name in names}
        y = forward(replace(case, **leaves))
        found = torch.autograd.grad(y, list(leaves.values()), dy, allow_unused=True, materialize_grads=True)
        return {f"d{name}": grad for name, grad in zip(names, found)}

    return gradients
