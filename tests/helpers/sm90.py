"""Launches that compile for an H100 (sm_90) on any machine and run nothing: the launchers' own arguments decide what is
specialised, so what is compiled here is what would run."""

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


class _Sm90(DriverBase):
    is_active = classmethod(lambda cls: True)
    map_python_to_cpp_type = get_active_torch_device = get_benchmarker = None

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


_Sm90.__abstractmethods__ = frozenset()


@dataclass(frozen=True)
class Compiled:
    """One launch: kernel name, PTX, and what the binary takes. `local` bytes of a thread, spills among them; `shared`
    bytes of a program."""

    name: str
    ptx: str
    registers: int
    local: int
    shared: int
    key: object


@contextlib.contextmanager
def compiling():
    """Within the block, launches compile and do not run. Yields the list they are appended to, as (name, kernel)."""
    launches, before, run = [], driver._active, JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        launches.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    driver.set_active(_Sm90())
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = before


def resources(name, kernel) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text).groups())
    return Compiled(name, kernel.asm["ptx"], registers, stack + local, kernel.metadata.shared, kernel.hash)
