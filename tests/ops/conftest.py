"""Shared by the tests of the emulated CUDA kernels: one library for each set of flags."""

import os
import shutil

import emulator
import pytest


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    """A function of flags: the library's path. All workers of a run share it."""
    if not shutil.which("g++"):
        pytest.skip("the emulation of CUDA is compiled by g++")
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return lambda *flags: emulator.build(folder, *flags)
