"""Refuses what makes the host wait for a GPU, or what no graph can repeat: values read by Python, shapes that follow from them,
and constants from the host. Memory of a CPU is read without an op, so Python's own ways to read are refused as well."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
OPS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.argwhere, aten.masked_select,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.lift_fresh, aten.lift,
}  # fmt: skip
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
METHODS = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


class Waits(AssertionError):
    """Something was asked for that a graph cannot hold."""


class _Ops(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, op.overloadpacket
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)] if packet in INDEXED else []
        counted = packet is aten.repeat_interleave and kwargs.get("output_size") is None
        if packet in OPS or masks or counted:
            raise Waits(str(op))
        return op(*args, **kwargs)


def _refused(name):
    def read(tensor, *_, **__):
        raise Waits(name)

    return read


@contextmanager
def unwaiting():
    """Within the block nothing waits, nor does a backward that runs in it on a CPU."""
    before = {name: vars(torch.Tensor).get(name) for name in METHODS}
    for name in METHODS:
        setattr(torch.Tensor, name, _refused(name))
    try:
        with _Ops():
            yield
    finally:
        for name, method in before.items():
            if method is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, method)
