"""All that needs a GPU, in parts of 9 minutes a call: `make gpu`, or `python tools/gpu.py` where tmem is installed.

Each kernel alone, the tournament of their configurations, the benches with the winners, the tests marked gpu,
compute-sanitizer on a small set of them, batched_rsvd. One file, results/gpu/<name of the GPU>.json, is written anew after each
part, and a second call goes on from it; the winners go to triton_kernels/tuned/<architecture>.json. tools/table.py makes tables
of the documents from the former.

The kernels of vLLM and SGLang take part in `bench forward` where Python finds these packages, in its own site-packages or in a
folder that PYTHONPATH names. Nothing is downloaded: a package that is not there is named, with the command that installs it.

Exit status: 0 all is done and well; 1 something failed, which the file names; 2 nothing was measured, for want of a GPU or of
Triton; 3 parts are left for another call.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gpu_chart
import torch

from tmem import machine, ops
from tmem.bench import BENCHES, ON_GPU, about, captured, engines, gemm, kernels, rows, run_study
from tmem.bench.measure import Settings, ceilings, timer_of
from tmem.bench.parts import Part, go_on, plan
from tmem.files.objects import read_object, write_json

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 540  # seconds of a call
LIMITS = {"tests": 240, "sanitizer": 120, "forward": 300}  # seconds
WORKERS = "8"  # processes of the tests, most of whose time goes into compiling Triton's kernels
SANITIZED = "test_promises and (decode or copy or idle)"
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
ALONE = Settings(rounds=7, warmup=2)
BENCH_SECONDS = {"lora": 90, "step": 35, "decode": 90}
FORWARD_SECONDS, ENGINE_SECONDS = 12, 30  # the latter for each engine that is there: its import and its compilation
FIRST = 14  # contests that come before the benches: those of bf16 at the ranks 16 and 64, and attend


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
    """What nvidia-smi says of the first GPU, once a second while this runs."""

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

    def summary(self, before: dict) -> dict:
        """The least and the most of each, of this call and of what was seen before."""
        columns = dict(zip(CLOCKS.split(","), zip(*self.seen)))
        seen = {name: (*columns.get(name, ()), *before.get(name, ())) for name in CLOCKS.split(",")}
        return {name: [min(numbers), max(numbers)] for name, numbers in seen.items() if numbers}


def parts_of(architecture: str, gate: Callable) -> list[Part]:
    """All there is to do on a card, the most valuable first. gate: see tmem.bench.tournament.Ground."""
    from tmem.bench import gate as gates  # which needs Triton, as the two below do
    from tmem.bench import tournament
    from tmem.triton_kernels import configs

    def now(place):
        return configs.chosen(architecture, *place)

    def contest(place) -> Part:
        name = gates.named(place)

        def run(record: dict) -> None:
            played = tournament.play(place, tournament.Ground(gates.trials, gate, timer_of("cuda"), now))
            record.setdefault("tournament", {})[name] = played
            made = {key: record[key] for key in ("command", "device", "versions", "commit")}
            tournament.write_winners(architecture, record["tournament"], made)

        shapes = ", ".join(case.shape for case in gates.batches(place))
        over = "rows and columns" if place[0] == "attend" else "rows in segments"
        what = f"{tournament.candidates(place, now)} candidates; {over}: {shapes}"
        return Part(f"contest {name}", what, tournament.expected(place, now), run)

    contests = [contest(place) for place in tournament.contests()]
    rows_of, ranks = (", ".join(map(str, sizes)) for sizes in (kernels.ROWS, kernels.RANKS))
    updates = "; ".join(case.name for case in captured.cases(False))
    alone = f"{len(kernels.cases(False))} cases; {rows_of} rows in {', '.join(kernels.SEGMENTS)}; ranks {ranks}"
    return [
        Part("ceilings", "a copy and GEMMs", 5, _ceilings),
        Part("kernels", f"each kernel alone, {alone}", 60, _alone("kernel_rows")),
        *contests[:FIRST],
        *(Part(f"bench {n}", ", ".join(b for b in BENCHES[n] if b in ON_GPU), s, _bench(n)) for n, s in BENCH_SECONDS.items()),
        _beside_engines(),
        Part("captured", f"an online update, captured and launched: {updates}", 14, _captured),
        Part("gemm", "a layer's GEMM with expand inside, against both in turn", 45, _gemm),
        Part("kernels tuned", "each kernel alone, with the winners", 60, _alone("kernel_rows_tuned")),
        Part("tests", "tests/ops/test_gpu.py", 115, _tests),
        Part("sanitizer", f"compute-sanitizer on the tests {SANITIZED}", 30, _sanitizer),
        Part("rsvd", "batched_rsvd against other ways", 45, _rsvd),
        *contests[FIRST:],
    ]


def _beside_engines() -> Part:
    """Bench `forward`, with which engines are there."""
    states = {name: engines.state(name) for name in engines.ENGINES}
    there = sum(not state.startswith("not installed") for state in states.values())
    what = "adapters forward alone, beside serving engines: " + "; ".join(f"{n} {state}" for n, state in states.items())
    return Part("bench forward", what, FORWARD_SECONDS + ENGINE_SECONDS * there, _forward)


def _ceilings(record: dict) -> None:
    record["ceilings"] = ceilings(False, "cuda")


def _alone(key: str) -> Callable[[dict], None]:
    def run(record: dict) -> None:
        record[key] = kernels.measure_alone("cuda", ALONE, _progress)

    return run


def _gemm(record: dict) -> None:
    if torch.cuda.get_device_capability() < gemm.SINCE:
        record["gemm"] = {"rows": [], "dropped": {"all": "this GPU has no TMA"}}
    else:
        record["gemm"] = gemm.measure_gemm("cuda", ALONE, _progress)


def _captured(record: dict) -> None:
    record["captured"] = captured.measure_captured("cuda", Settings.quick(), _progress)
    for row in record["captured"]["rows"]:
        print(f"{row['case']:80}{row['provider']:10}{row['ms']:10.1f} ms {row['ratio']:6.2f}x")


def _bench(name: str) -> Callable[[dict], None]:
    def run(record: dict) -> None:
        settings = Settings()
        record["settings"] = {**vars(settings), "quick": False, "threads": torch.get_num_threads()}
        _keep(record, name, list(rows([name], False, settings, "cuda", _progress)))

    return run


def _forward(record: dict) -> None:
    """In a process of its own: a serving engine changes torch's settings and caches for the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "tmem", "bench", "forward", "--json", str(file)]
        subprocess.run(command, check=True, cwd=ROOT, timeout=LIMITS["forward"])
        _keep(record, "forward", read_object(file)["rows"])


