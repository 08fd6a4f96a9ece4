"""Wrong: gradients are rotated on instead of back."""

from tmem import reference


def rotate(x, cos, sin, back):
    return reference.rotate(x, cos, -sin, back) if back else reference.rotate(x, cos, sin, back)
