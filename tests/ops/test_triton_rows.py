"""The Triton kernels that go over single rows or a bank, compiled for sm_90."""

import json
import re

import pytest

triton = pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")

import budgets  # noqa: E402

ROWS = budgets.of_triton(json.loads(budgets.FILE.read_text()), "sm_90")


@pytest.fixture(scope="module")
def compiled():
    return budgets.triton("sm_90", budgets.of_tests(ROWS) - budgets.of_tiles())


@pytest.mark.skipif(triton.__version__ != "3.6.0", reason="another Triton has another assembler, which counts otherwise")
def test_kernels_for_sm_90_are_within_their_budgets(compiled):
    """After a change that is meant: python tests/helpers/budgets.py, and look at the diff."""
    budgets.within(compiled, "sm_90")


def test_rows_are_read_16_bytes_at_a_time(compiled):
    """Where they are aligned: factors of single rows, and all that goes over a bank."""
    for name, kernel in compiled.items():
        if name.startswith(("decode", "norm", "glu", "step squares", "step move", "copy")):
            wide = len(re.findall(r"ld\.global\.v4\.b32", kernel.text))
            assert (wide > 0) == (name != "copy of odd rows" and not name.startswith("glu alone")), name
