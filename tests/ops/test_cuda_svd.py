"""The CUDA kernels of batched_rsvd without a GPU: emulated on the CPU."""

import shutil

import pytest
import svd_parts
from test_cuda import emulate

CHECKS = [check.__name__ for check in svd_parts.ALL] + ["whole"]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("the emulation of CUDA is compiled by g++")
    return emulate(tmp_path_factory.mktemp("emulated"), script=("emulated_svd.py",))


@pytest.mark.parametrize("check", CHECKS)
def test_emulated(emulated, check):
    assert not emulated[check], emulated[check]
    assert len(emulated) == len(CHECKS)


def test_the_emulation_sees_a_missing_barrier(emulated, tmp_path):
    seen = ("grams", "factors", "long_lists")  # of the others, a sort would read places nobody wrote
    found = emulate(tmp_path, "-DTMEM_WITHOUT_BARRIERS", script=("emulated_svd.py", *seen))
    assert all("AssertionError" in found[check] for check in seen), found
