"""Tests that run side by side do not take each other's cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import share_of

HERE = Path(__file__).parent
CORES = share_of({"PYTEST_XDIST_WORKER_COUNT": "1"})


def threads(**environment):
    """torch's threads in a process that loads conftest.py with this environment."""
    code = "import conftest, torch; print(torch.get_num_threads())"
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTEST_XDIST_WORKER_COUNT")}
    paths = os.pathsep.join([str(HERE), str(HERE / "helpers"), str(HERE.parent)])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**plain, "PYTHONPATH": paths, **environment})
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("workers", [1, CORES, 3 * CORES])
def test_workers_share_the_cores(workers):
    share = share_of({"PYTEST_XDIST_WORKER_COUNT": str(workers)})
    assert share == max(1, CORES // workers) and share * workers <= max(CORES, workers)


def test_a_worker_computes_with_its_share_and_with_what_it_is_told():
    assert threads(PYTEST_XDIST_WORKER_COUNT=str(CORES)) == 1
    assert threads(PYTEST_XDIST_WORKER_COUNT=str(CORES), OMP_NUM_THREADS="2") == 2
