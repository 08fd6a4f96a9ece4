"""Which bytes a tensor covers, from its address, sizes and strides; nothing is read, so it holds for any device.

numpy, which searches exactly, is imported where tensors lie within one another: those that lie apart need torch alone.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    import numpy as np

_SEARCH = 100_000  # steps of numpy's exact search, which is exponential at worst; beyond, sharing is assumed


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of x lie in the same place."""
    if x.is_contiguous():
        return False
    reach = 0  # elements that the dimensions of smaller strides span
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape) if size > 1):
        if stride <= reach:
            return stride == 0 or _repeats(x)
        reach += stride * (size - 1)
    return False


def _repeats(x: Tensor) -> bool:
    """The same for strides that do not nest, by listing the offsets of all elements."""
    import numpy as np

    offsets = np.zeros(1, dtype=np.int64)
    for stride, size in zip(x.stride(), x.shape):
        offsets = (offsets[:, None] + stride * np.arange(size)).ravel()
    return len(np.unique(offsets)) < len(offsets)


def first_shared(outputs: dict[str, Tensor], inputs: dict[str, Tensor]) -> tuple[str, str] | None:
    """Names of the first output and of what else shares a byte with it."""
    spans = {name: _span(x) for name, x in (outputs | inputs).items()}
    apart = sorted(span for span in spans.values() if span[1])
    if all(end <= start for (_, end), (start, _) in itertools.pairwise(apart)):
        return None
    before: list[str] = []
    for name in outputs:
        lo, hi = spans[name]
        for other in (*before, *inputs):
            start, end = spans[other]
            if lo < end and start < hi and _share(outputs[name], (outputs | inputs)[other]):
                return name, other
        before.append(name)
    return None


def _span(x: Tensor) -> tuple[int, int]:
    """First byte and last + 1; an empty one of what holds no memory."""
    if isinstance(x, FakeTensor) or x.is_meta or x.numel() == 0:
        return 0, 0
    last = x.numel() - 1 if x.is_contiguous() else sum(stride * (size - 1) for stride, size in zip(x.stride(), x.shape))
    start = x.data_ptr()
    return start, start + (last + 1) * x.element_size()


def _share(x: Tensor, y: Tensor) -> bool:
    import numpy as np

    if x.device != y.device:
        return False
    try:
        return np.shares_memory(_array(x), _array(y), max_work=_SEARCH)
    except np.exceptions.TooHardError:
        return True


class _Layout:
    def __init__(self, x: Tensor):
        size = x.element_size()
        strides = tuple(size * stride for stride in x.stride())
        self.__array_interface__ = {
            "data": (x.data_ptr(), False), "shape": tuple(x.shape), "strides": strides, "typestr": f"|V{size}", "version": 3,
        }  # fmt: skip


def _array(x: Tensor) -> np.ndarray:
    """An array of the same addresses, never to be read."""
    import numpy as np

    return np.asarray(_Layout(x))