def _keep(record: dict, name: str, found: list[dict]) -> None:
    """Put the rows of a bench in the place of those that the record has, and print them."""
    record["rows"] = [row for row in record.get("rows", []) if row["bench"] not in BENCHES[name]] + found
    for row in found:
        said = row.get("absent") or f"{row['ms'] * 1e3:10.1f} us {row['ratio']:6.2f}x"
        print(f"{row['bench']:7}{row['case']:44}{row['provider']:22}{said}")


def _tests(record: dict) -> None:
    record["tests"] = {**pytest_of("tests", ""), "commit": record["commit"]}


def _sanitizer(record: dict) -> None:
    record["sanitizer"] = {"status": "no compute-sanitizer on PATH"}
    if shutil.which("compute-sanitizer"):
        checked = "compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"
        record["sanitizer"] = pytest_of("sanitizer", SANITIZED, *checked)


def _rsvd(record: dict) -> None:
    record["rsvd"] = run_study("rsvd", watch=_progress)


def _progress(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", flush=True)


def dry() -> int:
    """Without a GPU: what would be run on one of sm_90."""
    print(plan(parts_of("sm_90", list)))
    print(f"A call of {LIMIT} s runs as many as fit, in this order, and the next call goes on.", flush=True)
    said = f"NOTHING WAS MEASURED: tools/gpu.py needs a GPU that torch can use, and torch {torch.__version__} here has none."
    print(said, file=sys.stderr)
    return 2


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--limit", type=float, default=LIMIT, help=f"seconds of this call ({LIMIT})")
    asked.add_argument("--again", action="store_true", help="begin anew, whatever is done already")
    given = asked.parse_args()
    if importlib.util.find_spec("triton") is None:
        print("NOTHING WAS MEASURED: tools/gpu.py needs Triton, which is not installed.", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        return dry()
    from triton.runtime.driver import driver

    from tmem.bench.gate import processes
    from tmem.triton_kernels import configs

    name = torch.cuda.get_device_name()
    path = ROOT / "results" / "gpu" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    served = {op: ops.kernel_for(op, "cuda") for op in ops.OPS + ops.TOKEN_PARTS}
    known = {"command": "make gpu", "device": name, "kernels": served, **about()}
    clocks = Clocks()
    clocks.start()
    with processes() as gate:
        parts = parts_of(configs.architecture(driver.active.get_current_target()), gate)
        record, left = go_on(parts, path, known, limit=given.limit, again=given.again, say=_say)
    clocks.over.set()
    seen = clocks.summary(record.get("gpu", {}).get("clocks", {}))
    record["gpu"] = {"name": name, "machine": machine.machine(), "clocks": seen}
    write_json(path, record)
    if {"bench lora", "bench decode"} <= record["parts"].keys():
        print(f"a picture of it: {gpu_chart.draw(record, path.with_suffix('.png')).name}")
    print(f"written to {path}; left: {', '.join(left) or 'nothing'}; failed: {', '.join(record['failed']) or 'nothing'}")
    return status(record, left)


def status(record: dict, left: list[str]) -> int:
    """The exit status of a call."""
    checks = (record[part]["status"] for part in ("tests", "sanitizer") if part in record)
    if record["failed"] or any(found not in (0, "no compute-sanitizer on PATH") for found in checks):
        return 1
    return 3 if left else 0


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main())
