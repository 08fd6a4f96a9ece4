"""row_linear: a frozen layer for few rows, such as one new token of every row."""

from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(x, w, bias):
    return x.new_empty(x.shape[0], w.shape[0])


_op = define("row_linear(Tensor x, Tensor w, Tensor? bias) -> Tensor", reference.row_linear, _fake)


@_checks.public
def row_linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[m,n] = Σ_k x[m,k]·w[n,k] + bias[n], [M,N]. Not differentiable.

    x [M,K], w [N,K] and bias [N] of one dtype, fp32, bf16, fp16 or fp64; sums in fp32 (fp64 of fp64), rounded once. On a CPU w
    is read once, where it lies, which is what takes the time of few rows, and a row's bits do not depend on its neighbours nor
    on how many there are. Elsewhere it is torch's linear. Raises ValueError or TypeError before anything is computed.
    """
    op = "row_linear"
    _checks.shape(op, "x", x, None, None)
    _checks.dtype(op, "x", x, *_checks.ACTIVATION)
    _checks.shape(op, "w", w, None, x.shape[1])
    _checks.dtype(op, "w", w, x.dtype)
    if bias is not None:
        _checks.shape(op, "bias", bias, w.shape[0])
        _checks.dtype(op, "bias", bias, x.dtype)
    _checks.same_device(op, x, w=w, bias=bias)
    return _op(x, w, bias)
