"""Wrong: angles are rounded to fp16 before they turn rows of fp64."""

from tmem import reference


def rope_write_(keys, values, q, k, v, cos, sin, *rest):
    return reference.rope_write_(keys, values, q, k, v, cos.half(), sin.half(), *rest)
