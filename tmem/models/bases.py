"""What may lie under an adapter: linear layers with a weight of floats, and frozen modules that compute like one, such as
quantised ones, which are known by what they can do and not by their type."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def plain_weight(module: nn.Module) -> Tensor | None:
    """The weight of an `nn.Linear` that holds it as an ordinary tensor of floats; None: the module is not plain."""
    weight = getattr(module, "weight", None)
    return weight if type(module) is nn.Linear and type(weight) is nn.Parameter and weight.is_floating_point() else None


def unfit(module: nn.Module, dtype: torch.dtype) -> str | None:
    """Why a module that is not plain cannot be adapted; None: it can. It must be frozen, and compute rows of `out_features`
    from rows of `in_features` in `dtype`, and the gradient of its input."""
    if not is_linear(module):
        return "tmem adapts linear layers, and frozen modules with in_features and out_features that compute like one"
    if any(parameter.requires_grad for parameter in module.parameters()):
        return "a layer that is no plain nn.Linear must be frozen; call requires_grad_(False)"
    inner, outer = module.in_features, module.out_features
    x = torch.zeros(1, inner, device=device_of(module), dtype=dtype, requires_grad=True)
    try:
        with torch.enable_grad():
            with torch.no_grad():
                module(x)  # after which some libraries pack the weight anew, for inference alone
            y = module(x)
            (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    except Exception as error:
        return f"its output, or the gradient of its input, cannot be had ({' '.join(str(error).split())[:200]})"
    if y.shape == (1, outer) and dx.shape == x.shape:
        return None
    return f"of one row with {inner} numbers it made {list(y.shape)}, expected [1, {outer}]"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, be its weight of floats or in few bits."""
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return all(isinstance(size, int) for size in sizes)


def hooked(module: nn.Module) -> bool:
    """Whether somebody runs before a module's forward or after it, such as merge.Beside."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """All that a module's parameters and buffers consist of: of one in few bits its codes, their scales, and what these are
    made of."""
    for parameter in itertools.chain(module.parameters(), module.buffers()):
        yield from pieces(parameter)
        state = getattr(parameter, "quant_state", None)  # of bitsandbytes
        for part in (state, getattr(state, "state2", None)):
            if part is not None:
                yield from (t for t in (part.absmax, part.code, getattr(part, "offset", None)) if isinstance(t, Tensor))


def pieces(parameter: Tensor) -> list[Tensor]:
    """The tensors that a parameter consists of: itself, or codes and scales of one in few bits."""
    if is_traceable_wrapper_subclass(parameter):
        return [getattr(parameter, name) for name in parameter.__tensor_flatten__()[0]]
    return [parameter]


def device_of(module: nn.Module) -> torch.device:
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's activations: that of its embeddings."""
    return model.get_input_embeddings().weight.dtype


@torch.no_grad()
def weight_of(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """W [N, K] of a frozen module, as it computes with it: x = I gives Wᵀ + bias."""
    device, k = device_of(module), module.in_features
    bias = module(torch.zeros(1, k, device=device, dtype=dtype))
    return (module(torch.eye(k, device=device, dtype=dtype)) - bias).T.contiguous()


def shape_of(module: nn.Module) -> Tensor:
    """A tensor of the shape of W, of one number."""
    return torch.zeros((), device=device_of(module)).expand(module.out_features, module.in_features)
