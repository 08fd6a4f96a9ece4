"""The promises about the Triton kernels, held where Triton interprets them on the CPU, in a process of its own:
`TRITON_INTERPRET=1 python tests/helpers/interpreted.py shared own`. There they take the place of the C++ kernels.
Prints one JSON object: check -> what went wrong ("" if nothing)."""

import json
import os
import subprocess
import sys
import warnings

import checks
import gpu_rows
import token_checks
import torch
import triton_checks

from tmem import ops
from tmem.ops import _registry, _triton

PARTS = {
    "shared": [  # with the C++ kernels
        (ops, [*checks.ADAPTERS, *checks.ATTENTION, *checks.BANK, *token_checks.TOKEN]),
    ],
    "own": [
        (ops, triton_checks.ALL),
        (torch.ops.tmem, [*gpu_rows.ALL, *token_checks.GPU]),
    ],
}  # fmt: skip


def names(part: str) -> list[str]:
    return [check.__name__ for _, chosen in PARTS[part] for check in chosen]


def interpreted(part: str) -> dict[str, str]:
    """What a process of its own finds."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__, part], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main():
    import interpreting

    interpreting.mended()
    warnings.simplefilter("ignore")  # the C++ kernels are overridden: that is the purpose
    for launcher in _triton.LAUNCHERS:
        _registry._LIBRARY.impl(launcher.__name__, launcher, "CPU", allow_override=True)
    checks.DTYPES = triton_checks.FULL
    torch.set_num_threads(1)
    found = {}
    for part in sys.argv[1:]:
        for of, chosen in PARTS[part]:
            found |= checks.report(of, chosen)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
