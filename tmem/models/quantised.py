"""A base model in few bits: the linear layers inside its decoder layers. Embeddings, norms and head stay as they are.

| bits | weights | library |
|---|---|---|
| int8 | 8 bits and a scale a row | torchao |
| fp8  | 8 bits (e4m3) and a scale a row | torchao |
| nf4  | 4 bits and a scale for 64, in 8 bits itself (QLoRA, arXiv 2305.14314) | bitsandbytes |

What is adapted stays in fp32 beside it. Activations are not rounded: a scale that is chosen over a batch would let a row depend
on its neighbours, as the outlier columns of LLM.int8 do (arXiv 2208.07339).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

LIBRARY = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
BITS = tuple(LIBRARY)
_PIECE = 1 << 15  # weights that are put into nf4 at once on a CPU, whole blocks
_BLOCK, _SCALES, _TABLES = 64, 256, 4 * (16 + 256 + 1)  # nf4: weights a scale, scales a scale of theirs, bytes beside


def require(bits: str) -> None:
    """Raises ValueError for a format that is not known, or whose library is missing."""
    if bits not in BITS:
        raise ValueError(f"bits: expected {', '.join(BITS)}, got {bits!r}.")
    if find_spec(LIBRARY[bits]) is None:
        raise ValueError(f"bits {bits} needs {LIBRARY[bits]}, which is not installed; run `pip install 'tmem[bits]'`.")


def weight_bytes(bits: str | None, outputs: int, inputs: int, dtype_bytes: int) -> int:
    """Of a linear layer's weight [outputs, inputs] in `bits`, with its scales; None: whole, `dtype_bytes` a number."""
    if bits is None:
        return dtype_bytes * outputs * inputs
    if bits == "nf4":
        scales = -(-outputs * inputs // _BLOCK)
        return -(-outputs * inputs // 2) + scales + 4 * -(-scales // _SCALES) + _TABLES
    return outputs * inputs + (5 if bits == "int8" else 4) * outputs  # a scale in fp32 a row, of int8 a zero point too


def quantise_(
    model: nn.Module, bits: str, device: torch.device | str, dtype: torch.dtype | None = None
) -> nn.Module:  # fmt: skip
    """Replace the linear layers of a model's decoder layers, one after another, by frozen ones in `bits` on `device`.

    model: with its weights, wherever they lie. What is not replaced stays where it is.
    dtype: in which the model shall compute, and to which every weight is rounded first; None: its own.
    Raises as `require` does.
    """
    from torch import nn

    require(bits)
    dtype = dtype or model.dtype
    for layer in model.base_model.layers:
        for name in [name for name, module in layer.named_modules() if type(module) is nn.Linear]:
            parent, _, last = name.rpartition(".")
            owner = layer.get_submodule(parent)
            setattr(owner, last, in_bits(getattr(owner, last), bits, device, dtype))
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def settle_(model: nn.Module) -> nn.Module:
    """Keep bitsandbytes from packing 4-bit weights anew for inference on a CPU, which rounds to bf16 and gives no gradient."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


def in_bits(linear: nn.Linear, bits: str, device: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
    """A layer in `bits` on `device`, frozen, in place of `linear`, which may be used up. dtype: as of `quantise_`."""
    import torch

    make = _nf4 if bits == "nf4" else _scaled_rows
    with _quiet(), torch.no_grad():
        return make(linear, bits, device, dtype or linear.weight.dtype).requires_grad_(False)


def _scaled_rows(linear: nn.Linear, bits: str, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    linear = linear.to(dtype)
    quantize_(linear.to(device), Int8WeightOnlyConfig() if bits == "int8" else Float8WeightOnlyConfig())
    return linear


def _nf4(linear: nn.Linear, bits: str, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """As bitsandbytes makes one from a whole weight, to the bit, in pieces of whole blocks: on a CPU it takes some 20 bytes a
    weight while it works."""
    import torch
    from bitsandbytes.functional import QuantState, quantize_4bit, quantize_blockwise
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight, bias = linear.weight.detach(), linear.bias
    with torch.device("meta"):
        made = Linear4bit(linear.in_features, linear.out_features, bias=bias is not None, compute_dtype=dtype, quant_type=bits)
    size = weight.numel()
    step = _PIECE if torch.device(device).type == "cpu" else size
    codes = torch.empty(-(-size // 2), 1, dtype=torch.uint8, device=device)
    scales = torch.empty(-(-size // _BLOCK), dtype=torch.float32, device=device)
    for start in range(0, size, step):
        piece = weight.view(-1)[start : start + step].to(device, dtype)
        code, state = quantize_4bit(piece, blocksize=_BLOCK, quant_type=bits)
        codes[start // 2 :][: len(code)] = code
        scales[start // _BLOCK :][: len(state.absmax)] = state.absmax
    offset = scales.mean()
    in_8_bits, of_scales = quantize_blockwise(scales - offset, blocksize=_SCALES)
    state = QuantState(
        absmax=in_8_bits, shape=weight.shape, dtype=dtype, blocksize=_BLOCK, code=state.code, quant_type=bits, offset=offset,
        state2=of_scales,
    )  # fmt: skip
    made.weight = Params4bit(codes, requires_grad=False, quant_state=state, quant_type=bits, module=made, bnb_quantized=True)
    made.quant_state = state
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.detach().to(device, dtype), requires_grad=False)
    return settle_(made.train(linear.training))


def hush() -> None:
    """Keep bitsandbytes from saying, whoever imports it, that it lacks a CPU kernel for inference, which nothing here calls
    (see `settle_`). For commands, not for libraries: it holds for the whole process."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of kernels of their own that this machine lacks, and of torch's future."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
