"""Wrong: the sign rule looks at U."""

from tmem.ops._decompose import signed as right


def signed(u, v):
    return right(v, u)[::-1]
