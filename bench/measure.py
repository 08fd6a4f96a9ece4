"""Hold every provider of a case against the oracle, then time them in turns in one process."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..testing import TOLERANCES, rel_rms

Name = TypeVar("Name")
SPLIT = 5e-5  # of fp32 results on a GPU, whose fp32 operands are split into two bf16 parts: 2^-17 a product


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

    def slow(self) -> Settings:
        """For cases of seconds: half the rounds, and one of warm-up."""
        return Settings(rounds=max(3, self.rounds // 2), warmup=1)


@dataclass(frozen=True)
class Provider:
    """One way to compute a case.

    call      what is timed
    results   computes the case once and returns it by name, in the layout of `oracle`
    oracle    the same names in fp64
    prepare   what each call needs but a user would not pay for at this place; never timed
    tolerance relative RMS that the results may be off; None: that of their dtype, for one op
    absent    why it cannot take part; "" if it does
    """

    call: Callable[[], object]
    results: Callable[[], dict[str, Tensor]]
    oracle: dict[str, Tensor]
    prepare: Callable[[], object] = lambda: None
    tolerance: float | None = None
    absent: str = ""


def left_out(why: str) -> Provider:
    """In the place of a provider that cannot take part."""
    return Provider(lambda: None, dict, {}, absent=why)


def measured(bench: str, case, providers: dict[str, Provider], ratio_to: str, settings: Settings, device: str):
    """The rows of one case: median, p20, p80 and min in ms; ratio to provider `ratio_to`: the median of the rounds' own
    ratios, each of two times taken within seconds, so that a machine that slows down for a while does not tilt it.

    `of_copy` is the time of a plain copy that moves case.bytes, timed in the same rounds, over the provider's time: the
    fraction of the measured copy bandwidth that the task's least traffic reaches. More than 1 means that its data
    stayed in the caches, or that a copy, half of whose traffic is writes, is not the fastest use of this memory.
    A provider that is left out has a row with "absent", which says why, and no times. Raises WrongNumbers before anything is
    timed.
    """
    absent = {name: provider.absent for name, provider in providers.items() if provider.absent}
    providers = {name: provider for name, provider in providers.items() if not provider.absent}
    for name, provider in providers.items():
        check(bench, case, name, provider)
    copied = torch.ones(2, -(-case.bytes // 8), device=device)  # not zeros: those share one page until written
    times = _in_turns({"copy": Provider(lambda: copied[0].copy_(copied[1]), dict, {}), **providers}, settings, timer_of(device))
    quantiles = {name: _quantiles(ms) for name, ms in times.items()}
    copy = quantiles.pop("copy")["ms"]
    dtype = getattr(case, "precision", str(case.dtype).removeprefix("torch."))
    same = {"bench": bench, "case": case.name, "device": device, "dtype": dtype}
    rows = [
        {
            **same, "provider": name, **q,
            "ratio": statistics.median(a / b for a, b in zip(times[name], times[ratio_to])), "ratio_to": ratio_to,
            "flops": case.flops, "bytes": case.bytes, "of_copy": copy / q["ms"],
            "copy_gb_per_s": case.bytes / copy / 1e6,
        }
        for name, q in quantiles.items()
    ]  # fmt: skip
    return [*rows, *({**same, "provider": name, "absent": why} for name, why in absent.items())]


def check(bench: str, case, name: str, provider: Provider) -> None:
    """Raises WrongNumbers where a provider's results are further off its oracle than their dtype may be."""
    found = provider.results()
    if found.keys() != provider.oracle.keys():
        raise WrongNumbers(f"bench {bench}, {case.name}: {name} gives {list(found)}, expected {list(provider.oracle)}.")
    for what, out in found.items():
        expected = provider.oracle[what]
        off = rel_rms(out, expected) if out.shape == expected.shape else float("inf")
        allowed = provider.tolerance or (SPLIT if out.is_cuda and out.dtype == torch.float32 else TOLERANCES[out.dtype])
        if not off <= allowed:
            raise WrongNumbers(
                f"bench {bench}, {case.name}, {case.dtype}: {what} of {name} is {off:.2g} (relative RMS) off the"
                f" oracle, allowed {allowed:.2g}; nothing was timed."
            )


def timer_of(device: str) -> Callable[[Callable], float]:
    """What gives the ms of a call there."""
    return _cuda_ms if device == "cuda" else _cpu_ms


def absences(rows: Iterable[dict]) -> list[str]:
    """A sentence for each provider that was left out, and why, each once."""
    return list(dict.fromkeys(f"{row['provider']}: {row['absent']}" for row in rows if "absent" in row))


def _in_turns(
    providers: dict[Name, Provider], settings: Settings, timer: Callable[[Callable], float]
) -> dict[Name, list[float]]:
    """ms of every kept round. Each round starts with another provider, so that none always follows the same one."""
    times: dict[Name, list[float]] = {name: [] for name in providers}
    names = list(providers)
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


_QUEUE = 6_000_000  # cycles that a GPU waits before what is timed begins: 3 to 4 ms
_FLUSH = 256 << 20  # bytes written before each call on a GPU: more than any second-level cache holds


def _cuda_ms(call: Callable) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # Written on the same stream: the cache is cold. Then the device waits, so that the launches of `call` queue up and its
    # kernels follow each other without gaps, as in a captured graph; what no queue can hide stays in the time.
    torch.empty(_FLUSH, dtype=torch.int8, device="cuda").zero_()
    torch.cuda._sleep(_QUEUE)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def ceilings(quick: bool, device: str) -> dict[str, float]:
    """What this machine reaches, best of some: a copy larger than its caches (GB/s read and written), GEMMs (GF/s)."""
    timer, found = timer_of(device), {}
    count, size = (1 << 16, 128) if quick else (1 << 28, 8192) if device == "cuda" else (1 << 25, 2048)
    source, target = torch.ones(count, device=device), torch.ones(count, device=device)
    best = min(timer(lambda: target.copy_(source)) for _ in range(7))
    found["copy GB/s"] = 8 * count / best / 1e6
    before = torch.get_float32_matmul_precision()
    try:
        for name in ("float32", "float32 medium", "bfloat16"):
            torch.set_float32_matmul_precision("medium" if "medium" in name else "highest")
            dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
            gemm = functools.partial(torch.matmul, *torch.randn(2, size, size, device=device).to(dtype))
            found[f"{name} GF/s"] = 2 * size**3 / min(timer(gemm) for _ in range(5)) / 1e6
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def _quantiles(ms: list[float]) -> dict[str, float]:
    p20, p50, p80 = torch.tensor(ms, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    return {"ms": p50, "p20": p20, "p80": p80, "min": min(ms)}
