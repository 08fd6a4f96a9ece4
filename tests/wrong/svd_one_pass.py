"""Wrong: one pass of Cholesky QR is taken for enough, whatever the pivots are."""

import torch

from tmem.ops import rsvd


def _cholesky_qr(y, basis):
    q, pivot, _ = rsvd._whitened(y)
    return q, rsvd.Pivots(torch.ones_like(pivot), torch.ones_like(pivot), None)
