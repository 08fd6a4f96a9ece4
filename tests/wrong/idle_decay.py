"""Wrong: weight decay reaches the rows that take no step."""

from tmem import reference


def bank_step_(param, grad, m, v, step, hyper, active):
    idle = ~active
    param[idle] *= (1 - hyper[idle, 0] * hyper[idle, 4])[:, None].to(param.dtype)
    return reference.bank_step_(param, grad, m, v, step, hyper, active)
