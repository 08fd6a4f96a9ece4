"""What is measured against what: cases, providers, the table. Installed as `tmem.bench`.

A case is a shape with its numbers of bytes and flops; a provider is one way to compute it. Every provider is first held
against the case's oracle, then all are timed in turns in one process, and the machine's ceilings with them. `run` gives
what `tmem bench --json` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from .. import machine
from ..files import objects
from ..files.objects import read_object
from ..study import init, soak
from . import (
    attend,
    bits,
    branches,
    decode,
    episodes,
    experts,
    forward,
    fused,
    idle,
    loop,
    lora,
    model,
    overhead,
    promises,
    rsvd,
    serving,
    step,
    token,
    train,
    update,
)
from .measure import Settings, ceilings, measured

BENCHES = {
    "lora": {"lora": lora, "bits": bits, "experts": experts, "overhead": overhead, "model": model, "update": update},
    "step": {"step": step, "fused": fused, "idle": idle},
    "decode": {"decode": decode, "attend": attend, "token": token, "loop": loop},
    "forward": {"forward": forward},
    "branches": {"branches": branches},
}
"""What `tmem bench NAME` runs: training with adapters (one layer, one in few bits, a mixture of experts, tiny layers, the whole
decoder, one online update), their optimizer step (also inside the op of the gradient), decoding with them, its attention and
the rest of its layers; adapters forward alone, beside the kernels of serving engines; attention of texts that begin alike."""
STUDIES = {
    "rsvd": rsvd.compare_svds,
    "init": init.compare_inits,
    "train": train.time_grpo_step,
    "eval": episodes.time_episodes,
    "serve": serving.time_serving,
    "soak": soak.compare_settings,
    "promises": promises.compare_promises,
}
"""What `tmem bench NAME` runs one at a time, with rows of its own: see `run_study`."""
ON_GPU = (
    "lora",
    "bits",
    "step",
    "fused",
    "idle",
    "decode",
    "attend",
    "token",
    "loop",
    "forward",
)  # those of the whole decoder are for the CPU, where launches cost nothing


def run(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    threads: int | None = None,
    watch: Callable[[str, int, int], None] = lambda case, done, total: None,
) -> dict:
    """Time the named benches (none = all) on the GPU where there is one, else on the CPU.

    quick    tiny shapes and three rounds: shows that everything runs, says nothing about speed
    threads  of torch on the CPU, for this call
    watch    called with (bench and case, cases done, cases in all) before each case
    Returns {"machine", "versions", "commit" (None outside a checkout), "settings", "ceilings", "rows"}; one row per case
    and provider. Raises ValueError for an unknown name, WrongNumbers if a provider computes something else.
    """
    unknown = [n for n in names if n not in BENCHES]
    if unknown:
        raise ValueError(f"bench: expected {' or '.join(BENCHES)}, got {unknown[0]!r}.")
    settings = Settings.quick() if quick else Settings()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _threads(threads) as count:
        limits = ceilings(quick, device)
        found = list(rows(names or tuple(BENCHES), quick, settings, device, watch))
    kept = {"quick": quick, "threads": count, "rounds": settings.rounds, "warmup": settings.warmup}
    return {**about(), "settings": kept, "ceilings": limits, "rows": found}


def run_study(
    name: str,
    *,
    quick: bool = False,
    threads: int | None = None,
    watch: Callable[[str, int, int], None] = lambda part, done, total: None,
    partial: Path | None = None,
    **options,
) -> dict:
    """Run one of STUDIES; arguments as for `run`, `options` those of its own. Returns {"machine", "versions", "commit",
    "settings"} and what it found.

    partial  a file for the parts that are done, under what they depend on: a study that was interrupted goes on from there
    """
    if name not in STUDIES:
        raise ValueError(f"bench: expected {' or '.join(STUDIES)}, got {name!r}.")
    parts = read_object(partial) if partial and partial.exists() else {}

    def kept(key: str, make: Callable[[], list]) -> list:
        if key not in parts:
            parts[key] = make()
            if partial:
                objects.write_json(partial, parts)
        return parts[key]

    with _threads(threads) as count:
        found = STUDIES[name](quick, watch, kept, **options)
    return {**about(), "settings": {"quick": quick, "threads": count}, **found}


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def about() -> dict:
    """What every committed run says of where it was made."""
    return {"machine": machine.machine(), "versions": machine.versions(), "commit": machine.provenance().get("commit")}


def rows(
    names: Sequence[str], quick: bool, settings: Settings, device: str, watch: Callable[[str, int, int], None]
) -> Iterator[dict]:
    """The rows of `run`, one by one as they are measured."""
    benches = [(n, b) for name in dict.fromkeys(names) for n, b in BENCHES[name].items()]
    todo = [
        (name, bench, case)
        for name, bench in benches
        if device == "cpu" or name in ON_GPU
        for case in bench.cases(quick, device)
    ]
    for done, (name, bench, case) in enumerate(todo):
        watch(f"{name} {case.name}", done, len(todo))
        kept = settings.slow() if getattr(bench, "SLOW", False) else settings
        for row in measured(name, case, bench.providers(case, device), bench.RATIO_TO, kept, device):
            yield {**row, "sweep": getattr(case, "sweep", "")}
