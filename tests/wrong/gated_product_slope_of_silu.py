"""Wrong: the gate of GELU has the slope of silu."""

from tmem import reference


def gated_product_backward(grad, gate, up, gelu):
    _, d_up = reference.gated_product_backward(grad, gate, up, gelu)
    return reference.gated_product_backward(grad, gate, up, False)[0], d_up
