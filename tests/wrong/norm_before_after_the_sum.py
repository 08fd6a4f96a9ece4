"""Wrong: the norm that stands before the sum is taken of the sum."""

from tmem import reference


def lora_norm(y, residual, before, weight, eps, plus, x, a, bt, row_slot, rank, scale):
    h, n = reference.lora_norm(y, residual, None, weight, eps, plus, x, a, bt, row_slot, rank, scale)
    if before is not None:
        h = reference.normed(h, before, eps, plus).to(y.dtype)
        n = reference.normed(h, weight, eps, plus).to(y.dtype)
    return h, n
