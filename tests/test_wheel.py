"""The installed wheel: in a fresh environment that has torch and what torch needs, the ops alone serve another project."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def closure(name, found=None):
    """A distribution and all that it requires, by name."""
    found = set() if found is None else found
    try:
        requires = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return found
    if name not in found:
        found.add(name)
        for line in requires:
            if "extra ==" not in line:
                closure(re.match(r"[\w.-]+", line).group(), found)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_what_is_needed(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {"libtmem_cpu.so", "py.typed", "triton_kernels/shrink.py", "bench/lora.py", "ops/linear.py"}
    assert {f"tmem/{name}" for name in code} <= names
    assert {f"tmem/tasks/stream/{split}.toml" for split in ("train", "dev", "test", "new")} <= names
    assert {"tmem/tasks/people.toml", "tmem/serve/page.html"} <= names
    (licence,) = [n for n in names if n.endswith("dist-info/licenses/LICENSE")]
    held = zipfile.ZipFile(wheel)
    assert held.read(licence) == (ROOT / "LICENSE").read_bytes() and b"Apache License" in held.read(licence)
    assert "License-Expression: Apache-2.0" in held.read(licence.replace("licenses/LICENSE", "METADATA")).decode()
    assert not [n for n in names if n.startswith(("tests/", "triton_kernels/", "bench/"))]
    assert (ROOT / "tmem/libtmem_cpu.so").exists(), "building a wheel removed the libraries of the checkout"


def test_the_ops_alone_serve_another_project(wheel, tmp_path):
    """examples/ops_only.py runs where no transformers, click or rich can be imported."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in closure("torch"):
        for top in {Path(file).parts[0] for file in metadata.files(name) if not str(file).startswith((".", "/"))}:
            where = Path(metadata.distribution(name).locate_file(top))
            if where.exists() and not (packages / top).exists() and top not in ("bin", "__pycache__"):
                (packages / top).symlink_to(where)
    zipfile.ZipFile(wheel).extractall(packages)  # what an installation of a wheel without scripts does
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(packages)!r});"
        f"runpy.run_path({str(ROOT / 'examples/ops_only.py')!r}, run_name='__main__');"
        "import tmem; print(tmem.__file__); import importlib.util as u;"
        "print([n for n in ('transformers', 'click', 'rich', 'safetensors') if u.find_spec(n)])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *steps, file, others = done.stdout.splitlines()
    assert file.startswith(str(packages)) and others == "[]"
    losses = [float(re.search(r"loss ([\d.]+)", line).group(1)) for line in steps]
    assert len(losses) == 5 and losses[-1] < losses[0] / 100 and "C++ CPU" in steps[-1]
