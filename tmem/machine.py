"""What this machine is and which versions run on it: printed by `tmem info`, kept with every measured figure."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("tmem", "torch", "transformers", "peft", "triton", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Version of Python and of each installed package in PACKAGES; read from metadata, nothing is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict:
    """{"cpu", "cores", "simd", "bf16", "memory_gib", "gpus": [{"name", "sm", "memory_gib"}]}; cores: those allowed."""
    import torch

    gpus = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        gpus.append({"name": p.name, "sm": f"{p.major}{p.minor}", "memory_gib": round(p.total_memory / 2**30, 1)})
    return {
        "cpu": _cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "bf16": cpu_bf16(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
    }


def cpu_bf16() -> str:
    """The instructions that multiply bf16 natively, "amx" or "avx512"; "" where bf16 would be slower than fp32."""
    flags = _cpuinfo().get("flags", "").split()
    return "amx" if "amx_bf16" in flags else "avx512" if "avx512_bf16" in flags else ""


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def keep_memory() -> None:
    """Ask glibc to keep freed memory for the next allocation instead of giving it back to the system.

    A training pass allocates gigabytes of activations that the system would have to hand out again, zeroed, page by page:
    it takes up to a third of the time. For commands, not for libraries: it holds for the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation is a mapping of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
