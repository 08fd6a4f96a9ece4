"""The CUDA kernels of batched_rsvd without a GPU: emulated on the CPU."""

import pytest
import svd_parts
from emulator import told

CHECKS = [check.__name__ for check in svd_parts.ALL] + ["whole"]


@pytest.fixture(scope="session")
def emulated(emulated_library):
    return told(emulated_library(), "emulated_svd.py")


@pytest.mark.parametrize("check", CHECKS)
def test_emulated(emulated, check):
    assert not emulated[check], emulated[check]
    assert len(emulated) == len(CHECKS)


@pytest.mark.parametrize(
    "gpu, once",
    [
        ((9, 232448), "70x5 530x16 530x33"),  # H100
        ((9, 110000), "70x5 530x16"),
        ((12, 101376), ""),  # RTX 5090
        ((8, 166912), ""),  # A100, which has no clusters
    ],
)
def test_a_gram_step_reads_once_where_a_block_has_the_room(emulated_library, gpu, once):
    assert told(emulated_library(), "emulated_svd.py", "ways", gpu=gpu)["ways"] == once


def test_the_emulation_sees_a_missing_barrier(emulated_library):
    seen = ("grams", "factors", "long_lists")  # of the others, a sort would read places nobody wrote
    found = told(emulated_library("-DTMEM_WITHOUT_BARRIERS"), "emulated_svd.py", *seen)
    assert all("AssertionError" in found[check] for check in seen), found
