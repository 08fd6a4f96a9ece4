"""What the Triton kernels alone promise, of their launchers and of long rows, where Triton interprets them on the CPU."""

import pytest

pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")

import interpreted  # noqa: E402


@pytest.fixture(scope="module")
def found():
    return interpreted.interpreted("own")


@pytest.mark.parametrize("check", interpreted.names("own"))
def test_interpreted(found, check):
    assert not found[check], found[check]


def test_all_of_it_was_held(found):
    assert list(found) == interpreted.names("own")
