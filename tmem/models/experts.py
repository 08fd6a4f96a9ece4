"""Experts of a mixture, computed so that a row's bits do not depend on which experts its neighbours are sent to.

Every expert multiplies the tokens that chose it. How many there are decides how a product is rounded, so their number is filled
up to one that rounds all rows alike. What a token's experts say is summed in the order in which it chose them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

from .families import APART, FAMILIES
from .forward import filled

CHUNK = 64  # rows of every product on a GPU, whose kernel follows from the shape


def prepare(model: nn.Module) -> None:
    """Have a mixture of experts compute them as here; other models stay as they are."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.experts:
        model.set_experts_implementation(APART)


def rows_apart(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """hidden [M, D], index int64 [M, top] of the experts that each token chose, their weights [M, top] -> [M, D].

    module: transformers' experts, with `gate_up_proj` [E, 2F, D] and `down_proj` [E, D, F].
    """
    chosen = index.flatten()
    order = chosen.argsort(stable=True)
    given = hidden[:, None].expand(-1, index.shape[1], -1).flatten(0, 1)[order]
    counts = torch.bincount(chosen, minlength=module.num_experts).tolist()
    said = torch.cat([_expert(module, e, rows) for e, rows in enumerate(given.split(counts)) if len(rows)])
    return (said[order.argsort()].view(*index.shape, -1) * weights[..., None]).sum(1)


def _expert(module: nn.Module, number: int, rows: Tensor) -> Tensor:
    """What one expert makes of its tokens [n, D]."""
    size = CHUNK if rows.is_cuda else filled(len(rows))
    out = []
    for part in F.pad(rows, (0, 0, 0, -len(rows) % size)).split(size):
        gate, up = F.linear(part, module.gate_up_proj[number]).chunk(2, -1)
        out.append(F.linear(module.act_fn(gate) * up, module.down_proj[number]))
    return torch.cat(out)[: len(rows)]


ExpertsInterface.register(APART, rows_apart)
