"""What the Triton kernels of a layer move, counted by running them: `python tests/helpers/traffic.py`.

Every load, store and atomic addition of a kernel is followed; what counts is each byte once a kernel, as the second-level cache
gives the rest: bytes read and bytes written, an addition being both. A layer's bytes are a·D + b for its width D = K = N, so
that two small widths give those of any. Prints one JSON object: case -> kernel -> MB, of y, dX and dB over the frozen layer's.
"""

import json

import interpreting  # first, as it has Triton interpret
import numpy as np
import torch
from triton.runtime.interpreter import interpreter_builder

from tmem.testing import make_case
from tmem.triton_kernels import backward, configs, expand, plan, shrink

CASES = {"r=16 64x128": (16, 64, 128), "r=16 256x16": (16, 256, 16), "r=64 256x16": (64, 256, 16)}  # rank, slots, rows of each
WIDTH, WIDTHS, SLOTS = 4096, (256, 512), 6  # a case is counted of so many slots, all alike
assert SLOTS > configs.FEW


class Counted:
    """Within the block, `bytes` read and written."""

    def __enter__(self):
        self.read: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.before = {name: getattr(interpreter_builder, name) for name in _FOLLOWED}
        for name, sides in _FOLLOWED.items():
            setattr(interpreter_builder, name, self._follow(self.before[name], sides))
        return self

    def __exit__(self, *_):
        for name, function in self.before.items():
            setattr(interpreter_builder, name, function)

    def _follow(self, function, sides):
        place, read, written = sides

        def followed(*args):
            pointers, mask = args[place[0]], args[place[1]] if place[1] is not None else None
            size = pointers.dtype.scalar.element_ty.primitive_bitwidth // 8
            at = np.broadcast_arrays(pointers.data, True if mask is None else mask.data)
            where = np.unique(at[0][at[1].astype(bool)])
            for chosen, set_of in ((read, self.read), (written, self.written)):
                if chosen:
                    set_of.update(dict.fromkeys(where.tolist(), size))
            return function(*args)

        return followed

    @property
    def bytes(self) -> int:
        return sum(size for found in (self.read, self.written) for size in found.values())


_FOLLOWED = {  # builder's function -> (its pointers, its mask), reads, writes
    "create_masked_load": ((0, 1), True, False),
    "create_masked_store": ((0, 2), False, True),
    "create_atomic_rmw": ((1, 3), True, True),
}


def moved(rank: int, slots: int, rows: int, width: int, fresh: bool = True) -> dict[str, int]:
    """Bytes of each kernel of a layer in bf16 with bf16 copies of its factors."""
    case = make_case(
        [rows] * slots, range(slots), [rank] * slots, k=width, n=width, dtype=torch.bfloat16,
        factor_dtype=torch.bfloat16, shared_a=True, bias=False,
    )  # fmt: skip
    seg, p = case.seg, plan.plan(*case.seg, rows * slots)
    y, dy, z = (torch.zeros(rows * slots, width, dtype=torch.bfloat16) for _ in range(3))
    g, found = torch.zeros(slots, rank, width), {}

    def run(name, kernel, *arguments):
        with Counted() as counted:
            made = kernel(*arguments)
        found[name] = counted.bytes
        return made

    z = run("shrink", shrink.shrink, case.x, [case.a], *seg, case.scale, p)[0]
    run("expand", expand.expand, y, z, case.bt, *seg, p)
    dz = run("backward and gram", backward.backward, g, z, dy, case.bt, *seg, case.scale, p, fresh)
    run("expand of dz", expand.expand, y, dz, case.a, *seg, p)
    return found


def of_a_layer(rank: int, slots: int, rows: int) -> dict[str, float]:
    """MB of each kernel at WIDTH, of `slots` slots."""
    low, high = (moved(rank, SLOTS, rows, width) for width in WIDTHS)
    found = {}
    for name, start in low.items():
        total = start + (high[name] - start) / (WIDTHS[1] - WIDTHS[0]) * (WIDTH - WIDTHS[0])
        of_a = 2 * rank * WIDTH if name in ("shrink", "expand of dz") else 0  # the shared A: more slots do not read more of it
        found[name] = round(((total - of_a) * slots / SLOTS + of_a) / 1e6, 1)
    return found


if __name__ == "__main__":
    interpreting.mended()
    print(json.dumps({name: of_a_layer(*case) for name, case in CASES.items()}))
