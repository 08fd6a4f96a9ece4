"""`tmem bench forward`: kernels of serving engines, where they are installed and where not."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import table
import torch

from tmem.bench import engines, forward, measure
from tmem.bench.measure import Settings, WrongNumbers, left_out
from tmem.testing import TOLERANCES

CASES = forward.cases(quick=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.episodes)
@pytest.mark.parametrize("provider", ["base", "tmem", "grouped bank"])
def test_another_y_is_never_timed(case, provider, monkeypatch):
    monkeypatch.setattr(measure, "_in_turns", lambda *_: pytest.fail("timed although a provider is wrong"))
    ways = forward.providers(case, "cpu")
    right = ways[provider]
    other = measure.Provider(right.call, lambda: {"y": 1.5 * right.results()["y"]}, right.oracle)
    with pytest.raises(WrongNumbers, match=f"y of {provider} is .* nothing was timed"):
        measure.measured("forward", case, {**ways, provider: other}, "base", Settings.quick(), "cpu")


def test_what_is_left_out_has_a_row_that_says_why():
    ways = {**forward.providers(CASES[0], "cpu"), "vllm": left_out("not installed: pip install vllm==1")}
    *_, last = rows = measure.measured("forward", CASES[0], ways, "base", Settings.quick(), "cpu")
    absent = [row for row in rows if "absent" in row]
    assert {row["provider"] for row in absent} == set(engines.ENGINES) and not any("ms" in row for row in absent)
    assert last["bench"] == "forward" and last["case"] == CASES[0].name and last["dtype"] == "float32"
    said = "\n".join(table._ratios(rows))
    assert "| case | base | tmem | grouped bank |" in said and "Left out: vllm: not installed: pip install vllm==1." in said


@pytest.mark.parametrize("broken", ["import", "numbers"])
def test_an_engine_that_fails_does_not_end_the_bench(broken, monkeypatch):
    """Neither with an error of its own nor with other numbers is it timed. `Plain` is the engine, on tensors of the CPU."""

    def plain(mix):
        if broken == "import":
            raise ImportError("libcudart.so is not there")
        return lambda y, x: y.add_(1)

    monkeypatch.setitem(engines.ENGINES, "vllm", plain)
    monkeypatch.setattr(forward, "state", lambda name: "1.0")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    data = forward.inputs(CASES[0], "cpu")
    found = forward._engine("vllm", CASES[0], data, data.oracle())
    expected = {"import": "1.0: ImportError: libcudart.so is not there", "numbers": "1.0: WrongNumbers: bench forward"}
    assert found.absent.startswith(expected[broken])


def test_an_engine_that_is_right_is_timed_under_its_version(monkeypatch):
    def plain(mix):
        def apply(y, x):
            for i, rows in enumerate(x.split(mix.lengths)):
                y.split(mix.lengths)[i].add_(rows @ mix.a[i].T @ mix.bt[i], alpha=mix.scales[i])

        return apply

    monkeypatch.setitem(forward.ENGINES, "vllm", plain)
    monkeypatch.setattr(forward, "state", lambda name: "1.0" if name == "vllm" else "not installed: no")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    found = forward.providers(CASES[0], "cpu")
    assert set(found) == {"base", "tmem", "grouped bank", "vllm 1.0", "sglang"} and not found["vllm 1.0"].absent


def test_an_engine_that_is_not_there_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, version in engines.VERSIONS.items():
        assert engines.state(name) == f"not installed: pip install {name}=={version}"
        assert f"{name} {engines.state(name)}" in gpu._beside_engines().what
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engines.metadata, "version", lambda name: "1.0")
    assert "vllm 1.0; sglang 1.0" in gpu._beside_engines().what
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(engines.VERSIONS, "no_such_engine", "1")
    assert engines.state("no_such_engine") == "of an unknown version"


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_a_call_of_an_engine_computes_the_formula(engine):
    """Its own kernels, interpreted, on ragged rows, ranks and scales."""
    pytest.importorskip("triton")
    if importlib.util.find_spec(engine) is None:
        pytest.skip(engines.state(engine))
    script = Path(__file__).parents[1] / "helpers" / "engines_interpreted.py"
    done = subprocess.run([sys.executable, str(script), engine], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    allowed = TOLERANCES[torch.float16 if engine == "vllm" else torch.float32]
    assert len(found) == 4 and {case: off for case, off in found.items() if not off <= allowed} == {}
