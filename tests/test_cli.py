"""The command's frame: help that teaches, errors as one sentence, Ctrl-C, and what `tmem info` tells."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from tmem import cli, models


@pytest.fixture
def verb():
    """Adds a throw-away verb to the command: verb(f) runs f as `tmem tried` and gives the result."""

    def run(body, **env):
        cli.main.add_command(click.command("tried")(body))
        return CliRunner().invoke(cli.main, ["tried"], env=env)

    yield run
    cli.main.commands.pop("tried", None)


def raises(error):
    def body():
        raise error

    return body


def test_help_names_every_verb():
    shown = CliRunner().invoke(cli.main, ["--help"]).output
    assert "Examples:" in shown
    for name, command in cli.main.commands.items():
        assert f"  {name} " in shown and command.help, name


@pytest.mark.parametrize(
    "error, sentence",
    [
        (models.ModelError("no model at x: expected a folder."), "no model at x: expected a folder."),
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "data.json"), "data.json: no such file or directory."),
        (FileExistsError("out exists; choose another path."), "out exists; choose another path."),
    ],
)
def test_an_expected_error_is_one_sentence(verb, error, sentence):
    result = verb(raises(error))
    assert (result.exit_code, result.output) == (2, f"Error: {sentence}\n")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--task", "locomo", "--split", "dev"], "--split means nothing for --task locomo; leave it out."),
        (["--task", "stream", "--adversarial", "choice"], "--adversarial means nothing for --task stream; leave it out."),
        (["--judge-model", "x"], "--judge-model means nothing for answers that nobody grades (no --judge-url); leave it out."),
        (["--task", "search", "--known"], "--known means nothing for --task search; leave it out."),
        (["--methods", ""], "got none."),
    ],
)
def test_flags_that_would_do_nothing_are_refused(words, sentence, tmp_path):
    result = CliRunner().invoke(cli.main, ["eval", *words, "--out", str(tmp_path / "out")], env={"COLUMNS": "160"})
    assert result.exit_code == 2 and sentence in result.output and not (tmp_path / "out").exists()


def test_an_unexpected_error_keeps_its_traceback(verb):
    assert isinstance(verb(raises(KeyError("bug"))).exception, KeyError)
    assert isinstance(verb(raises(ValueError("bad")), TMEM_DEBUG="1").exception, ValueError)


def test_interrupt_is_quiet_and_exits_130(verb):
    result = verb(raises(KeyboardInterrupt()))
    assert (result.exit_code, result.output) == (130, "")


def test_the_installed_command_answers():
    done = subprocess.run([sys.executable, "-m", "tmem.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("tmem 0.")


def test_info_tells_versions_devices_model_and_kernels():
    from tmem import ops

    facts = json.loads(CliRunner().invoke(cli.main, ["info", "--json"], catch_exceptions=False).output)
    assert {"tmem", "python", "torch", "transformers"} <= facts["versions"].keys()
    assert facts["machine"]["cores"] >= 1 and facts["machine"]["cpu"]
    assert facts["model"]["name"] == models.DEFAULT
    assert facts["kernels"]["cpu"] == {op: ops.kernel_for(op, "cpu") for op in ops.OPS + ops.SVD_PARTS}
    shown = CliRunner().invoke(cli.main, ["info"], catch_exceptions=False).output
    assert facts["versions"]["torch"] in shown
    assert all(op in shown for op in ops.OPS + ops.SVD_PARTS)


def test_info_works_without_the_default_model(monkeypatch):
    monkeypatch.setattr(models, "_PACKAGE", "no_such_package")
    result = CliRunner().invoke(cli.main, ["info"], catch_exceptions=False)
    assert result.exit_code == 0 and "not installed" in result.output
