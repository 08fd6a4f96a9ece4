"""Run by test_cuda.py in a process of its own: the CUDA kernels, compiled for the CPU (tests/emulation), take the place of
the C++ ones, and the promises of checks.py are held against them. Prints one JSON object: check -> what went wrong."""

import json
import sys
import traceback

import checks
import torch

from tmem import ops


def main():
    torch.ops.load_library(sys.argv[1])
    checks.DTYPES = [d for d in checks.DTYPES if torch.float64 not in d]  # the CUDA kernels refuse fp64
    checks.BANK_DTYPES = [torch.float32]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN: an output left unwritten shows
    found = {}
    for check in (checks.decode, *checks.BANK):
        torch.manual_seed(0)
        try:
            check(ops)
            found[check.__name__] = ""
        except Exception:
            found[check.__name__] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
