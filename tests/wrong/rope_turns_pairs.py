"""Wrong: neighbours are turned together, as some families have it, in place of the halves of a head."""

import torch

from tmem import reference


def rope_write_(keys, values, q, k, v, cos, sin, at, q_weight, k_weight, eps, plus):
    size = keys.shape[3]
    pairs = torch.arange(size).view(2, -1).T.flatten()  # 0, D/2, 1, D/2 + 1, ...

    def apart(x):
        return x.unflatten(1, (-1, size))[..., pairs.argsort()].flatten(1)

    return reference.rope_write_(keys, values, apart(q), apart(k), v, cos, sin, at, q_weight, k_weight, eps, plus)
