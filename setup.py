"""Builds the compiled ops with CMake and maps the source folders into one package. Metadata: pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
BUILD = ROOT / "build" / "cmake"


def cmake() -> str:
    """The cmake beside this interpreter (it is a pinned dependency), else the one on PATH."""
    beside = Path(sys.executable).parent / "cmake"
    found = str(beside) if beside.exists() else shutil.which("cmake")
    if found is None:
        raise SystemExit("tmem needs CMake to build its compiled ops, and none was found: run `pip install cmake`")
    return found


class CMakeBuild(build_ext):
    """Plain shared libraries without Python.h: built by CMake, then put beside tmem/__init__.py.

    The one for CUDA is built where nvcc is found; TMEM_CUDA=OFF or ON in the environment decides otherwise.
    """

    def run(self):
        settings = [f"-DPython_EXECUTABLE={sys.executable}", f"-DTMEM_CUDA={os.environ.get('TMEM_CUDA', 'AUTO')}"]
        where = ["-S", str(ROOT), "-B", str(BUILD), "-G", "Unix Makefiles"]
        for ext in self.extensions:  # none may be left of another build
            (BUILD / self.library(ext)).unlink(missing_ok=True)
            if self.editable_mode or self.inplace:
                (ROOT / "tmem" / self.library(ext)).unlink(missing_ok=True)
        subprocess.run([cmake(), *where, *settings], check=True)
        subprocess.run([cmake(), "--build", str(BUILD), "--parallel", "2"], check=True)
        self.extensions = [ext for ext in self.extensions if (BUILD / self.library(ext)).exists()]
        super().run()

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(BUILD / target.name, target)

    def library(self, ext):
        return Path(self.get_ext_filename(ext.name)).name

    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"


setup(
    packages=[*find_packages(include=["tmem", "tmem.*"]), "tmem.triton_kernels", "tmem.bench"],
    package_dir={"tmem.triton_kernels": "triton_kernels", "tmem.bench": "bench"},
    package_data={
        "tmem": [
            *("py.typed", "presets/*", "writer/*", "tasks/*.toml", "tasks/stream/*.toml", "rl/*.toml"),
            *("report/templates/*", "report/published.toml", "serve/page.html"),
        ],
        "tmem.triton_kernels": ["tuned/*.json"],
    },
    ext_modules=[Extension("tmem.libtmem_cpu", sources=[]), Extension("tmem.libtmem_cuda", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
