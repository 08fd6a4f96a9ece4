"""What a computation asks of the device that it runs on: every such answer is waited for, and a captured graph has none."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ITSELF = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
_SHAPED = {"nonzero", "unique_consecutive", "_unique2", "unique_dim", "masked_select", "_local_scalar_dense", "bincount"}


class _Shapes(TorchDispatchMode):
    """Notes ops whose result has a shape, or is a number, that its inputs' values decide."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op._schema.name.removeprefix("aten::")
        said = {**(kwargs or {}), **dict(zip((a.name for a in op._schema.arguments), args))}
        lengths = name == "repeat_interleave" and said.get("output_size") is None
        if name in _SHAPED or lengths or name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1]):
            self.found.append(name)
        return op(*args, **(kwargs or {}))


@contextmanager
def asked():
    """The names of what was asked in this block, as a list that is filled in it."""
    found, before = [], {name: getattr(torch.Tensor, name) for name in _ITSELF}
    with pytest.MonkeyPatch.context() as patched:
        for name, method in before.items():
            patched.setattr(torch.Tensor, name, lambda x, *a, _m=method, _n=name, **k: found.append(_n) or _m(x, *a, **k))
        with _Shapes(found):
            yield found
