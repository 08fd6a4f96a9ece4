"""Wrong: the weight's gradient is that of the first 64 rows."""

from tmem import reference


def rms_norm_backward(dy, x, weight, eps, plus, need_dw):
    dx, _ = reference.rms_norm_backward(dy, x, weight, eps, plus, False)
    rows = [reference.rows_of(t)[:64] for t in (dy, x)]
    return dx, reference.rms_norm_backward(*rows, weight, eps, plus, need_dw)[1]
