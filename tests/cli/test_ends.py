"""How a run ends, and where it may live: SIGTERM, a diverged training, folders of any name."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_eval
import tiny_run
import torch
from click.testing import CliRunner

from tmem import cli
from tmem.files.folders import in_use
from tmem.files.journal import read_jsonl
from tmem.rl.policy import Policy

TRAIN = """
import sys
from pathlib import Path
import tiny_run
from tmem import cli
out = Path(sys.argv[1])
preset = tiny_run.prepare(out)
cli.main(["train", "--preset", str(preset), "--out", str(out), *sys.argv[2:]])
"""

HELPERS = Path(__file__).parents[1] / "helpers"


def test_sigterm_stops_a_training_with_a_checkpoint_and_it_goes_on(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", TRAIN, str(out), "--rl-steps", "400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HELPERS)
    end = time.monotonic() + 200
    while not ((out / "metrics.jsonl").exists() and '"rl"' in (out / "metrics.jsonl").read_text()):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 143 and "go on with" in said, said
    assert not in_use(out) and not (out / ".lock").exists() and list(out.glob("checkpoints/step-*"))
    assert CliRunner().invoke(cli.main, ["report", str(out)]).exit_code == 0


@pytest.mark.parametrize("verb, number", [("eval", signal.SIGTERM), ("report", signal.SIGTERM), ("bench", signal.SIGTERM),
                                          ("eval", signal.SIGHUP)])  # fmt: skip
def test_a_signal_ends_any_other_verb_as_a_shell_does_and_lets_it_clean_up(verb, number, monkeypatch):
    cleaned = []

    def body(*_, **__):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(cli.main.get_command(None, verb), "callback", body)
    words = {"eval": [], "report": ["."], "bench": []}[verb]
    inherited = signal.signal(number, signal.SIG_DFL)  # ignored where the tests run under nohup
    try:
        found = CliRunner().invoke(cli.main, [verb, *words])
        assert found.exit_code == 128 + number and found.output == "" and cleaned
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_under_nohup_a_terminal_may_close(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            cli.main.get_command(None, "eval"), "callback", lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP)
        )
        assert CliRunner().invoke(cli.main, ["eval"]).exit_code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_that_diverged_is_one_sentence_and_its_checkpoint_stays(tmp_path, monkeypatch):
    real = Policy.step

    def broken(policy, *args):
        policy.params[0].grad = torch.full_like(policy.params[0], float("nan"))
        return real(policy, *args)

    monkeypatch.setattr(Policy, "step", broken)
    preset = tiny_run.prepare(tmp_path / "run")
    text = preset.read_text().replace("warm_steps = 2", "warm_steps = 8")
    preset.write_text(text)
    words = ["train", "--preset", str(preset), "--out", str(tmp_path / "run")]
    found = CliRunner().invoke(cli.main, words)
    assert found.exit_code == 2 and "had no finite gradient; the last checkpoint in" in found.output, found.output
    assert "Traceback" not in found.output and list((tmp_path / "run").glob("checkpoints/step-*"))


ODD = ["a[1]{x}", "{}{0}{name} %s", "sp ace ünï 中", "-dash", "new\nline", "*?'\"$(x);", "[red]\x1b[31m"]


@pytest.mark.parametrize("name", ODD)
def test_an_evaluation_lives_in_a_folder_of_any_name(tmp_path, name, monkeypatch):
    out = tmp_path / name / name
    out.parent.mkdir()
    for resume in (False, True):
        tiny_eval.run(out, names=["none", "tmem"], patch=monkeypatch.setattr, resume=resume, limit=1)
    rows = read_jsonl(out / "answers.jsonl")
    assert len(rows) == len({(r["method"], r["id"]) for r in rows}) == 8 and (out / "episodes.md").exists()
    monkeypatch.chdir(out.parent)
    found = CliRunner().invoke(cli.main, ["report", "--", name])
    assert found.exit_code == 0 and (out / "report.html").exists() and "\x1b" not in found.output, found.output
    found = CliRunner().invoke(cli.main, ["report", "--strip", str(tmp_path / "stripped" / name), "--", name])
    assert found.exit_code == 0 and (tmp_path / "stripped" / name / "answers.jsonl").exists(), found.output


@pytest.mark.parametrize("name", ["a[1]{x}", "%s *", "new\nline {0}"])
def test_a_training_lives_and_resumes_in_a_folder_of_any_name(tmp_path, name):
    from tmem.rl import trainer

    out, calls = tmp_path / name / name, []
    with pytest.raises(trainer.Interrupted):
        tiny_run.start(out, **tiny_run.SHORT).run(stop=lambda: calls.append(1) or len(calls) == 3)
    tiny_run.start(out, resume=True, **tiny_run.SHORT).run()
    assert [p.name for p in (out / "checkpoints").iterdir()] and len({r["phase"] for r in tiny_run.lines(out)}) == 7
    assert CliRunner().invoke(cli.main, ["report", "--", str(out)]).exit_code == 0
