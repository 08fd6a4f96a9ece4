"""Wrong: gradients are clipped by the norm over all active rows."""

import torch

from tmem import reference


def bank_step_(param, grad, m, v, step, hyper, active):
    norms = grad.double().norm(dim=1).float() * active
    total = grad[active].double().norm()
    clip = hyper[:, 5].double()
    grad *= torch.where(active & (clip > 0), (clip / (total + 1e-6)).clamp(max=1), 1.0)[:, None].to(grad.dtype)
    hyper = hyper.clone()
    hyper[:, 5] = 0
    reference.bank_step_(param, grad, m, v, step, hyper, active)
    return norms
