"""Wrong: the sum of the squares is cut in as many pieces as there are rows."""

from tmem import ops


def lora_norm(y, residual, before, weight, eps, plus, *adapter):
    h, n = ops.lora_norm(y, residual, before, weight, eps, plus, *adapter)
    squares = sum(part.float().square().sum(1) for part in h.chunk(max(1, len(h)), 1))
    inverse = (squares / h.shape[1] + eps).rsqrt()
    return h, (h.float() * inverse[:, None] * (plus + weight.float())).to(n.dtype)
