"""What every kernel may take on sm_90, and what it takes. `python tests/budgets.py` measures all and writes budgets.json.

A row of budgets.json: registers of a thread, bytes of shared memory of a program or block. Local memory, where spilled
registers go, is 0 everywhere. Triton's rows are for a layer of width 4096 and hold for Triton 3.6, whose assembler counts
registers otherwise than its successors'; rows named "nvcc ..." are the CUDA library's, by nvcc 13.0.
"""

import itertools
import re
import subprocess
from pathlib import Path

import sm90
import torch
from triton import knobs

from tmem.files.layout import laid_out
from tmem.testing import make_case
from tmem.triton_kernels import configs, copy, decode, expand, gram, plan, shrink, step

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
        gram.gram(torch.zeros(configs.FEW + 1, ranks, width), z, case.x, *seg[:2], torch.full((configs.FEW + 1,), ranks), p)
        gram.gram(g, z, case.x, *seg, p)
        decode.decode(case.x.clone(), case.x, case.a, case.a, torch.zeros(64, dtype=torch.int32), case.rank, case.scale)
    names = "plan", "shrink", "shrink of 2", "shrink of 3", "expand", "gram", "gram of few slots", "decode down", "decode up"
    return list(zip(names, (kernel for _, kernel in found), strict=True))


def bank_launches(width: int = 4096) -> list[tuple[str, object]]:
    """Every kernel that goes over rows of a bank: (name, what was compiled)."""
    param, grad, m, v = (torch.zeros(2, width) for _ in range(4))
    count, active, hyper = torch.zeros(2, dtype=torch.int32), torch.ones(2, dtype=torch.bool), torch.zeros(2, 6).double()
    with sm90.compiling() as found:
        step.step(param, grad, m, v, count, hyper, active, param.bfloat16())
        step.step(param, grad, None, None, count, hyper, active, None)
        copy.copy(param.view(torch.uint8), count, count)
        copy.copy(torch.zeros(2, 3, dtype=torch.uint8), count, count)
    parts = [f"step {part} {kind}" for kind in ("AdamW copy", "SGD") for part in ("squares", "scalars", "move")]
    return list(zip([*parts, "copy", "copy of odd rows"], (kernel for _, kernel in found), strict=True))


def triton() -> dict[str, sm90.Compiled]:
    """ "kernel activation factor rank" -> what it takes, for every row of the tuning table; and the kernels over a bank."""
    found = {}
    for dtype, factor_dtype, ranks in itertools.product(TYPES, TYPES, configs.RANKS):
        for name, kernel in launches(dtype, factor_dtype, ranks):
            found[f"{name} {TYPES[dtype]} {TYPES[factor_dtype]} {ranks}"] = sm90.resources(name, kernel)
    return found | {name: sm90.resources(name, kernel) for name, kernel in bank_launches()}


def _dump(tool, *arguments: object) -> str:
    text = subprocess.run([tool.path, *map(str, arguments)], capture_output=True, text=True, check=True).stdout
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def _name(mangled: str) -> str:
    """ "nvcc down<float, __nv_bfloat16, true>" of a kernel's full name."""
    name = re.search(r"::(\w+(<[^()]*>)?)\(", mangled).group(1)
    return "nvcc " + name.replace("__nv_bfloat16", "bf16").replace("__half", "fp16")


def library(path: Path) -> dict[str, dict[str, int]]:
    """ "nvcc kernel<...>" -> registers, shared and local bytes of the library's kernels for sm_90."""
    text, found = _dump(knobs.nvidia.cuobjdump, "-arch", "sm_90", "-res-usage", path), {}
    pattern = r"Function (.*):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for name, registers, stack, shared, local in re.findall(pattern, text):
        found[_name(name)] = {"registers": int(registers), "shared": int(shared), "local": int(stack) + int(local)}
    return found


def machine_code(path: Path) -> dict[str, str]:
    """ "nvcc kernel<...>" -> its instructions on sm_90."""
    text = _dump(knobs.nvidia.cuobjdump, "-arch", "sm_90", "-sass", path)
    parts = re.split(r"Function : (.*)\n", text)[1:]
    return {_name(name): code for name, code in zip(parts[::2], parts[1::2])}


def main():
    rows = {name: {"registers": k.registers, "shared": k.shared} for name, k in triton().items()}
    for name, row in library(Path(__file__).parents[2] / "tmem/libtmem_cuda.so").items():
        rows[name] = {"registers": row["registers"], "shared": row["shared"]}
    FILE.write_text(laid_out(dict(sorted(rows.items()))) + "\n")


if __name__ == "__main__":
    main()
