"""Triton's interpreter as the tests use it: `mended` once, before the first launch, in a process that has not imported Triton.

It keeps bf16 as whole numbers, which it multiplies, and cuts off where it should round. Its products are numpy's, where a row's
bits depend on the processor's BLAS and on what is beside it. They are summed in fp64 here. It patches triton.language again
in every call of every function, and sets beside each sum of whole numbers another in 64 bits, which only a debug run looks at.
"""

import functools
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from triton import language as tl
from triton.runtime import interpreter


def mended() -> None:
    """Have the interpreter round and widen bf16 as torch does, multiply in fp64, patch once and add once."""
    mend_bf16()
    patch_once()
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def patch_once() -> None:
    """What is patched stays so: in this process nothing is compiled."""
    plain = interpreter._patch_lang

    @functools.cache
    def patched(function):
        plain(function)
        return interpreter._LangPatchScope()  # which has nothing to put back

    interpreter._patch_lang = patched


def mend_bf16() -> None:
    """The bits are kept as whole numbers."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    plain_cast = builder.cast_impl

    def widened(x):
        return (x.data.astype(np.uint32) << 16).view(np.float32)

    def cast(self, x, dtype):
        if x.dtype.scalar == tl.bfloat16 and dtype.scalar == tl.float32:
            return handle(widened(x), tl.float32)
        if x.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            bits = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.int16).numpy()
            return handle(bits.view(np.uint16), tl.bfloat16)
        return plain_cast(self, x, dtype)

    def dot(self, a, b, d, *_precision):
        a, b = ((widened(x) if x.dtype.scalar == tl.bfloat16 else x.data).astype(np.float64) for x in (a, b))
        return handle((a @ b).astype(d.data.dtype) + d.data, d.dtype.scalar)

    builder.cast_impl, builder.create_dot = cast, dot
