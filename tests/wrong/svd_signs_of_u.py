"""Wrong: the sign rule looks at U."""

from tmem.ops.rsvd import _signed as right


def _signed(u, v):
    return right(v, u)[::-1]
