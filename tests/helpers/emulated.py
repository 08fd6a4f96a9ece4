"""Run by test_cuda.py in a process of its own: the CUDA kernels, compiled for the CPU (tests/emulation), take the place of
the C++ ones, and the promises of checks.py are held against them. Prints one JSON object: check -> what went wrong.
Arguments: the library, and which checks (none = all)."""

import json
import sys

import checks
import gpu_rows
import torch

from tmem import ops


def main():
    torch.ops.load_library(sys.argv[1])
    checks.DTYPES = [d for d in checks.DTYPES if torch.float64 not in d]  # the CUDA kernels refuse fp64
    checks.BANK_DTYPES = [torch.float32]
    wanted = sys.argv[2:]
    found = {}
    for of, some in ((ops, (checks.decode, *checks.BANK)), (torch.ops.tmem, gpu_rows.EMULATED)):
        found |= checks.report(of, [check for check in some if check.__name__ in wanted or not wanted])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
