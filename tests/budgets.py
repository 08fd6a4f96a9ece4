"""What every kernel may take on sm_90, and what it takes. `python tests/budgets.py` measures all and writes budgets.json.

A row of budgets.json: registers of a thread, bytes of shared memory of a program. Local memory, where spilled registers
go, is 0 everywhere. Register counts are those of Triton 3.6's assembler and of nvcc 13.0; others count otherwise.
"""

import itertools
import json
from pathlib import Path

import sm90
import torch
from tmem.triton_kernels import configs, expand, gram, plan, shrink

from tmem.testing import make_case

FILE = Path(__file__).with_suffix(".json")
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def launches(dtype: torch.dtype, factor_dtype: torch.dtype, ranks: int, width: int = 4096) -> list[tuple[str, object]]:
    """Every kernel as a layer of this width launches it: (name, what was compiled)."""
    case = make_case([20, 44], [0, 1], [ranks, ranks], k=width, n=width, dtype=dtype, factor_dtype=factor_dtype, bias=False)
    p = torch.zeros(plan.size(64, 2, 2), dtype=torch.int32)
    seg, z, g = case.seg, torch.zeros(64, ranks), torch.zeros(2, ranks, width)
    with sm90.compiling() as found:
        plan.plan(*seg, 64)
        shrink.shrink(case.x, [case.a], *seg, case.scale, p)
        shrink.shrink(case.x, [case.a] * 2, *seg, case.scale, p)
        shrink.shrink(case.x, [case.a] * 3, *seg, case.scale, p)
        expand.expand(case.x.clone(), z, case.a, *seg, p)
        gram.gram(g, z, case.x, *seg, p)
        gram.backward(g, z, case.x, case.a, *seg, case.scale, p)
    names = "plan", "shrink", "shrink of 2", "shrink of 3", "expand", "gram", "backward", "reduce"
    return list(zip(names, (kernel for _, kernel in found), strict=True))


def combinations():
    return itertools.product(TYPES, TYPES, configs.RANKS)


def triton() -> dict[str, sm90.Compiled]:
    """"kernel activation factor rank" -> what it takes, for every row of the tuning table."""
    found = {}
    for dtype, factor_dtype, ranks in combinations():
        for name, kernel in launches(dtype, factor_dtype, ranks):
            found[f"{name} {TYPES[dtype]} {TYPES[factor_dtype]} {ranks}"] = sm90.resources(name, kernel)
    return found


def main():
    rows = {name: {"registers": k.registers, "shared": k.shared} for name, k in triton().items()}
    FILE.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
