"""What processes of a gate are told to do, by number. Light to import, as every new process imports it."""

import os
import time
from pathlib import Path


def prove(entrant: tuple[str, str]) -> str:
    kind, folder = entrant
    if kind == "raises":
        raise RuntimeError("out of resource: shared memory")
    if kind == "sleeps":
        time.sleep(60)
    if kind == "faults once":  # a fault of another in the same process: alone it is well
        mark = Path(folder) / str(os.getpid())
        first = not any(Path(folder).iterdir())
        mark.touch()
        return "RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered" if first else ""
    return "spills registers: 8" if kind == "spills" else ""
