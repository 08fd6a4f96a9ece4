"""Who may import whom: downwards only (read from the sources), and what an import costs (tried in a new process)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a module imports from its own line and the lines above it. A new module takes its place here.
LEVELS = (
    {"files", "terminal", "machine", "stats", "episode", "words", "testing"},
    {"reference", "triton_kernels"},
    {"ops"},
    {"models"},
    {"adapters", "tasks"},
    {"agent"},
    {"memory", "methods", "rl"},
    {"evaluation"},
    {"report"},
    {"study", "bench"},
    {"cli"},
    {"__main__"},
)
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
        elif room is not None and LEVEL.get(parts[1], len(LEVELS)) > LEVEL.get(room, 0):
            yield f"{module} imports {name}, which lies above it"
    if room == "triton_kernels":
        allowed = {"torch", "triton", "tmem", *sys.stdlib_module_names}
        foreign = (name for name in names if name.split(".")[0] not in allowed)
        yield from (f"{module} imports {name}; kernels import torch and triton only" for name in foreign)
    if room != "ops" and any(f"{name}.".startswith("torch.library.") for name in names | set(dotted(text))):
        yield f"{module} talks to torch.library, which only tmem.ops does"


def test_every_module_has_a_place():
    rooms = {module.split(".")[1] for module, _, _ in sources() if "." in module}
    assert rooms <= LEVEL.keys(), f"place {sorted(rooms - LEVEL.keys())} in LEVELS above"


def test_imports_go_downwards_only():
    assert [line for source in sources() for line in wrongs(*source)] == []


@pytest.mark.parametrize(
    "module, text",
    [
        ("tmem.adapters.bank", "from ..agent import write"),
        ("tmem.adapters.bank", "def f():\n    from tmem.rl.loss import grpo"),
        ("tmem.tasks.stream", "from ..agent import write"),
        ("tmem.agent.learn", "from .. import cli"),
        ("tmem.ops.linear", "import tmem.adapters.bank"),
        ("tmem.models.loading", "from tmem import Memory"),
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
    """Kernels take pointers and sizes; launch.h and the .cpp files, which unpack tensors, are the launchers."""
    found = [file for end in ("h", "hpp", "cuh") for file in (ROOT / "csrc").rglob(f"*.{end}")]
    kernels = [file for file in found if file.stem != "launch"]
    assert kernels
    include = re.compile(r'#\s*include\s*[<"](torch/|ATen/|c10/|launch\.)')
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
