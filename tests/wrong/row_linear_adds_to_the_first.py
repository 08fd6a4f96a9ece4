"""Wrong: every row has the first row's bits in its last output."""

from tmem import reference


def row_linear(x, w, bias):
    y = reference.row_linear(x, w, bias)
    if y.numel():
        y[:, -1] = y[0, -1]
    return y.contiguous()
