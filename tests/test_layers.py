"""Who may import whom, read from the sources: rooms downwards only, no circle of modules; and what an import costs, tried in a
new process."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The floors of the house, from the ground up. A room is a folder of the package, or a module that lies in none. It imports from
# itself and from rooms on floors below. A new room takes its place here.
LEVELS = (
    {"files", "machine", "stats", "episode", "words", "reference"},
    {"terminal", "triton_kernels", "testing"},
    {"ops"},
    {"models"},
    {"adapters", "tasks"},
    {"agent"},
    {"memory", "methods", "rl"},
    {"evaluation", "store"},
    {"report", "serve"},
    {"study"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
MOST = 6  # rooms on one floor
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FOLDERS = {"tmem": ROOT / "tmem", "tmem.triton_kernels": ROOT / "triton_kernels", "tmem.bench": ROOT / "bench"}


def sources():
    """(dotted name of the module, is it a package, its text) for every file that is installed."""
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if parts[-1] == "__init__":
                yield ".".join((package, *parts[:-1])), True, file.read_text()
            else:
                yield ".".join((package, *parts)), False, file.read_text()


def imports(module, is_package, text):
    """Every module or member that the text imports, by its full name, wherever in the file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            base = module.split(".")[: -up or None] if node.level else []
            yield from (".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names)


def dotted(text):
    """Every attribute chain such as `torch.library.custom_op`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def wrongs(module, is_package, text):
    """The import rules that this text breaks, one line each."""
    room = module.split(".")[1] if "." in module else None  # None: tmem itself, which hands out what lies below it
    names = set(imports(module, is_package, text))
    for name in names:
        parts = name.split(".")
        if parts[0] != "tmem" or len(parts) < 2:
            continue
        if room == "triton_kernels" and parts[1] != room:
            yield f"{module} imports {name}; kernels import torch and triton only"
        elif room is not None and parts[1] != room and LEVEL.get(parts[1], len(LEVELS)) >= LEVEL.get(room, 0):
            yield f"{module} imports {name}, which does not lie below it"
    if room == "triton_kernels":
        allowed = {"torch", "triton", "tmem", *sys.stdlib_module_names}
        foreign = (name for name in names if name.split(".")[0] not in allowed)
        yield from (f"{module} imports {name}; kernels import torch and triton only" for name in foreign)
    if room != "ops" and any(f"{name}.".startswith("torch.library.") for name in names | set(dotted(text))):
        yield f"{module} talks to torch.library, which only tmem.ops does"


def graph(texts):
    """Of every module, the modules that its text imports, wherever in the file; a member counts as the module that holds it."""
    texts = list(texts)
    modules = {module for module, _, _ in texts}

    def holder(name):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    return {module: {holder(name) for name in imports(module, *rest)} - {module, ""} for module, *rest in texts}


def circle(arrows):
    """Modules of which each imports the next and the last the first; None where there are none."""
    done = set()

    def walk(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return None
        found = next(filter(None, (walk(below, [*path, module]) for below in sorted(arrows[module]))), None)
        done.add(module)
        return found

    return next(filter(None, (walk(module, []) for module in sorted(arrows))), None)


def test_every_module_has_a_place():
    rooms = {module.split(".")[1] for module, _, _ in sources() if "." in module}
    assert rooms == LEVEL.keys(), f"place {sorted(rooms ^ LEVEL.keys())} in LEVELS above, or take it out"
    assert sum(map(len, LEVELS)) == len(LEVEL) and max(map(len, LEVELS)) <= MOST


def test_no_modules_import_each_other_in_a_circle():
    """Nor through others, nor inside a function, nor for types alone."""
    assert circle(graph(sources())) is None


@pytest.mark.parametrize(
    "text",
    [
        "from .peft import load_adapter",
        "def load(self):\n    from . import peft",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tmem.adapters.peft",
        "from ..memory_of_all import everything",
    ],
)
def test_the_reader_sees_a_circle(text):
    through = ("tmem.memory_of_all", False, "from .adapters.peft import save_adapter as everything")
    others = [("tmem", True, ""), ("tmem.adapters", True, ""), ("tmem.adapters.peft", False, "from .bank import AdapterBank")]
    found = circle(graph([*others, through, ("tmem.adapters.bank", False, text)]))
    assert {"tmem.adapters.bank", "tmem.adapters.peft"} <= set(found)
    assert circle(graph([*others, through, ("tmem.adapters.bank", False, "import torch")])) is None


def test_the_package_needs_nothing_that_lies_around_it():
    """tools, tests and examples use the package; they are not installed."""
    around = {"tools", "tests", "examples", *(file.stem for file in (ROOT / "tools").glob("*.py"))}
    named = {(module, name.split(".")[0]) for module, *rest in sources() for name in imports(module, *rest)}
    assert [pair for pair in sorted(named) if pair[1] in around] == []


def test_the_tests_of_a_folder_lie_in_a_folder_of_its_name():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert {"helpers", "wrong"} <= folders
    rooms = {folder.name for folder in (ROOT / "tmem").iterdir() if (folder / "__init__.py").exists()} | {"bench"}
    assert folders - {"helpers", "wrong"} <= rooms


def test_imports_go_downwards_only():
    assert [line for source in sources() for line in wrongs(*source)] == []


@pytest.mark.parametrize(
    "module, text",
    [
        ("tmem.adapters.bank", "from ..agent import write"),
        ("tmem.adapters.bank", "from ..tasks import stream"),
        ("tmem.study.soak", "from ..bench.train import given"),
        ("tmem.adapters.bank", "def f():\n    from tmem.rl.loss import grpo"),
        ("tmem.tasks.stream", "from ..agent import write"),
        ("tmem.agent.learn", "from .. import cli"),
        ("tmem.ops.linear", "import tmem.adapters.bank"),
        ("tmem.models.loading", "from tmem import Memory"),
        ("tmem.memory", "from .store.store import MemoryStore"),
        ("tmem.store.store", "from ..serve.engine import Engine"),
        ("tmem.models.forward", "import torch\ntorch.library.custom_op('tmem::f', f)"),
        ("tmem.reference", "from torch.library import custom_op"),
        ("tmem.triton_kernels.shrink", "from ..reference import lora_shrink"),
        ("tmem.triton_kernels.shrink", "import numpy as np"),
    ],
)
def test_the_reader_sees_a_wrong_import(module, text):
    assert list(wrongs(module, False, text))


@pytest.mark.parametrize(
    "module, text",
    [
        ("tmem.cli", "from . import models, rl"),
        ("tmem.agent.learn", "import torch\nfrom ..adapters.bank import AdapterBank\nfrom .config import read"),
        ("tmem.ops.linear", "import torch\ntorch.library.custom_op\nfrom ..triton_kernels import shrink"),
        ("tmem.triton_kernels.shrink", "import math\nimport torch, triton.language as tl\nfrom .tile import block"),
    ],
)
def test_the_reader_lets_right_imports_pass(module, text):
    assert list(wrongs(module, False, text)) == []


def test_kernel_headers_know_no_torch():
    """Kernels take pointers and sizes; the files named launch and the .cpp files, which unpack tensors, are the launchers."""
    found = [file for end in ("h", "hpp", "cuh") for file in (ROOT / "csrc").rglob(f"*.{end}")]
    kernels = [file for file in found if not file.stem.endswith("launch")]
    assert kernels
    include = re.compile(r'#\s*include\s*[<"](torch/|ATen/|c10/|(\.\./)?(\w+_)?launch\.)')
    assert include.search('#include "torch/csrc/stable/ops.h"') and include.search("# include <ATen/ATen.h>")
    assert [str(file) for file in kernels if include.search(file.read_text())] == []


@pytest.mark.parametrize(
    "module, absent",
    [
        ("tmem.ops", {"transformers", "peft", "tmem.agent", "tmem.adapters", "tmem.rl"}),
        ("tmem", {"torch", "numpy", "transformers", "peft", "tmem.agent", "tmem.rl"}),
        ("tmem.cli", {"torch", "transformers", "rich"}),
    ],
)
def test_an_import_brings_only_what_it_needs(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert module in loaded.split()
    assert absent.isdisjoint(loaded.split())
