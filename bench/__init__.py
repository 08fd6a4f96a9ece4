"""What is measured against what: cases, providers, the table. Installed as `tmem.bench`.

A case is a shape with its numbers of bytes and flops; a provider is one way to compute it. Every provider is first held
against the case's fp64 oracle, then all are timed in turns in one process. `run` gives what `tmem bench --json` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .. import machine, report
from . import lora, step
from .measure import Settings, measured

BENCHES = {"lora": lora, "step": step}


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
    Returns {"machine", "versions", "commit" (None outside a checkout), "settings", "rows"}; one row per case and provider.
    Raises ValueError for an unknown name, WrongNumbers if a provider computes something else than the oracle.
    """
    unknown = [n for n in names if n not in BENCHES]
    if unknown:
        raise ValueError(f"bench: expected {' or '.join(BENCHES)}, got {unknown[0]!r}.")
    settings = Settings.quick() if quick else Settings()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows = list(_rows(names or tuple(BENCHES), quick, settings, watch))
        kept = {"quick": quick, "threads": torch.get_num_threads(), "rounds": settings.rounds, "warmup": settings.warmup}
    finally:
        torch.set_num_threads(before)
    return {
        "machine": machine.machine(),
        "versions": machine.versions(),
        "commit": report.machine().get("commit"),
        "settings": kept,
        "rows": rows,
    }


def _rows(names, quick, settings, watch):
    todo = [(name, case) for name in dict.fromkeys(names) for case in BENCHES[name].cases(quick)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for done, (name, case) in enumerate(todo):
        watch(f"{name} {case.name}", done, len(todo))
        yield from measured(name, case, BENCHES[name].providers(case, device), BENCHES[name].RATIO_TO, settings, device)
