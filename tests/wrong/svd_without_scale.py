"""Wrong: matrices are worked on in their own magnitude, whose squares over- and underflow."""

import torch

from tmem import reference


def scan(w):
    return torch.frexp(reference.svd_scan(w))[0]
