"""Files and folders are whole at every moment, whoever dies or reads; and one process at a time works in a folder."""

import errno
import os
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import pytest
import tiny_eval
import tiny_run

import tmem
from tmem.evaluation.config import EvalConfig
from tmem.evaluation.evaluate import evaluate
from tmem.files import folders
from tmem.files.folders import Busy, Lock, alone, atomic_file, atomic_folder, in_use, locked, standing, whole
from tmem.files.journal import Journal, read_jsonl
from tmem.report import strip
from tmem.rl import trainer
from tmem.study import study

# one at a time -----------------------------------------------------------------------------------------------------------

# Without torch, which takes seconds to import.
LIGHT = {**os.environ, "PYTHONPATH": str(Path(folders.__file__).parent)}
HOLDER = "import sys, time\nfrom folders import Lock\nlock = Lock(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(600)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/out."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True,
                               env=LIGHT)  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_is_held_by_one_process_and_a_killed_holder_leaves_no_trace(tmp_path, holder):
    out = tmp_path / "out"
    with pytest.raises(Busy, match=rf"out is in use by process {holder.pid} on .* since \d{{4}}-.*; wait until that has ended"):
        Lock(out)
    assert in_use(out)
    holder.kill()
    holder.wait()
    assert not in_use(out)
    with locked(out):
        assert in_use(out) and str(os.getpid()) in (out / ".lock").read_text()
    assert not in_use(out) and list(out.iterdir()) == []


def test_who_looks_whether_a_folder_is_held_keeps_nobody_out(tmp_path):
    """Looking takes the system's lock for an instant."""
    fcntl = pytest.importorskip("fcntl")
    looking = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_EX)
    threading.Timer(folders.GLANCE / 4, os.close, [looking]).start()
    with locked(tmp_path):
        pass


