"""The CUDA kernels without a GPU: emulated on the CPU, compiled by nvcc, held to their budgets, registered."""

import json
import re
import subprocess
import sys
from pathlib import Path

import budgets
import checks
import gpu_rows
import pytest
import torch
from emulator import told

from tmem import ops

EMULATED = [c.__name__ for c in (checks.decode, *checks.BANK, *gpu_rows.EMULATED)]
OPS = ("lora_decode_", "bank_step_", "bank_copy_", *ops.SVD_PARTS)
LIBRARY = Path(__file__).parents[2] / "tmem/libtmem_cuda.so"
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA library was not built: no nvcc was found")


@pytest.fixture(scope="session")
def emulated(emulated_library):
    return told(emulated_library(), "emulated.py")


@pytest.mark.parametrize("check", EMULATED)
def test_emulated(emulated, check):
    """The promises that the C++ kernels keep, kept by the CUDA kernels: every thread, barrier and shuffle run on the CPU."""
    assert not emulated[check], emulated[check]
    assert len(emulated) == len(EMULATED)


def test_the_emulation_sees_a_missing_barrier(emulated_library):
    seen = ("decode", "step")
    found = told(emulated_library("-DTMEM_WITHOUT_BARRIERS"), "emulated.py", *seen)
    assert found.keys() == set(seen) and all("AssertionError" in found[check] for check in seen), found


@needs_library
def test_registered_for_cuda():
    """The library loads where torch has no CUDA, and takes over its ops for key CUDA and no other; Triton serves the rest."""
    key = "torch._C._dispatch_has_kernel_for_dispatch_key(f'tmem::{op}', '%s')"
    code = f"""import torch
torch.version.cuda = "13.0"  # as on the machine that the library is for
from tmem import ops
both = ops.OPS + ops.SVD_PARTS
print(*[ops.kernel_for(op, "cpu") for op in both], sep=",")
print(*sorted(op for op in both if {key % "CUDA"}))
print(*[ops.kernel_for(op, "cuda") for op in {OPS}], sep=",")
print(ops.kernel_for("lora_shrink", "cuda"))"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr  # an op that two kernels serve is warned of
    cpu, registered, served, triton = done.stdout.splitlines()
    assert cpu.split(",") == [ops.kernel_for(op, "cpu") for op in ops.OPS + ops.SVD_PARTS]
    own = set(ops.OPS + ops.SVD_PARTS)
    assert registered.split() == sorted(own), "an op has no kernel of its own on a GPU"
    assert set(served.split(",")) == {"CUDA C++"} and triton == "Triton"


@needs_library
def test_without_cuda_a_call_says_so():
    """A CPU tensor never reaches the CUDA kernels; a GPU tensor needs a torch that can make one."""
    code = f"import torch; from tmem import ops; torch.ops.load_library({str(LIBRARY)!r}); torch.zeros(1, device='cuda')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert torch.cuda.is_available() or "not compiled with CUDA" in done.stderr or "NVIDIA" in done.stderr


@pytest.fixture(scope="session")
def library():
    return budgets.library(LIBRARY)


@needs_library
def test_budgets_of_the_library(library):
    """After a change that is meant: python tests/helpers/budgets.py, and look at the diff."""
    allowed = {name: row for name, row in json.loads(budgets.FILE.read_text()).items() if name.startswith("nvcc ")}
    assert library.keys() == allowed.keys()
    assert {name: row for name, row in library.items() if row["local"]} == {}
    over = {
        name: row for name, row in library.items()
        if row["registers"] > allowed[name]["registers"] or row["shared"] > allowed[name]["shared"]
    }  # fmt: skip
    assert not over


@needs_library
def test_wide_loads_are_16_bytes(library):
    """Where rows are aligned, a factor is read 16 bytes at a time: seen in the machine code."""
    code = budgets.machine_code(LIBRARY)
    for name in library:
        wide = len(re.findall(r"LDG\.E\.128", code[name]))
        kernel = name.removeprefix("nvcc ")
        assert (wide >= 8) if "true" in kernel and "down" in kernel else True, name
        in_order = re.match(r"multiply(_bf16)?<(\w+, )?[01], ", kernel)
        assert (wide > 0) == bool("true" in kernel or kernel == "copy_rows" or in_order), name
