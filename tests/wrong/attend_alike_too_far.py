"""Wrong: of what rows begin with alike, a column too many is read in the other row."""

import torch

from tmem import reference


def attend(q, k, v, mask, scale, alike=None):
    if alike is not None:
        there, end = alike[:, 0].long(), alike[:, 1]
        read = (torch.arange(k.shape[2]) <= end[:, None])[:, None, :, None]
        k, v = (torch.where(read, x[there], x) for x in (k, v))
    return reference.attend(q, k, v, mask, scale)
