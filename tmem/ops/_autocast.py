"""What torch.autocast makes of an op's arguments, as it does of those of torch.nn.Linear."""

import torch
from torch import Tensor

from tmem.ops import _checks

_CAST = _checks.FACTOR  # other dtypes stay as they are, and are taken or refused as elsewhere


def dtype_of(op: str, x: Tensor) -> torch.dtype | None:
    """What torch.autocast, where it is on for x's device, casts to. Raises TypeError for what the ops do not take."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    if dtype not in _CAST:
        got = str(dtype).removeprefix("torch.")
        raise TypeError(f"{op}: torch.autocast must be to bfloat16 or float16, got {got}; leave it around this op")
    return dtype


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None or x.dtype not in _CAST else x.to(dtype)


def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, w and bias in the dtype that torch.autocast, where it is on, gives those of torch.nn.Linear; fp64 stays fp64."""
    dtype = dtype_of("lora_linear", x)
    if dtype is None or x.dtype == torch.float64:
        return x, w, bias
    return cast(x, dtype), cast(w, dtype), None if bias is None else cast(bias, dtype)


def like(op: str, x: Tensor, y: Tensor) -> Tensor:
    """x in the dtype of y, where torch.autocast is on and gave y its dtype."""
    if x.dtype == y.dtype or dtype_of(op, x) is None:
        return x
    return cast(x, y.dtype if y.dtype in _CAST else None)


def rows(op: str, at: int):
    """What becomes of the arguments of an op whose argument `at` holds activations, and whose result is fp32: those are cast.
    Factors, sums and what is written in place keep their dtypes."""

    def change(*arguments):
        x = arguments[at]
        return *arguments[:at], cast(x, dtype_of(op, x)), *arguments[at + 1 :]

    return change
