"""What every kernel may take, and what it takes. `python tests/helpers/budgets.py` measures all and writes budgets.json;
`budgets.py norm "attend parts"` measures the kernels whose names begin so, and leaves the other rows.

A row of budgets.json: registers of a thread, bytes of shared memory of a program or block. Local memory, where spilled
registers go, is 0 but for the rows that name it: some of fp16 beside fp32 and of rank 128 on gfx1100. Triton's rows begin
with an architecture, are for a layer of width 4096 and hold for Triton 3.6, whose assembler counts registers otherwise than
its successors'; rows named "nvcc ..." are the CUDA library's for sm_90, by nvcc 13.0.
"""

import functools
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import targets
import torch
from triton import knobs

from tmem.files.layout import laid_out
from tmem.ops.attend import WIDEST
from tmem.testing import make_case
from tmem.triton_kernels import (
    attend,
    backward,
    configs,
    copy,
    decode,
    expand,
    glu,
    gram,
    gram_step,
    norm,
    plan,
    rope,
    shrink,
    step,
)  # fmt: skip

FILE = Path(__file__).with_suffix(".json")
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@functools.cache
def launches(width: int = 4096) -> dict[str, tuple]:
    """ "kernel activation factor rank" -> launcher, arguments, and which of its kernels it is: in a layer of this width, all of
    the tuning table; and the kernels over a bank of this width."""
    p, found = torch.zeros(plan.size(64, 2, 2), dtype=torch.int32), {}
    many = torch.ones(configs.FEW + 1, dtype=torch.int32)  # slots
    named = torch.zeros(64, dtype=torch.int32)

    def sums(slots: int) -> tuple:
        """A gradient that is added to and whose squares are summed, which takes most."""
        return False, torch.zeros(slots, -(-width // gram.SQUARED.value), dtype=torch.float64)

    for dtype, factor_dtype, ranks in itertools.product(TYPES, TYPES, configs.RANKS):
        if {dtype, factor_dtype} == {torch.bfloat16, torch.float16}:
            continue
        case = make_case([20, 44], [0, 1], [ranks] * 2, k=width, n=width, dtype=dtype, factor_dtype=factor_dtype, bias=False)
        x, a, seg, z = case.x, case.a, case.seg, torch.zeros(64, ranks)
        down_and_up = decode.decode, (x, x, a, a, named, case.rank, case.scale)
        own = {"plan": (plan.plan, (*seg, 64), 0)} if not found else {}
        own |= {
            "shrink": (shrink.shrink, (x, [a], *seg, case.scale, p), 0),
            **{
                f"shrink of {n}": (shrink.shrink, (x, [a] * n, *seg, case.scale, p), 0)
                for n in range(2, shrink.most(ranks) + 1)
            },
            "expand": (expand.expand, (x, z, a, *seg, p), 0),
            "decode down": (*down_and_up, 0),
            "decode up": (*down_and_up, 1),
            "decode of 3": (decode.decode_multi, ([x] * 3, x, [a] * 3, [a] * 3, named, case.rank, case.scale), 0),
            "norm": (norm.norm, (x, x, x[0], x[0], 1e-6, 0.0, x, a, a, named, case.rank, case.scale), 0),
            "glu": (glu.glu, (x, x, False, x, [a] * 2, [a] * 2, named, case.rank, case.scale), 0),
        }
        if factor_dtype == torch.float32:  # as the gradient is
            own |= {
                "gram": (gram.gram, (torch.zeros(len(many), ranks, width), z, x, *seg[:2], many, p, *sums(len(many))), 0),
                "gram of few slots": (gram.gram, (torch.zeros(2, ranks, width), z, x, *seg, p, *sums(2)), 0),
                "step of gram": (gram_step.gram_step, _stepped(z, x, seg, p, sums(2)), 1),
            }
        if dtype == torch.bfloat16:
            g = torch.zeros(2, ranks, width)
            own |= {"backward": (backward.backward, (g, z, x, a, *seg, case.scale, p, *sums(2)), 0)}
        for name, launch in own.items():
            found[f"{name} {TYPES[dtype]} {TYPES[factor_dtype]} {ranks}"] = launch
    return found | _of_a_token() | _over_a_bank(width)


def _stepped(z, x, seg: tuple, p, sums: tuple) -> tuple:
    """AdamW with a copy and squares, which takes most."""
    slots = len(seg[2])
    param, m, v = (torch.zeros(slots, z.shape[1], x.shape[1]) for _ in range(3))
    settings = torch.zeros(slots, dtype=torch.int32), torch.zeros(slots, 6).double()
    return param, m, v, *settings, z, x, *seg, p, param.bfloat16(), sums[1]


def _of_a_token() -> dict[str, tuple]:
    """Kernels of a decoder's layer that know no rank: by the dtype and the width of a head, 4 of which share a key head."""
    found = {}
    for dtype, size in itertools.product(TYPES, configs.HEADS):
        if size > WIDEST[dtype]:
            continue
        q, cache = torch.zeros(4, 8, size, dtype=dtype), torch.zeros(4, 2, 512, size, dtype=dtype)
        mask, at, kind = torch.ones(4, 512, dtype=torch.bool), torch.zeros(4, dtype=torch.int64), f"{TYPES[dtype]} {size}"
        heads, turn, weight = cache[:, :, 0].flatten(1), cache[:, 0, 0], cache[0, 0, 0]
        found |= {
            f"attend parts {kind}": (attend.attend, (q, cache, cache, mask, 0.1), 0),
            f"attend whole {kind}": (attend.attend, (q, cache, cache, mask, 0.1), 1),
            f"rope {kind}": (
                rope.rope, (cache, cache, q.flatten(1), heads, heads, turn, turn, at, weight, weight, 1e-6, 0.0), 0,
            ),
        }  # fmt: skip
    for dtype in TYPES:
        x = torch.zeros(4, 4096, dtype=dtype)
        found[f"norm alone {TYPES[dtype]}"] = norm.norm, (x, x, x[0], x[0], 1e-6, 0.0, *(None,) * 6), 0
        found[f"glu alone {TYPES[dtype]}"] = glu.glu, (x, x, False, None, [], [], None, None, None), 0
    return found


def _over_a_bank(width: int) -> dict[str, tuple]:
    param, grad, m, v = (torch.zeros(2, width) for _ in range(4))
    count, active, hyper = torch.zeros(2, dtype=torch.int32), torch.ones(2, dtype=torch.bool), torch.zeros(2, 6).double()
    kinds = {"AdamW copy": (param, grad, m, v, count, hyper, active, param.bfloat16()),
             "SGD": (param, grad, None, None, count, hyper, active, None)}  # fmt: skip
    parts = ("squares", "scalars", "move")
    found = {f"step {part} {kind}": (step.step, x, i) for kind, x in kinds.items() for i, part in enumerate(parts)}
    for name, matrix in (("copy", param.view(torch.uint8)), ("copy of odd rows", torch.zeros(2, 3, dtype=torch.uint8))):
        found[name] = copy.copy, (matrix, count, count), 0
    return found


def triton(architecture: str, names: Iterable[str] | None = None) -> dict[str, targets.Compiled]:
    """What kernels of these names (none given: all) take there, by name."""
    every = launches()
    names = list(every if names is None else names)
    taken = {}
    with targets.compiling(architecture) as found:
        for name in names:
            launch, arguments, which = every[name]
            before = len(found)
            launch(*arguments)
            taken[name] = targets.resources(found[before + which][1])
    return taken


def of_tiles() -> set[str]:
    """The names of kernels whose tiles the tuning table chooses."""
    return {name for name in launches() if name.startswith((*configs.TABLE, "step of gram"))}


def of_triton(rows: dict[str, dict], architecture: str) -> dict[str, dict]:
    """Of the rows of budgets.json, those of Triton's kernels on an architecture, by name."""
    return {name.partition(" ")[2]: row for name, row in rows.items() if name.startswith(architecture + " ")}


def tightest(rows: dict[str, dict], kind: Callable[[str], str]) -> list[str]:
    """Of every kind of kernel, the one that takes most registers: the first to spill."""
    order = sorted(rows, key=lambda name: (-rows[name]["registers"], name))
    return list({kind(name): name for name in reversed(order)}.values())


def of_tests(rows: dict[str, dict]) -> set[str]:
    """What `make test` compiles for sm_90, by the rows of Triton's kernels there: all but those of fp16, which are the code of
    bf16, and of them of each kernel the types and rank that take most registers."""
    half = {name: row for name, row in rows.items() if "fp16" in name}
    return rows.keys() - half.keys() | set(tightest(half, alone))


def alone(name: str) -> str:
    """The name of a kernel without types and rank."""
    return re.sub(r"( (fp32|bf16|fp16))+( \d+)?$", "", name)


def within(taken: dict[str, targets.Compiled], architecture: str) -> None:
    """No kernel spills, and each keeps to its row."""
    allowed = of_triton(json.loads(FILE.read_text()), architecture)
    assert taken and {name: k.local for name, k in taken.items() if k.local} == {}
    over = {
        name: (k.registers, k.shared) for name, k in taken.items()
        if k.registers > allowed[name]["registers"] or k.shared > allowed[name]["shared"]
    }  # fmt: skip
    assert not over


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


def main(beginnings: Sequence[str]):
    """beginnings: of the names of kernels that are measured anew, the other rows stay; none: all, and the library's."""
    rows = json.loads(FILE.read_text()) if beginnings else {}
    names = [name for name in launches() if name.startswith(tuple(beginnings or [""]))]
    for architecture in targets.SHARED:
        for name, k in triton(architecture, names).items():
            assert not k.local or architecture == "gfx1100", f"{architecture} {name}: {k.local} bytes of spills"
            rows[f"{architecture} {name}"] = {"registers": k.registers, "shared": k.shared} | (
                {"local": k.local} if k.local else {}
            )
    compiled = {} if beginnings else library(Path(__file__).parents[2] / "tmem/libtmem_cuda.so")
    for name, row in compiled.items():
        rows[name] = {"registers": row["registers"], "shared": row["shared"]}
    FILE.write_text(laid_out(dict(sorted(rows.items()))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
