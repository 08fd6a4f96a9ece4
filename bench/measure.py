"""Hold every provider of a case against the oracle, then time them in turns in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..testing import TOLERANCES, rel_rms


class WrongNumbers(Exception):
    """A provider computes something else than the case's oracle; nothing was timed."""


@dataclass(frozen=True)
class Settings:
    """Rounds in which each provider is timed once, after `warmup` rounds that are not kept."""

    rounds: int = 15
    warmup: int = 3

    @classmethod
    def quick(cls) -> Settings:
        return cls(rounds=3, warmup=1)


@dataclass(frozen=True)
class Provider:
    """One way to compute a case.

    call      what is timed
    results   computes the case once and returns it by name, in the layout of `oracle`
    oracle    the same names in fp64
    prepare   what each call needs but a user would not pay for at this place; never timed
    """

    call: Callable[[], object]
    results: Callable[[], dict[str, Tensor]]
    oracle: dict[str, Tensor]
    prepare: Callable[[], object] = lambda: None


def measured(bench: str, case, providers: dict[str, Provider], ratio_to: str, settings: Settings, device: str):
    """The rows of one case: median, p20, p80 and min in ms, ratio of the medians to provider `ratio_to`'s.

    `of_copy` is the time of a plain copy that moves case.bytes, timed in the same rounds, over the provider's time: the
    fraction of the measured copy bandwidth that the task's least traffic reaches. More than 1 means that its data
    stayed in the caches, or that a copy, half of whose traffic is writes, is not the fastest use of this memory.
    Raises WrongNumbers before anything is timed.
    """
    for name, provider in providers.items():
        _check(bench, case, name, provider)
    copied = torch.ones(2, -(-case.bytes // 8), device=device)  # not zeros: those share one page until written
    times = _in_turns(
        {"copy": Provider(lambda: copied[0].copy_(copied[1]), dict, {}), **providers}, settings, device
    )
    quantiles = {name: _quantiles(ms) for name, ms in times.items()}
    copy = quantiles.pop("copy")["ms"]
    return [
        {
            "bench": bench, "case": case.name, "provider": name, "device": device,
            "dtype": str(case.dtype).removeprefix("torch."), **q,
            "ratio": q["ms"] / quantiles[ratio_to]["ms"], "ratio_to": ratio_to,
            "flops": case.flops, "bytes": case.bytes, "of_copy": copy / q["ms"],
            "copy_gb_per_s": case.bytes / copy / 1e6,
        }
        for name, q in quantiles.items()
    ]  # fmt: skip


def _check(bench: str, case, name: str, provider: Provider) -> None:
    found = provider.results()
    if found.keys() != provider.oracle.keys():
        raise WrongNumbers(f"bench {bench}, {case.name}: {name} gives {list(found)}, expected {list(provider.oracle)}.")
    for what, out in found.items():
        expected = provider.oracle[what]
        off = rel_rms(out, expected) if out.shape == expected.shape else float("inf")
        if not off <= TOLERANCES[out.dtype]:
            raise WrongNumbers(
                f"bench {bench}, {case.name}, {case.dtype}: {what} of {name} is {off:.2g} (relative RMS) off the fp64"
                f" oracle, allowed {TOLERANCES[out.dtype]:.2g}; nothing was timed."
            )


def _in_turns(providers: dict[str, Provider], settings: Settings, device: str) -> dict[str, list[float]]:
    """ms of every kept round. Each round starts with another provider, so that none always follows the same one."""
    timer = _cuda_ms if device == "cuda" else _cpu_ms
    times, names = {name: [] for name in providers}, list(providers)
    gc.collect()
    gc.disable()
    try:
        for i in range(settings.warmup + settings.rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                providers[name].prepare()
                ms = timer(providers[name].call)
                if i >= settings.warmup:
                    times[name].append(ms)
    finally:
        gc.enable()
    return times


def _cpu_ms(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _cuda_ms(call: Callable) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def _quantiles(ms: list[float]) -> dict[str, float]:
    p20, p50, p80 = torch.tensor(ms, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    return {"ms": p50, "p20": p20, "p80": p80, "min": min(ms)}
