"""Wrong: Adam with the decay added to the gradient instead of AdamW."""

from tmem import reference


def bank_step_(param, grad, m, v, step, hyper, active):
    grad += hyper[:, 4:5].to(grad.dtype) * param * active[:, None]
    hyper = hyper.clone()
    hyper[:, 4] = 0
    return reference.bank_step_(param, grad, m, v, step, hyper, active)
