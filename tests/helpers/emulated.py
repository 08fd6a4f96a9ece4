"""Run by test_cuda.py in a process of its own: the CUDA kernels, compiled for the CPU (tests/emulation), take the place of
the C++ ones, and the promises of checks.py are held against them. Prints one JSON object: check -> what went wrong."""

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
    found = checks.report(ops, [checks.decode, *checks.BANK])
    print(json.dumps(found | checks.report(torch.ops.tmem, gpu_rows.ALL)))


if __name__ == "__main__":
    main()
