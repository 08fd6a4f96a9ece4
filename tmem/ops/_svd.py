"""What batched_rsvd is made of, as ops of the dispatcher. For tmem.ops.rsvd alone, which checks the arguments."""

import functools
import logging

import torch

from tmem import reference
from tmem.ops._registry import define, kernel_for


def _accumulator(x):
    return reference._accumulator(x)


def _batch(w):
    """b, m, n of the matrices."""
    return tuple(w[0].shape) if w[0].dim() == 3 else (len(w), *w[0].shape)


def _fake_scan(w):
    return w[0].new_empty(_batch(w)[0], dtype=_accumulator(w[0]))


def _fake_sketch(key, seed, rows, columns):
    return key.new_empty(key.shape[0], rows, columns, dtype=torch.float32)


def _fake_product(w, x, scale=None, minus=None):
    return x.new_empty(x.shape[0], _batch(w)[1], x.shape[2])


def _fake_gram(w, x, scale):
    return x.new_empty(x.shape)


def _fake_factor(g, shift=0.0):
    return g.new_empty(g.shape), g.new_empty(g.shape[0])


def _fake_eigh(t, count):
    return t.new_empty(t.shape[0], count), t.new_empty(t.shape[0], t.shape[1], count)


def _fake_small(r):
    return r.new_empty(r.shape), r.new_empty(r.shape[:2]), r.new_empty(r.shape)


def _kernel(schema, formula, fake, floats, most=None):
    """The op; fp64 and problems of more than `most` columns, which no kernel takes, go to the formula. `floats`: the tensor of
    the arguments that tells."""
    op = define(schema, formula, fake)

    def call(*args):
        x = floats(*args)
        return (formula if x.dtype == torch.float64 or (most and x.shape[-1] > _fitting(x, most)) else op)(*args)

    return call


def _fitting(x, most):
    """How many columns, `most` at most, fit with their rotations into what a block of x's device may share: 143 on an A100."""
    if x.device.type != "cuda":
        return most
    floats = torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin // 4
    while 2 * most * (most | 1) + 2 * most + 1 > floats:
        most -= 1
    return most


def _first_matrix(w, *_):
    return w[0]


def _first(x, *_):
    return x


sketch = define("svd_sketch(Tensor key, int seed, int rows, int columns) -> Tensor", reference.svd_sketch, _fake_sketch)
scan = _kernel("svd_scan(Tensor[] w) -> Tensor", reference.svd_scan, _fake_scan, _first_matrix)
product = _kernel(
    "svd_product(Tensor[] w, Tensor x, Tensor? scale=None, Tensor? minus=None) -> Tensor",
    reference.svd_product, _fake_product, _first_matrix,
)  # fmt: skip
gram = _kernel("svd_gram(Tensor[] w, Tensor x, Tensor scale) -> Tensor", reference.svd_gram, _fake_gram, _first_matrix)
factor = _kernel("svd_factor(Tensor g, float shift=0.0) -> (Tensor, Tensor)", reference.svd_factor, _fake_factor, _first, 128)
eigh = _kernel("svd_eigh(Tensor t, int count) -> (Tensor, Tensor)", reference.svd_eigh, _fake_eigh, _first, 160)
small = _kernel("svd_small(Tensor r) -> (Tensor, Tensor, Tensor)", reference.svd_small, _fake_small, _first, 64)


@functools.cache
def tell_if_slow_on_gpu() -> None:
    """Say once, in the log, that a GPU is served by the formulas: these are the only kernels that Triton does not replace."""
    if kernel_for("svd_gram", "cuda") == "PyTorch reference":
        logging.getLogger("tmem").warning(
            "batched_rsvd runs on the GPU as plain PyTorch, which is slower, as tmem was built without nvcc;"
            " install the CUDA toolkit and then tmem again with TMEM_CUDA=ON."
        )
