"""Wrong: a text sees the texts before it."""

import torch

from tmem import reference


def attend_branches(q, k, v, runs, scale, window):
    one = torch.stack([runs[:, 0], runs[:, -1]], 1)
    return reference.attend_branches(q, k, v, one, scale, window)
