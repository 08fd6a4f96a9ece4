"""Launches that compile for a GPU of any architecture on any machine and run nothing: the launchers' own arguments decide what
is specialised, so what is compiled here is what would run."""

import contextlib
import re
import subprocess
import tempfile
from dataclasses import dataclass

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

# Architecture -> shared memory that a program may ask for.
CUDA = {name: kib * 1024 for name, kib in {"sm_80": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}.items()}
HIP = {name: kib * 1024 for name, kib in {"gfx942": 64, "gfx950": 160, "gfx1100": 64}.items()}
SHARED = CUDA | HIP


def target(name: str) -> GPUTarget:
    """Triton's name of an architecture."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 32 if name.startswith("gfx1") else 64)


class _Driver(DriverBase):
    """Says that the current GPU is of an architecture; of each, it is another device, as kernels are kept by device."""

    is_active = classmethod(lambda cls: True)
    map_python_to_cpp_type = get_active_torch_device = get_benchmarker = None

    def __init__(self, name: str):
        self.name = name

    def get_current_target(self):
        return target(self.name)

    def get_current_device(self):
        return list(SHARED).index(self.name)

    def get_current_stream(self, device):
        return 0


_Driver.__abstractmethods__ = frozenset()


@dataclass(frozen=True)
class Compiled:
    """One launch: its assembly, and what the binary takes. `registers` and bytes of `local` memory of a thread, spills
    among them; bytes of `shared` memory of a program."""

    text: str
    registers: int
    local: int
    shared: int
    ir: str  # what Triton made of the source


@contextlib.contextmanager
def compiling(name: str):
    """Within the block, launches compile for this architecture and do not run. Yields the list they are appended to, as
    (name, kernel)."""
    launches, before, run = [], driver._active, JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        launches.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    driver.set_active(_Driver(name))
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = before


def resources(kernel) -> Compiled:
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        parts = (re.search(rf"\.{key}:\s*(\d+)", text) for key in ("vgpr_count", "private_segment_fixed_size"))
        return Compiled(text, *(int(part.group(1)) for part in parts), kernel.metadata.shared, kernel.asm["ttir"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        dump = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", dump).groups())
    return Compiled(kernel.asm["ptx"], registers, stack + local, kernel.metadata.shared, kernel.asm["ttir"])
