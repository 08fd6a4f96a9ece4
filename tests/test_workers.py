"""Tests that run side by side do not take each other's cores, and make what they share once."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import emulator
import pytest
from processes import share_of
from scheduling import made_once, scheduler_of

HERE = Path(__file__).parent
CORES = share_of({"PYTEST_XDIST_WORKER_COUNT": "1"})


def test_a_worker_computes_with_its_share():
    code = "import conftest, torch; print(torch.get_num_threads())"
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTEST_XDIST_WORKER_COUNT")}
    paths = os.pathsep.join([str(HERE), str(HERE / "helpers"), str(HERE.parent)])
    env = {**plain, "PYTHONPATH": paths, "PYTEST_XDIST_WORKER_COUNT": str(CORES)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize("workers", [1, CORES, 3 * CORES])
def test_workers_share_the_cores(workers):
    share = share_of({"PYTEST_XDIST_WORKER_COUNT": str(workers)})
    assert share == max(1, CORES // workers) and share * workers <= max(CORES, workers)


class Worker:
    """Runs nothing; knows what it was sent."""

    def __init__(self):
        self.sent, self.shutting_down, self.gateway = [], False, SimpleNamespace(id="gw")

    def send_runtest_some(self, indices):
        self.sent += indices

    def shutdown(self):
        self.shutting_down = True


def shared_out(tests, root):
    """The tests that each of two workers was sent, all ending at once, in turns."""
    options = {"tx": ["2*popen"], "dist": "load"}
    config = SimpleNamespace(rootpath=root, getvalue=options.get, option=SimpleNamespace(loadscopereorder=True))
    scheduler, workers = scheduler_of(config, None), [Worker(), Worker()]
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, tests)
    scheduler.schedule()
    done = [0, 0]
    while any(done[i] < len(w.sent) for i, w in enumerate(workers)):
        for i, worker in enumerate(workers):
            if done[i] < len(worker.sent):
                scheduler.mark_test_complete(worker, worker.sent[done[i]])
                done[i] += 1
    assert all(worker.shutting_down for worker in workers) and not scheduler.has_pending
    return [[tests[i] for i in worker.sent] for worker in workers]


def test_a_file_whose_fixtures_are_made_once_runs_in_one_worker_and_the_rest_is_shared(tmp_path):
    (tmp_path / "test_costly.py").write_text('@pytest.fixture(scope="module")\ndef made(): ...\n')
    (tmp_path / "test_plain.py").write_text("@pytest.fixture\ndef made(): ...\n")
    plain, costly = ([f"test_{name}.py::test_it[{i}]" for i in range(9)] for name in ("plain", "costly"))
    first, second = shared_out(plain + costly, tmp_path)
    assert sorted(first + second) == sorted(plain + costly)
    assert first[:9] == costly and not set(second) & set(costly) and set(second) < set(plain)


def test_other_ways_to_distribute_are_left_to_those_who_ask_for_them():
    config = SimpleNamespace(getvalue={"dist": "each"}.get)
    assert scheduler_of(config, None) is None


def test_the_files_that_make_something_once_are_seen():
    assert made_once(HERE / "test_memory.py") and not made_once(HERE / "test_docs.py") and not made_once(HERE / "gone.py")


def test_a_library_with_the_same_flags_is_compiled_once(tmp_path, monkeypatch):
    calls = []

    def compiler(command, **_):
        calls.append(command)
        Path(command[command.index("-o") + 1]).touch()

    monkeypatch.setattr(emulator.subprocess, "run", compiler)
    one, same, other = (emulator.build(tmp_path, *flags) for flags in ([], [], ["-DOTHER"]))
    assert one == same != other and one.exists() and other.exists() and len(calls) == 2
    assert "-DOTHER" in calls[1] and "-DOTHER" not in calls[0]
