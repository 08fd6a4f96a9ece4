"""bank_step_: one optimizer step for the active rows of a bank, each row with its own settings."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define

HYPER = reference.HYPER


def _fake(param, grad, m, v, step, hyper, active, copy=None, clear=True, squares=None):
    return param.new_empty(param.shape[0], dtype=torch.float32)


_op = define(
    "bank_step_(Tensor(a!) param, Tensor(b!) grad, Tensor(c!)? m, Tensor(d!)? v, Tensor(e!) step, Tensor hyper,"
    " Tensor active, Tensor(f!)? copy=None, bool clear=True, Tensor? squares=None) -> Tensor",
    reference.bank_step_,
    _fake,
)


@_checks.public
def bank_step_(
    param: Tensor, grad: Tensor, m: Tensor | None, v: Tensor | None, step: Tensor, hyper: Tensor, active: Tensor,
    copy: Tensor | None = None, clear: bool = True, squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One optimizer step of the active rows, in place: AdamW with decoupled decay if m and v are given, SGD if not.

    param, grad, m, v [S,P], all fp32 or all fp64, any strides. step int32 [S]: steps taken so far, counted up here for
    the rows that are stepped. hyper fp32 or fp64 [S,6], columns HYPER = (lr, beta1, beta2, eps, weight_decay, clip);
    clip > 0 limits the row's gradient norm as torch.nn.utils.clip_grad_norm_ does, 0 = off. active bool [S].
    copy bf16 or fp16 [S,P], if given, receives the new parameters of the rows that moved.
    Returns the norm of each active row's gradient before clipping, fp32 [S], 0 for the others. clear: the gradients of
    active rows are zeroed; else they stay, for the next ones to be `fresh` (see lora_backward_). squares fp64 [S,T], if
    given, add up to the square of that norm in every active row, as lora_gram_ leaves them; grad is then read once. A row whose
    norm is not finite is otherwise left alone: its norm is the report. Inactive rows keep every bit. Formula: Loshchilov &
    Hutter 2019 (arXiv 1711.05101), as in tmem.reference.bank_step_. Raises ValueError or TypeError before anything is written.
    """
    op = "bank_step_"
    _checks.dtype(op, "param", param, torch.float32, torch.float64)
    _checks.shape(op, "param", param, None, None)
    _checks.moments(op, m, v)
    rows, width = param.shape
    for name, x in (("grad", grad), ("m", m), ("v", v)):
        if x is not None:
            _checks.dtype(op, name, x, param.dtype)
            _checks.shape(op, name, x, rows, width)
    _checks.same_device(op, param, grad=grad, m=m, v=v, step=step, hyper=hyper, active=active, copy=copy, squares=squares)
    _checks.settings(op, step, hyper, rows)
    _checks.dtype(op, "active", active, torch.bool)
    _checks.shape(op, "active", active, rows)
    if copy is not None:
        _checks.dtype(op, "copy", copy, *_checks.HALF)
        _checks.shape(op, "copy", copy, rows, width)
    if squares is not None:
        _checks.dtype(op, "squares", squares, torch.float64)
        _checks.shape(op, "squares", squares, rows, None)
    outputs = {"param": param, "grad": grad, "m": m, "v": v, "step": step, "copy": copy}
    _checks.written(op, outputs, {"hyper": hyper, "active": active, "squares": squares})
    norms = _op(param, grad, m, v, step, hyper, active, copy, clear, squares)
    _checks.changed(*outputs.values())
    return norms
