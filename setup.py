"""Builds the compiled ops with CMake and maps the source folders into one package. Metadata: pyproject.toml."""

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
    """Plain shared libraries without Python.h: built by CMake, then put beside tmem/__init__.py."""

    def build_extension(self, ext):
        where = ["-S", str(ROOT), "-B", str(BUILD)]
        subprocess.run([cmake(), *where, "-G", "Unix Makefiles", f"-DPython_EXECUTABLE={sys.executable}"], check=True)
        subprocess.run([cmake(), "--build", str(BUILD), "--parallel", "2"], check=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(BUILD / target.name, target)

    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"


setup(
    packages=[*find_packages(include=["tmem", "tmem.*"]), "tmem.triton_kernels", "tmem.bench"],
    package_dir={"tmem.triton_kernels": "triton_kernels", "tmem.bench": "bench"},
    package_data={"tmem": ["presets/*"]},
    ext_modules=[Extension("tmem.libtmem_cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