def test_a_folder_made_for_nothing_goes_and_one_that_was_there_stays(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        with pytest.raises(ValueError), locked(tmp_path / name):
            raise ValueError
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_of_many_threads_and_processes_one_at_a_time_gets_in(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom folders import Busy, locked\nend, got = time.time() + 3, 0\n"
        "while time.time() < end:\n    try:\n        with locked(sys.argv[1]):\n            inside = Path(sys.argv[2])\n"
        "            inside.touch(exist_ok=False)\n            inside.unlink()\n            got += 1\n"
        "    except Busy:\n        pass\nprint(got)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "inside")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": LIGHT}
    several = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in several:
        said, fault = process.communicate()
        assert process.returncode == 0 and int(said) > 0, fault
    assert not list(tmp_path.rglob("*.lock"))


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    real, calls = Path.mkdir, []

    def seen_to_go(path, *args, **options):
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, "it was there, and its holder has removed it", str(path))
        real(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", seen_to_go)
    with locked(tmp_path / "out"):
        assert in_use(tmp_path / "out")
    assert len(calls) == 2


def test_a_file_or_a_link_to_nowhere_is_no_folder_to_hold(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            Lock(tmp_path / name)


def test_without_locks_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "fcntl", None)
    with pytest.warns(UserWarning, match="out cannot be locked; see to it that one"), locked(tmp_path / "out"):
        pass


def test_two_evaluations_of_one_folder_count_no_question_twice(tmp_path):
    out = tmp_path / "run" / "out"
    several = [forked.Script(tiny_eval.__file__, out) for _ in range(2)]
    ends = sorted((done.stderr.splitlines()[-1:], done.returncode) for done in (script.end() for script in several))
    assert [code for _, code in ends] == [0, 1] and re.search("in use by process|already holds results", ends[1][0][0]), ends
    rows = read_jsonl(out / "answers.jsonl")
    assert len({(r["method"], r["seed"], r["id"]) for r in rows}) == len(rows) == 24


def test_whoever_finds_a_folder_in_use_writes_nothing(tmp_path, holder, monkeypatch):
    out = tmp_path / "out"
    (out / "run.json").write_text("{}")
    before = content(out)
    for begin in (
        lambda: tiny_eval.run(out, names=["none"], patch=monkeypatch.setattr),
        lambda: tiny_eval.run(out, names=["none"], patch=monkeypatch.setattr, resume=True),
        lambda: evaluate(EvalConfig("search"), out=out),
        lambda: tiny_run.start(out),
        lambda: tiny_run.start(out, resume=True),
        lambda: strip.strip(tmp_path / "no", out),
    ):
        with pytest.raises(Busy, match="in use by process"):
            begin()
        assert content(out) == before


def test_a_run_holds_its_folder_from_its_first_look_to_its_end(tmp_path):
    out = tmp_path / "run"
    first = tiny_run.start(out, **tiny_run.SHORT)
    with pytest.raises(Busy):
        tiny_run.start(out, resume=True)
    seen = []
    with pytest.raises(trainer.Interrupted):
        first.run(stop=lambda: seen.append(in_use(out)) or len(seen) == 2)
    assert seen == [True, True] and not in_use(out)
    tiny_run.start(out, resume=True, **tiny_run.SHORT).run()
    assert len(tiny_run.lines(out)) == len({(r["phase"], r["step"]) for r in tiny_run.lines(out)})


def test_seeds_of_a_study_may_be_done_at_once_each_by_one(tmp_path, monkeypatch):
    """As --only does on several machines; who compares the seeds waits for the one that is at work."""
    monkeypatch.setattr(study, "Trainer", lambda *_, **__: pytest.fail("the folder was not held"))
    with locked(tmp_path / "seed-1", study.LOCK):
        with pytest.raises(Busy, match="seed-1 is in use"):
            study.one("study", tmp_path / "seed-1", 1)
        monkeypatch.setattr(study, "Trainer", lambda *_, **__: (_ for _ in ()).throw(trainer.Interrupted))
        with pytest.raises(trainer.Interrupted):
            study.one("study", tmp_path / "seed-0", 0)
    with locked(tmp_path, study.LOCK), pytest.raises(Busy, match="is in use"):
        study.run_seeds("study", tmp_path, seeds=1)


def test_a_decorated_function_names_its_folder_by_place_or_by_name(tmp_path):
    @alone("out")
    def work(what, out):
        assert in_use(out)
        return what

    assert work(1, tmp_path) == work(2, out=tmp_path) - 1 == 1


# whole or not at all -----------------------------------------------------------------------------------------------------

SAVER = """
import sys
from pathlib import Path
from folders import atomic_folder
number = int(sys.argv[2])
while True:
    number += 1
    with atomic_folder(sys.argv[1], "a") as work:
        for name in "abc":
            (work / name).write_text(str(number) * 4000)
    print(number, flush=True)
"""


def read(folder):
    return {(folder / name).read_text() for name in "abc"}


def test_a_folder_that_is_replaced_is_whole_at_every_moment_whatever_is_killed(tmp_path):
    """Killed at random moments for some seconds, while somebody reads all the time; nothing is left after the next save."""
    path, rng, number, end = tmp_path / "it", random.Random(0), 0, time.monotonic() + 12
    kills = reads = 0
    while time.monotonic() < end:
        command = [sys.executable, "-c", SAVER, str(path), str(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=LIGHT)
        number = int(process.stdout.readline())
        stop = time.monotonic() + rng.uniform(0, 0.05)
        while time.monotonic() < stop:
            assert len(whole(path, read)) == 1, "the files of two saves"
            reads += 1
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0].split()
        (found,) = read(path)
        done = int(said[-1]) if said else number
        assert found in (str(done) * 4000, str(done + 1) * 4000), "neither the last save nor the one under way"
        number, kills = done + 1, kills + 1
    assert kills >= 5 and reads >= 20
    with atomic_folder(path, "a") as work:
        (work / "a").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


def test_where_folders_cannot_trade_places_the_one_set_aside_is_read_and_goes_with_the_next_save(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def save(text):
        with atomic_folder(tmp_path / "it", "a") as work:
            (work / "a").write_text(text)

    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    save("1")
    save("2")
    assert [p.name for p in tmp_path.iterdir()] == ["it"]
    rename = os.rename

    def dying(source, target):
        if str(target).endswith(folders.ASIDE):
            rename(source, target)
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", dying)
        with pytest.raises(Killed):
            save("3")
    assert not (tmp_path / "it").exists() and (standing(tmp_path / "it") / "a").read_text() == "2"
    assert whole(tmp_path / "it", lambda folder: (folder / "a").read_text()) == "2"
    save("4")
    assert standing(tmp_path / "it") == tmp_path / "it" and [p.name for p in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("trade", [True, False])
def test_many_writers_of_one_folder_leave_one_whole_folder(tmp_path, monkeypatch, trade):
    if not trade:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    faults = []

    def save(number):
        try:
            for _ in range(20):
                with atomic_folder(tmp_path / "it", "a") as work:
                    for name in "abc":
                        (work / name).write_text(str(number))
        except BaseException as error:
            faults.append(error)

    several = [threading.Thread(target=save, args=(n,)) for n in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert not faults and len(read(tmp_path / "it")) == 1 and [p.name for p in tmp_path.iterdir()] == ["it"]


def test_what_a_live_writer_is_at_is_not_swept_nor_anything_of_somebody_elses(tmp_path):
    mine = [".it.old", ".it.12345678", ".tmem-settings", ".tmem-unfinished-", ".tmem-unfinished-long-name"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".tmem-unfinished-aaaaaaaa").write_text("a file")
    (tmp_path / ".tmem-unfinished-bbbbbbbb").symlink_to(tmp_path / ".it.old")
    (tmp_path / ".tmem-unfinished-cccccccc" / "left").mkdir(parents=True)
    with atomic_folder(tmp_path / "it", "a") as work, atomic_file(tmp_path / "file") as file:
        (work / "a").write_text("x")
        file.write_text("x")
        with atomic_file(tmp_path / "other") as other:
            other.write_text("x")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {*mine, ".tmem-unfinished-aaaaaaaa", ".tmem-unfinished-bbbbbbbb", "it", "file", "other"}


def test_no_link_is_followed(tmp_path, monkeypatch):
    """Neither one planted under a name that can be guessed, nor one at the path itself."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f".file.{os.getpid()}").symlink_to(precious)
    (tmp_path / "file").symlink_to(precious)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a").write_text("mine")
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    with atomic_file(tmp_path / "file") as work:
        work.write_text("new")
    with atomic_folder(tmp_path / "folder", "a") as work:
        (work / "a").write_text("new")
    assert precious.read_text() == (tmp_path / "elsewhere/a").read_text() == "mine"
    for path in (tmp_path / "file", tmp_path / "folder"):
        assert not path.is_symlink()
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/a").read_text() == "new"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / "out"):
        pass
    assert precious.read_text() == "mine"


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    faults = []

    def write(number):
        try:
            for _ in range(50):
                with atomic_file(tmp_path / "file") as work:
                    work.write_text(str(number) * 1000)
        except BaseException as error:
            faults.append(error)

    several = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert not faults and len(set((tmp_path / "file").read_text())) == 1 and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("umask, file, folder", [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_what_is_written_may_be_read_by_whom_the_umask_says(tmp_path, umask, file, folder):
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "folder", "a") as work:
            save_file({"x": torch.zeros(2)}, work / "a")
            (work / "b").write_text("x")
        with atomic_file(tmp_path / "file") as work:
            save_file({"x": torch.zeros(2)}, work)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder/a", "folder/b")}
    assert modes == {file} and stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder


@pytest.fixture
def small_disk():
    """No file grows beyond 10,000 bytes, which is reported as a full disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[0][1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
    signal.signal(signal.SIGXFSZ, before[1])


def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path, small_disk):
    journal = Journal(tmp_path / "answers.jsonl")
    journal.append([{"a": "x" * 5000}])
    with pytest.raises(OSError) as found:
        journal.append([{"a": 1}, {"a": "x" * 9000}])
    assert found.value.filename == str(tmp_path / "answers.jsonl") and found.value.errno == errno.EFBIG
    assert read_jsonl(tmp_path / "answers.jsonl") == journal.rows == [{"a": "x" * 5000}]
    with pytest.raises(OSError) as found, atomic_file(tmp_path / "file") as work:
        work.write_text("x" * 20_000)
    assert found.value.filename == str(tmp_path / "file") and [p.name for p in tmp_path.iterdir()] == ["answers.jsonl"]


def test_half_a_surrogate_pair_is_kept_as_json_keeps_it(tmp_path):
    Journal(tmp_path / "rows.jsonl").append([{"a": "\ud800 é\u2028"}])
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": "\ud800 é\u2028"}]


# Whoever writes a file writes it through tmem.files.folders or tmem.files.journal: the others are named here, with the reason.
RAW = {
    "files/folders.py": "is where it is done",
    "files/journal.py": "appends, and cuts off the half line that a kill left",
    "rl/log.py": "opens a journal to have it on the disk",
    "rl/trainer.py": "makes the folder of the run",
    "bench/parts.py": "makes the folder of its one file",
    "bench/tournament.py": "makes the folder of a card's winners",
}
WRITES = re.compile(
    r"""\.open\(\s*["'][^"'r]|\bopen\([^)]*["'][wax]b?\+?["']|O_CREAT|\.touch\(|os\.open\(|NamedTemporaryFile|mkstemp|os\.truncate"""
    r"""|shutil\.(copy|move)|os\.(rename|replace)\(|\.mkdir\("""
)
INSIDE = re.compile(r"(\w+)(?: / [^)]+)?\)?\.write_(?:text|bytes)\(")


def test_nothing_else_in_the_package_writes_files():
    package = Path(tmem.__file__).parent
    files = {str(p.relative_to(package)): p for p in package.rglob("*.py")}
    files |= {f"bench/{p.name}": p for p in (package.parent / "bench").glob("*.py")}
    found = {}
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        raw = WRITES.search(text) or next((m for m in INSIDE.finditer(text) if m[1] not in ("work", "folder")), None)
        if raw:
            found[name] = raw[0]
    assert found.keys() == RAW.keys(), found


def test_every_text_is_read_and_written_as_utf_8():
    """Whatever the locale."""
    package = Path(tmem.__file__).parent
    for path in [*package.rglob("*.py"), *(package.parent / "bench").glob("*.py")]:
        for call in re.findall(r"""\.(?:read|write)_text\(.*|[ .]open\(["'][rwa]\+?["'].*""", path.read_text(encoding="utf-8")):
            assert "utf-8" in call, (path.name, call)
