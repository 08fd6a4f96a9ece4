"""Who may take part in a tournament: what compiles without spills and computes what the oracle does, found side by side."""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..triton_kernels import attend, backward, configs, expand, gram, shrink, winners
from ..triton_kernels.configs import Config
from .attend import AttendCase
from .kernels import RATIO_TO, Case, KernelCase, lengths, providers
from .measure import Provider, WrongNumbers, check

Place = tuple[str, int, int, int]  # kernel, bits of an activation, of a factor, rank
Entrant = dict[Place, Config]
Trials = dict[Case, Provider]

HOLDS = "as it is"  # the name of what changes nothing
WORKERS = 8  # processes that compile: most of a contest's time
PATIENCE = 60.0  # seconds that they have for the entrants of a round
LOST = re.compile(r"CUDA error|Error \[CUDA\]")  # after which nothing in a process can be believed
_TYPES = {(16, 16): torch.bfloat16, (16, 32): torch.float32}  # bits -> dtype of a factor beside bf16


def named(place: Place) -> str:
    return " ".join(map(str, place))


def label(entrant: Entrant) -> str:
    """ "kernel bits bits rank: bd=64 warps=4 ..." of each place that it changes."""
    each = (f"{named(p)}: " + " ".join(f"{name}={getattr(c, name)}" for name in winners.SIZES) for p, c in entrant.items())
    return "; ".join(each) or HOLDS


def batches(place: Place, small: bool = False) -> list[KernelCase] | list[AttendCase]:
    """What a place is played over: many short segments, few long ones, ragged; of attend few rows and many, short and long;
    `small`: what is enough to find a wrong one."""
    kernel, _, factor, rank = place
    if kernel == "attend":
        sizes = [(3, 700, 1024)] if small else [(1, 2000, 2048), (16, 400, 512), (16, 3000, 4096), (64, 1100, 2048)]
        return [AttendCase(rows, length, torch.bfloat16, 32, 8, rank, bucket) for rows, length, bucket in sizes]
    if kernel == "gram of few slots":
        shapes = [(200, "128")] if small else [(256, "128"), (4096, "1024")]
    else:
        shapes = [(300, "16"), (1024, "ragged")] if small else [(1024, "16"), (1024, "128"), (4096, "ragged"), (8192, "128")]
    name = {"shrink of several factors": "shrink of 3", "gram of few slots": "gram"}.get(kernel, kernel)
    return [KernelCase(name, rank, kind, lengths(rows, kind), factor=_TYPES[16, factor]) for rows, kind in shapes]


def trials(place: Place, small: bool = False) -> Trials:
    """The batches with what runs the kernel there, on the GPU."""
    return {case: providers(case, "cuda")[RATIO_TO] for case in batches(place, small)}


_small = functools.lru_cache(4)(functools.partial(trials, small=True))  # as many as an entrant has places


def wrong(entrant: Entrant, trials: Trials) -> str:
    """Why an entrant may not be timed over these batches: what it raises, or how far it is off. "" if it may."""
    try:
        with configs.instead(entrant):
            for case, provider in trials.items():
                check("tournament", case, label(entrant), provider)
    except WrongNumbers as error:
        return str(error)
    except Exception as error:  # compilers and drivers have many; the next entrant may be better
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def proven(entrant: Entrant) -> str:
    """Why an entrant may not take part, at any of its places. "" if it may."""
    configs.forget()  # this process is older than the last winners
    before = _compiled()
    for place in entrant:
        if reason := wrong(entrant, _small(place)):
            return reason
    new = [kernel for key, kernel in _compiled().items() if key not in before]
    spilled = [kernel.n_spills for kernel in new if getattr(kernel, "n_spills", 0)]  # a kernel never launched has none
    return f"spills registers: {max(spilled)}" if spilled else ""


def _compiled() -> dict:
    """Kernels of the table that this process has compiled, by identity."""
    functions = (
        shrink.shrink_kernel, expand.expand_kernel, backward.backward_kernel, gram.gram_kernel, attend.parts_kernel,
    )  # fmt: skip
    return {id(kernel): kernel for f in functions for held in f.device_caches.values() for kernel in held[0].values()}


@contextmanager
def processes(
    workers: int = WORKERS, patience: float = PATIENCE, prove: Callable = proven
) -> Iterator[Callable[[list], list[str]]]:
    """Within the block, what gives of each entrant why it may not take part, "" if it may, by processes that try them side by
    side. What they compile lies in Triton's cache for all.

    Who failed in a process after a fault of the GPU is tried once more, in a new one. Who gave no answer is not.
    """
    spawn = multiprocessing.get_context("spawn")
    count = min(workers, os.cpu_count() or 1)
    pool = None

    def answers(pool, entrants: list) -> list[str]:
        until, waiting = time.monotonic() + patience, [pool.apply_async(prove, (entrant,)) for entrant in entrants]
        return [_answer(one, until - time.monotonic()) for one in waiting]

    def _answer(one, seconds: float) -> str:
        try:
            return one.get(max(seconds, 0.0))
        except multiprocessing.TimeoutError:
            return f"no answer in {patience:g} s"
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:300]

    def gate(entrants: list) -> list[str]:
        nonlocal pool
        pool = pool or spawn.Pool(count)
        found = answers(pool, entrants)
        if any(LOST.search(reason) or reason.startswith("no answer") for reason in found):
            pool.terminate()
            pool = None
        for i, reason in enumerate(found):
            if LOST.search(reason):
                with spawn.Pool(1) as one:
                    found[i] = answers(one, [entrants[i]])[0]
        return found

    try:
        yield gate
    finally:
        if pool:
            pool.terminate()
