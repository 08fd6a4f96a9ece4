"""What this machine is and which versions run on it: printed by `tmem info`, kept with every measured figure."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

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


def peak_memory() -> int | None:
    """The most bytes of memory that this process has held so far, on the CPU; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_bf16() -> str:
    """The instructions that multiply bf16 natively, "amx" or "avx512"; "" where bf16 would be slower than fp32."""
    flags = _cpuinfo().get("flags", "").split()
    return "amx" if "amx_bf16" in flags else "avx512" if "avx512_bf16" in flags else ""


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def keep_memory() -> None:
    """Ask glibc to keep freed memory for the next allocation instead of giving it back to the system, and torch to have large
    tensors lie on huge pages. Call it before the first tensor is made.

    A training pass allocates gigabytes of activations that the system would have to hand out again, zeroed, page by page:
    it takes up to a third of the time. For commands, not for libraries: it holds for the whole process. Passes of many
    shapes leave holes between what is kept; `give_memory_back` between steps bounds them.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    if (mallopt := _glibc("mallopt")) is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation is a mapping of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, on a GPU or in the CPU's allocator, or that no address reaches so far."""
    import torch

    said = "can't allocate memory", "Storage size calculation overflowed"
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(one in str(error) for one in said)


def rows_apart() -> bool:
    """Ask MKL for fp32 products in which a row's bits do not depend on how many rows there are; whether bf16's have that too.
    Call it before the first product.

    Intel's MKL has other kernels for few rows unless asked for its strict mode. oneDNN has no such mode for bf16 on AMX: there
    an episode among others agrees with one alone to rounding. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 gives the same bits, slower.
    For commands, not for libraries: it holds for the whole process.
    """
    if _cpuinfo().get("vendor_id") == "GenuineIntel":
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    return cpu_bf16() != "amx" or (limit not in ("", "ALL", "DEFAULT") and "AMX" not in limit)


def sleep_soon() -> None:
    """Ask libgomp to let threads sleep that have waited for others for some tens of microseconds, not for milliseconds. Call it
    before torch is imported.

    A thread that spins uses up its share of a core. Where another process wants one, the system puts such a thread aside just
    when the others need it, and a decoded token waits so hundreds of times. The price is waking threads where a core is free.
    For commands, not for libraries: it holds for the whole process. OMP_WAIT_POLICY and GOMP_SPINCOUNT overrule it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def give_memory_back(share: float = 0.3) -> bool:
    """Give freed memory back to the system if this process holds more than `share` of the machine's; whether it did."""
    trim = _glibc("malloc_trim")
    if trim is None or not Path("/proc/self/statm").exists():
        return False
    held = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])  # pages
    if held <= share * os.sysconf("SC_PHYS_PAGES"):
        return False
    return bool(trim(0))


def _glibc(name: str):
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def provenance() -> dict[str, Any]:
    """What a figure depends on: processor, cores, GPUs, versions (read from metadata), and the commit if in a checkout.

    The commit ends in "-dirty" when tracked files differ from it; an installed package has none.
    """
    found = {**machine(), **versions()}
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            found["commit"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            found["commit"] = None
    return found
