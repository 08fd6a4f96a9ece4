"""Wrong: the mean of squares is that of all rows."""


def rms_norm(x, weight, eps, plus):
    wide = x.double()
    return (wide * (wide.square().mean() + eps).rsqrt() * (plus + weight.double())).to(x.dtype)
