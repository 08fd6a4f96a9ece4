"""Wrong: one pass of Cholesky QR is taken for enough, whatever the pivots are."""

import torch

from tmem.ops import _decompose


def _cholesky_qr(y, basis):
    q, pivot, _ = yield from _decompose._whitened(y)
    return q, _decompose.Pivots(torch.ones_like(pivot), torch.ones_like(pivot), None)
