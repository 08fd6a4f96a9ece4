"""All that needs a GPU in one go, within 9 minutes: `make gpu`, or `python -m tmem.bench.gpu` where tmem is installed.

The tests marked gpu, compute-sanitizer on a small set of them, then the benches with the clocks they ran at. Leaves one
file, results/gpu/<name of the GPU>.json, which bench/table.py makes the table of docs/kernels.md from. What fails is in
the file too, and the exit status says so.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from .. import machine, ops
from ..report import write_json
from . import run

ROOT = Path(__file__).parents[1]
LIMITS = {"tests": 240, "sanitizer": 120}  # seconds
SANITIZED = "test_promises and (decode or copy or idle or values)"
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw"


def pytest_of(name: str, selection: str, *before: str) -> dict:
    """Run the tests marked gpu; what they printed last, and whether they ended well within the limit."""
    command = [*before, sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-k", selection, str(ROOT / "tests")]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMITS[name], cwd=ROOT)
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        status, text = "timed out", (late.stdout or b"").decode()
    print(f"{name}: {status} in {time.perf_counter() - start:.0f} s", text[-1500:], sep="\n", flush=True)
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), "last": text[-4000:]}


class Clocks(threading.Thread):
    """What nvidia-smi says of the first GPU, once a second while the benches run."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen: list[list[float]] = []
        self.over = threading.Event()

    def run(self):
        while shutil.which("nvidia-smi") and not self.over.wait(1):
            line = subprocess.run(
                ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits", "-i", "0"],
                capture_output=True, text=True,
            ).stdout  # fmt: skip
            numbers = re.findall(r"[\d.]+", line)
            if len(numbers) == 4:
                self.seen.append([float(n) for n in numbers])

    def summary(self) -> dict:
        columns = list(zip(*self.seen))
        return {name: [min(c), max(c)] for name, c in zip(CLOCKS.split(","), columns)}


def main() -> int:
    if not torch.cuda.is_available():
        print(f"tmem.bench.gpu needs a GPU that torch can use; torch {torch.__version__} here has none.", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name()
    kernels = {op: ops.kernel_for(op, "cuda") for op in ops.OPS}
    print(name, kernels, flush=True)
    tests = pytest_of("tests", "not sanitized")
    sanitizer: dict = {"status": "no compute-sanitizer on PATH"}
    if shutil.which("compute-sanitizer"):
        sanitizer = pytest_of("sanitizer", SANITIZED, "compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all")
    clocks = Clocks()
    clocks.start()
    bench = run(watch=lambda case, done, total: print(f"{done}/{total} {case}", flush=True))
    clocks.over.set()
    found = {
        **bench,
        "command": "make gpu",
        "gpu": {"name": name, "machine": machine.machine(), "clocks": clocks.summary()},
        "kernels": kernels,
        "tests": tests,
        "sanitizer": sanitizer,
    }
    path = ROOT / "results" / "gpu" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    write_json(path, found)
    for row in bench["rows"]:
        print(f"{row['bench']:7}{row['case']:36}{row['provider']:22}{row['ms'] * 1e3:10.1f} us {row['ratio']:6.2f}x")
    print(f"written to {path}")
    return int(any(part["status"] not in (0, "no compute-sanitizer on PATH") for part in (tests, sanitizer)))


if __name__ == "__main__":
    sys.exit(main())
