"""The CUDA kernels' library, compiled for the CPU, and what scripts say of it."""

import json
import subprocess
from pathlib import Path

import forked
import torch
from filelock import FileLock

HELPERS = Path(__file__).parent
SOURCES = sorted(f for f in (HELPERS.parents[1] / "csrc/cuda").iterdir() if f.suffix in (".cu", ".cpp"))
H100 = (9, 232448)  # compute capability, shared memory of a block


def build(folder: Path, *flags: str) -> Path:
    """The library with these flags, compiled once in this folder, whichever processes ask for it."""
    torch_folder, library = Path(torch.__file__).parent, folder / "-".join(["emulated", *flags]) / "emulated.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    work = library.with_suffix(".part")
    command = [
        "g++", "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-pthread", "-DTMEM_EMULATED", *flags,
        "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{HELPERS / 'emulation'}", f"-isystem{torch_folder / 'include'}",
        "-x", "c++", *map(str, SOURCES), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-o", str(work),
    ]  # fmt: skip
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            subprocess.run(command, check=True, capture_output=True)
            work.rename(library)
    return library


def told(library: Path, name: str, *arguments: str, gpu: tuple[int, int] = H100) -> dict[str, str]:
    """What a script of this folder says of a library, on a GPU of this compute capability and shared memory of a block."""
    done = forked.run(HELPERS / name, library, *arguments, TMEM_EMULATED_GPU="{} {}".format(*gpu))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
