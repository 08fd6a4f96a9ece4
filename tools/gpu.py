"""All that needs a GPU in one go, within 9 minutes: `make gpu`, or `python tools/gpu.py` where tmem is installed.

The tests marked gpu, the benches with the clocks they ran at, batched_rsvd, then compute-sanitizer on a small set of the tests.
Leaves one file, results/gpu/<name of the GPU>.json, written anew after each part, and a picture of it. tools/table.py makes
tables of the documents from the file. What fails is in the file too, and the exit status says so.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import gpu_chart
import torch

from tmem import machine, ops
from tmem.bench import BENCHES, about, rows, run_study
from tmem.bench.measure import Settings, ceilings
from tmem.files.objects import write_json

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"tests": 240, "sanitizer": 120}  # seconds
WORKERS = "8"  # processes of the tests, most of whose time goes into compiling Triton's kernels
SANITIZED = "test_promises and (decode or copy or idle)"
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw"


def pytest_of(name: str, selection: str, *before: str) -> dict:
    """Run the tests marked gpu; how many passed, and whether they ended well within the limit."""
    command = [
        *before,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-k",
        selection,
        str(ROOT / "tests" / "ops" / "test_gpu.py"),
    ]
    command += [] if before else ["-n", WORKERS]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMITS[name], cwd=ROOT)
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        status, text = "timed out", (late.stdout or b"").decode()
    print(f"{name}: {status} in {time.perf_counter() - start:.0f} s", text[-3000:], sep="\n", flush=True)
    verdict = re.findall(r"^(?:\d+ \w+, )*\d+ \w+ in [\d.]+s.*|^=+ ERROR SUMMARY.*", text, re.MULTILINE)
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), "verdict": verdict}


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
        print(f"tools/gpu.py needs a GPU that torch can use; torch {torch.__version__} here has none.", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name()
    kernels = {op: ops.kernel_for(op, "cuda") for op in ops.OPS}
    print(name, kernels, flush=True)
    path = ROOT / "results" / "gpu" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    found: dict = {"command": "make gpu", "kernels": kernels, "tests": {**pytest_of("tests", ""), "commit": about()["commit"]}}
    write_json(path, found)
    clocks = Clocks()
    clocks.start()
    settings = Settings()
    found |= {**about(), "settings": {**vars(settings), "quick": False, "threads": torch.get_num_threads()}}
    found |= {"ceilings": ceilings(False, "cuda"), "rows": [], "failed": {}}
    for bench in BENCHES:
        try:
            for row in rows([bench], False, settings, "cuda", _progress):
                found["rows"].append(row)
        except Exception as error:  # the others are still worth their time; the exit status tells
            found["failed"][bench] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
    clocks.over.set()
    found["gpu"] = {"name": name, "machine": machine.machine(), "clocks": clocks.summary()}
    write_json(path, found)
    for row in found["rows"]:
        print(f"{row['bench']:7}{row['case']:44}{row['provider']:22}{row['ms'] * 1e3:10.1f} us {row['ratio']:6.2f}x")
    found["rsvd"] = run_study("rsvd", watch=_progress)
    write_json(path, found)
    found["sanitizer"] = {"status": "no compute-sanitizer on PATH"}
    if shutil.which("compute-sanitizer"):
        checked = "compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"
        found["sanitizer"] = pytest_of("sanitizer", SANITIZED, *checked)
    write_json(path, found)
    print(f"written to {path} and {gpu_chart.draw(found, path.with_suffix('.png')).name}")
    well = all(found[part]["status"] in (0, "no compute-sanitizer on PATH") for part in ("tests", "sanitizer"))
    return 0 if well and not found["failed"] else 1


def _progress(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
