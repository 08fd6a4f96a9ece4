"""Wrong: the gradient leaves out that x moves the mean of its squares."""

from tmem import reference


def rms_norm_backward(dy, x, weight, eps, plus, need_dw):
    dx, dw = reference.rms_norm_backward(dy, x, weight, eps, plus, need_dw)
    r = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (dy * (plus + weight) * r).to(x.dtype), dw
