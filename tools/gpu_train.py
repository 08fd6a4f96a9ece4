"""Training on one GPU to its last line, within 8 minutes: `make gpu-train`, or `python tools/gpu_train.py`.

Without --shape it runs tmem's trainer on the default model: warm start and RL, with an evaluation before, between and after. It
leaves summary.json, metrics.jsonl, timings.jsonl and the trained adapter in OUT/DEVICE, 16 MB at most. The control, which would
come next, is left out.

With --shape 4b or 8b it runs one full GRPO step of a model of that shape with random weights, in the paper's setting. It leaves
shape-4b.json or shape-8b.json there. See tmem.bench.full_step for what the step is.

With --tiny both do the same at a size that takes seconds, on a GPU or the CPU.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tmem import machine
from tmem.bench import about
from tmem.bench.full_step import MODELS, PRESET, Work, beside, measured
from tmem.files.folders import atomic_file, atomic_folder
from tmem.files.objects import write_json
from tmem.models import loading
from tmem.models.tiny import default_or_tiny
from tmem.rl.trainer import Interrupted, Progress, Trainer

ROOT = Path(__file__).resolve().parents[1]
MOST = 16 * 2**20  # bytes of all files together
LINES = ("metrics.jsonl", "timings.jsonl")


class Limit:
    """Seconds from now on."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, time.perf_counter()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.start

    @property
    def over(self) -> bool:
        return self.spent > self.seconds


def trained(out: Path, found: dict, limit: Limit, tiny: bool) -> bool:
    """Run the trainer and keep what is small of it in `out`; whether it came to the evaluation after RL within the limit."""
    with tempfile.TemporaryDirectory(prefix="tmem-gpu-train-") as folder:
        run, model = Path(folder) / "run", None
        if tiny:
            model = str(Path(folder) / "model")
            loading.save_model(*default_or_tiny(True, "cpu", torch.float32), model)
        preset = Path(__file__).with_name("gpu_train_tiny.toml" if tiny else "gpu_train.toml")
        trainer = Trainer(str(preset), run, model=model)
        phases, failed = trainer.state["evaluations"], {}
        try:
            trainer.run(Progress(_row, warn=_say), stop=lambda: limit.over or "rl" in phases)
        except Interrupted:
            pass  # at the limit, or before the control
        except Exception as error:  # what came before it is still worth keeping
            failed = _failed(error)
        complete, last = "rl" in phases, next((phase for phase in ("rl", "warm") if (run / phase).is_dir()), None)
        found |= {"preset": f"tools/{preset.name}", "adapter_of": last, "complete": complete, **failed}
        _keep(run, last, out)
        write_json(out / "summary.json", {**found, "seconds_in_all": round(limit.spent, 1), **trainer.summary()})
    return complete


def _keep(run: Path, last: str | None, out: Path) -> None:
    """Copy the lines of a run and the adapter of its phase `last`; what an earlier run left in their place goes."""
    for name in LINES:
        with atomic_file(out / name) as work:
            work.write_bytes((run / name).read_bytes() if (run / name).is_file() else b"")
    if last is None:
        shutil.rmtree(out / "adapter", ignore_errors=True)
        return
    with atomic_folder(out / "adapter", loading.ADAPTER) as work:
        shutil.copytree(run / last, work, dirs_exist_ok=True)


def shaped(out: Path, found: dict, limit: Limit, size: str, episodes: int, tiny: bool) -> bool:
    """Run the step and keep its figures in `out`; whether it was a whole one within the limit."""

    def note(what: str) -> None:
        if limit.over:
            raise TimeoutError(f"the limit of {limit.seconds:g} s was over at: {what}")
        _say(f"{limit.spent:.0f} s: {what}")

    device = _device()
    dtype, work = loading.default_dtype(device), Work.of(size, episodes, tiny)
    path, config = out / f"shape-{size}.json", work.train
    found |= {
        "model": work.model, "weights": "random", "preset": PRESET, "policy": config.policy, "rank": config.policy_rank,
        "dtype": str(dtype).removeprefix("torch."), "episodes": config.rl_episodes, "group": config.rl_group,
        "writes": work.writes, "window": work.agent.write.window, "max_new": work.agent.write.max_new, "pairs": work.pairs,
        "questions": work.questions, "plan": work.plan(dtype), "complete": False,
    }  # fmt: skip
    write_json(path, found)
    try:
        found |= measured(work, device, dtype, note)
        row = found["row"]
        found["complete"] = row["live_tokens"] == row["tokens"] and not (row["skipped_groups"] or row["update_skipped"])
        write_json(path, found)  # whatever becomes of the other trainer
        found["trl"] = _beside(work, device, dtype, note)
    except Exception as error:  # the plan is still worth keeping
        found |= _failed(error)
    write_json(path, found)
    for name in ("seconds", "tokens_per_second", "mfu", "share_of_gemm_rate", "memory", "trl"):
        print(name, found.get(name))
    return found["complete"]


def _beside(work: Work, device: str, dtype: torch.dtype, note: Callable[[str], None]) -> dict:
    """What TRL takes for the writes; its failure is no failure of the step."""
    try:
        return beside(work, device, dtype, note)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> dict[str, str]:
    """What a file says of an error, which is printed whole."""
    traceback.print_exception(error)
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def main(words: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if words is None else words)
    parser = _parser()
    options = parser.parse_args(words)
    if options.episodes < 1:
        parser.error(f"--episodes: expected 1 or more, got {options.episodes}")
    if not (torch.cuda.is_available() or options.tiny):
        print(
            f"tools/gpu_train.py needs a GPU that torch can use, and torch {torch.__version__} here has none; --tiny shows on "
            f"the CPU that the command runs.",
            file=sys.stderr,
        )
        return 2
    limit = Limit(options.limit)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    default = ROOT / ("runs" if options.tiny else "results") / "gpu-train"
    out = (options.out or default) / re.sub(r"[^a-z0-9]+", "-", name.lower())
    command = shlex.join(["python", "tools/gpu_train.py", *words])
    found = {"command": command, "device": name, "tiny": options.tiny, "limit": options.limit, **about()}
    if not options.tiny:
        machine.keep_memory()  # as `tmem train` does
    if options.shape:
        complete = shaped(out, found, limit, options.shape, options.episodes, options.tiny)
    else:
        complete = trained(out, found, limit, options.tiny)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{limit.spent:.0f} s; {size / 1e6:.1f} MB in {out}{'' if complete else '; not complete'}")
    return 0 if complete and size <= MOST else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=MODELS, help="one GRPO step of this shape instead of a training run")
    parser.add_argument("--episodes", type=int, default=1, help="of --shape, with the preset's group each [1]")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds after which it stops, at the next step [480]")
    parser.add_argument("--out", type=Path, help="folder of the results [results/gpu-train; of --tiny runs/gpu-train]")
    parser.add_argument("--tiny", action="store_true", help="at a tiny size, on the CPU where there is no GPU")
    return parser


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _row(row: dict) -> None:
    """One line for each step and evaluation."""
    shown = {k: row[k] for k in ("mode", "loss", "reward", "recall", "f1", "dlogp", "tokens") if row.get(k) is not None}
    numbers = " ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
    _say(f"{row['phase']} {row['step']}: {row['seconds']:.1f} s  {numbers}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
