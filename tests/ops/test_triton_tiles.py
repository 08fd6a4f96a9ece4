"""The Triton kernels that go over tiles of a batch or parts of a cache, compiled for sm_90."""

import json
import re

import pytest

triton = pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")

import budgets  # noqa: E402
import loads  # noqa: E402

from tmem.triton_kernels import configs  # noqa: E402

ROWS = budgets.of_triton(json.loads(budgets.FILE.read_text()), "sm_90")


@pytest.fixture(scope="module")
def compiled():
    return budgets.triton("sm_90", budgets.of_tests(ROWS) & budgets.of_tiles())


@pytest.mark.skipif(triton.__version__ != "3.6.0", reason="another Triton has another assembler, which counts otherwise")
def test_kernels_for_sm_90_are_within_their_budgets(compiled):
    """After a change that is meant: python tests/helpers/budgets.py, and look at the diff."""
    budgets.within(compiled, "sm_90")


def test_products_are_made_by_matrix_units_from_memory_loaded_ahead(compiled):
    """wgmma where a product has its 64 rows: a tile's, and of gram the columns of 16-bit rows or the ranks of fp32 ones.
    mma.sync elsewhere, and for a segment of few rows. cp.async where a loop streams rows."""
    for name, kernel in compiled.items():
        if not name.startswith(("shrink", "expand", "gram", "backward")):
            continue
        kind, dtype, _, rank = name.rsplit(" ", 3)
        small = False
        if kind.startswith("gram"):
            bits = 16 if dtype == "bf16" else 32  # fp16 beside fp32 takes the rows of fp32
            columns = configs.chosen("sm_90", kind, bits, 32, int(rank)).bd
            small = (int(rank) if dtype == "fp32" else columns) < 64
        assert ("wgmma.mma_async" in kernel.text) != small, name
        assert ("mma.sync" in kernel.text) == (small or not kind.startswith("gram")), name
        assert ("cp.async" in kernel.text) == (kind != "expand"), name


def test_what_is_loaded_ahead_comes_16_bytes_at_a_time(compiled):
    """gram of 16-bit rows at every rank; shrink and backward to rank 64 where both are of bf16; keys and values. tf32 products
    want fp32 rows turned over, which only single numbers can be."""
    for name, kernel in compiled.items():
        name = name.removeprefix("step of ")
        if not name.startswith(("shrink", "gram", "backward", "attend parts")):
            continue
        kind, (dtype, factor, rank) = name.split(" ")[0], name.split(" ")[-3:]
        both = (dtype, factor) == ("bf16", "bf16") and rank != "128"
        if kind in ("gram", "attend") and dtype != "fp32" or kind in ("shrink", "backward") and both:
            sizes = set(re.findall(r"cp\.async\.c\w\.shared\.global [^;]*?, (0x\w+),", kernel.text))
            assert sizes == {"0x10"}, (name, sizes)


def test_rows_are_loaded_after_two_loads(compiled):
    """Descriptor and rank, or slot and span: no more stands between a program's start and its first rows."""
    for name, kernel in compiled.items():
        kind = name.split(" ")[0]
        if kind in ("shrink", "expand", "gram", "backward") or name.startswith("step of gram"):
            first = loads.depths(kernel.ir)["o" if kind == "expand" else "v"]
            assert min(first) - 1 <= 2, (name, first)
