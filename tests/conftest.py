"""Shared by all tests: what a marker needs, and memory that shows where nothing was written."""

import os

from processes import share_of

# Workers of pytest-xdist share the cores: threads that outnumber them wait for each other, and tiny models are all waiting.
# Read when torch is loaded; the processes that tests start inherit it.
if share := share_of(os.environ):
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

from tmem.machine import rows_apart, sleep_soon  # noqa: E402

sleep_soon()  # as every command does, before torch is loaded

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny_cli import tmem  # noqa: E402, F401

from tmem.models import loading  # noqa: E402

# With deterministic algorithms, which poison memory, cuBLAS asks for a workspace of fixed size. Read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
rows_apart()  # as every command does


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from scheduling import scheduler_of

    return scheduler_of(config, log)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


_MODELS = {name: getattr(loading, name) for name in ("load_model", "unfilled", "save_model", "default_dtype")}


@pytest.fixture(autouse=True)
def real_models():
    """Every test starts with the real models, whatever was put in their place before it (tiny_run does), and leaves them."""
    _put_back_models()
    yield
    _put_back_models()


def _put_back_models():
    for name, function in _MODELS.items():
        setattr(loading, name, function)


@pytest.fixture
def poison():
    """New tensors come filled with NaN (integers: their largest value), so that an output left unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
