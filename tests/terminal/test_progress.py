"""Word of long work where there is no terminal: plain lines, now and then, and never a control character."""

import io
import logging
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from tmem.bench import show
from tmem.cli import evaluate, live
from tmem.terminal import progress
from tmem.terminal.progress import Lines


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_lines_come_now_and_then_with_the_time_left():
    said, clock = [], Clock()
    lines = Lines(said.append, clock)
    for done in range(100):
        clock.now = 2.0 * done
        lines("write", done, 100, f"{done} pairs")
    clock.now = 200.0
    lines("write", 100, 100)
    assert said[0] == "write: 0 of 100, 0 pairs, 0 s gone"
    assert said[1] == "write: 15 of 100, 15 pairs, 30 s gone, 3 min left"
    assert said[-1] == "write: 100 of 100, 3 min gone" and len(said) == 8
    lines("write", 100, 100)
    lines("quick", 0, 1)
    lines("quick", 1, 1)  # over before a line was due
    assert len(said) == 8
    clock.now = 204.0
    lines("answer", 0, None, "reading")
    clock.now = 208.0
    lines.again()
    assert len(said) == 8
    clock.now = 260.0
    lines.again()
    lines.again()
    assert said[8:] == ["answer: 0, reading, 56 s gone"]


def test_work_that_goes_on_after_a_stop_is_timed_from_there():
    said, clock = [], Clock()
    lines = Lines(said.append, clock)
    lines("rl", 90, 100)
    clock.now = 4.0
    lines("rl", 90, 100)
    clock.now = 10.0
    lines("rl", 91, 100)
    assert said == ["rl: 91 of 100, 10 s gone, 90 s left"]


def test_a_line_comes_for_each_step_where_that_is_asked_for():
    said, clock = [], Clock()
    lines = Lines(said.append, clock, each=True)
    lines("rl", 2, 5, "write")  # a resume
    for done in (3, 4, 5):
        clock.now += 1.0
        lines("rl", done - 1, 5, "write")
        lines("rl", done, 5, f"reward 0.{done}")
        lines("rl", done, 5, "write")
    assert said == [
        "rl: 3 of 5, reward 0.3, 1 s gone, 2 s left",
        "rl: 4 of 5, reward 0.4, 2 s gone, 1 s left",
        "rl: 5 of 5, reward 0.5, 3 s gone",
    ]
    clock.now += 60.0
    lines("evaluate rl", 0, 2, "greedy write")
    clock.now += 6.0
    lines.again()
    assert said[3:] == ["evaluate rl: 0 of 2, greedy write, 6 s gone"]  # a long step is told of as before


@pytest.fixture
def piped(monkeypatch):
    """What a pipe gets, every line at once."""
    monkeypatch.setattr(progress, "FIRST", 0.0)
    file = io.StringIO()
    monkeypatch.setattr(live, "console", Console(file=file))
    return file


def lines_of(file):
    text = file.getvalue()
    assert not any(ord(c) < 32 and c != "\n" for c in text), text
    return text.splitlines()


def test_an_evaluation_in_a_pipe_says_how_far_it_is_unless_it_is_quiet(piped, tmp_path):
    def work(out, watch):
        for done in range(2):
            watch("tmem", "write", done, 3)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluate.watched(work, tmp_path, quiet=True)
    assert lines_of(piped) == []
    with pytest.raises(InterruptedError):
        evaluate.watched(work, tmp_path)
    assert lines_of(piped)[0] == "tmem: 0 of 3, write, 0 s gone"


def test_training_and_a_study_in_a_pipe_say_how_far_they_are(piped, tmp_path):
    with live.bars(tmp_path, steps := live.Steps()) as tell, live.bars(tmp_path) as bar:
        steps.rows.append({"reward": 0.5})
        tell("warm", 1, 32, "loss 2.1")
        bar("0: rl", 0, 3, "")
    assert lines_of(piped) == ["warm: 1 of 32, loss 2.1, 0 s gone", "0: rl: 0 of 3, 0 s gone"]


def test_quiet_work_says_nothing_but_warnings_and_its_lines_are_in_the_log(piped, tmp_path):
    with live.bars(tmp_path, live.Steps(), each=True, quiet=True) as tell:
        tell("warm", 1, 32, "loss 2.1")
        live.warn("the gradient is not finite")
    assert lines_of(piped) == ["warning: the gradient is not finite"]
    assert "warm: 1 of 32, loss 2.1" in (tmp_path / "log.txt").read_text()


def test_a_bench_in_a_pipe_says_how_far_it_is(piped):
    with show._progress(live.console) as watch:
        watch("a layer", 2, 40)
    assert lines_of(piped) == ["bench: 2 of 40, a layer, 0 s gone"]


def test_lines_come_while_the_work_itself_says_nothing(piped, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "EVERY", 0.5)
    with live.bars(tmp_path) as tell:
        tell("tmem", 0, 16, "write")
        time.sleep(2.5)
    assert len(lines_of(piped)) >= 2


def test_a_terminal_gets_bars(monkeypatch, tmp_path):
    file = io.StringIO()
    monkeypatch.setattr(live, "console", Console(file=file, force_terminal=True))
    with live.bars(tmp_path) as tell:
        tell("tmem", 1, 16, "write")
    assert "\x1b[" in file.getvalue() and "tmem" in file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_lines_are_in_the_log_of_the_run_as_well(monkeypatch, tmp_path, terminal):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(live, "console", Console(file=io.StringIO(), force_terminal=terminal))
    for _ in range(2):  # a resume goes on in it
        with live.bars(tmp_path) as tell:
            tell("tmem\n\x1b[31m", 1, 16, "write")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d tmem \\x1b\[31m: 1 of 16, write, 0 s gone", lines[0])


def test_a_log_that_cannot_be_written_is_given_up_with_a_word(tmp_path, caplog):
    log = progress.Log(tmp_path / "absent" / "log.txt")
    for _ in range(3):
        log("a line")
    assert [m.partition(" cannot ")[2] for m in caplog.messages] == [
        "be written (No such file or directory); the work goes on without it"
    ]


def test_a_script_tells_on_stderr_until_logging_is_set_up(caplog):
    say = "from tmem.terminal import progress; import logging; {}; progress.tell('42 of 999')"

    def err(setting="0"):
        return subprocess.run([sys.executable, "-c", say.format(setting)], capture_output=True, text=True, check=True).stderr

    assert err() == "42 of 999\n"
    assert err("logging.getLogger('tmem').setLevel('WARNING')") == ""
    assert err("logging.basicConfig()") == ""  # its level is WARNING
    assert err("logging.basicConfig(level='INFO')") == "INFO:tmem:42 of 999\n"
    with caplog.at_level(logging.INFO, "tmem"):
        progress.tell("into the log")
    assert caplog.messages == ["into the log"]
