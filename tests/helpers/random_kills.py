"""A run of a tiny model killed at random moments and resumed each time, against the same run undisturbed.

    python tests/random_kills.py OUT [--kills 20] [--seed 0]

Too long for the suite, which kills at three chosen moments. Writes OUT/kills.json.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from tiny_run import lines, weights

from tmem import machine
from tmem.files import objects


def command(out, resume):
    extra = ["--resume"] if resume else []
    return [sys.executable, str(Path(__file__).with_name("tiny_run.py")), str(out), "--long", *extra]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, (whole, out) = random.Random(options.seed), (options.out / n / "run" for n in ("undisturbed", "killed"))
    subprocess.run(command(whole, False), check=True)
    seconds = sum(r["seconds"] for r in lines(whole, "timings"))
    killed = []
    while len(killed) < options.kills:
        process = subprocess.Popen(command(out, (out / "run.json").exists()))
        while process.poll() is None and not alive_since(out, process):
            time.sleep(0.05)
        # The run advances by a share of what is left, so that all kills find it still at work.
        time.sleep(rng.uniform(0, 1.5 * seconds / options.kills))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        folders = sorted(f.name for f in out.glob("checkpoints/*"))
        last = lines(out)[-1] if (out / "metrics.jsonl").read_text().endswith("\n") else {"phase": "inside a line", "step": -1}
        killed.append({"phase": last["phase"], "step": last["step"], "half_written": any(f.startswith(".") for f in folders)})
        print(len(killed), killed[-1], flush=True)
    subprocess.run(command(out, True), check=True)
    same = {
        "metrics.jsonl": (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text(),
        "segments.jsonl": (out / "segments.jsonl").read_text() == (whole / "segments.jsonl").read_text(),
        **{f"{p} weights": all(torch.equal(v, weights(out, p)[k]) for k, v in weights(whole, p).items())
           for p in ("warm", "rl", "sft")},
    }  # fmt: skip
    objects.write_json(options.out / "kills.json", {"kills": killed, "same": same, "machine": machine.provenance()})
    print(json.dumps(same))
    sys.exit(not all(same.values()))


def alive_since(out, process) -> bool:
    """Whether this process has begun to write."""
    file = out / "timings.jsonl"
    return file.exists() and file.stat().st_mtime > started(process)


def started(process) -> float:
    return Path(f"/proc/{process.pid}").stat().st_mtime


if __name__ == "__main__":
    main()
