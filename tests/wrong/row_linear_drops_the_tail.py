"""Wrong: what is left of the depth after whole vectors is not summed."""

from tmem import reference


def row_linear(x, w, bias):
    whole = x.shape[1] // 32 * 32
    return reference.row_linear(x[:, :whole], w[:, :whole], bias)
