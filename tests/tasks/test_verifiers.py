"""verifiers: which task comes when and what is refused, on a fake of what loads environments; and the package's own classes."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from tiny_agent import TRAIN
from tiny_dialogue import Guesses, Guessing
from tiny_run import lines, start, weights

from tmem.rl.tasks import task_of
from tmem.tasks import verifiers_api
from tmem.tasks.searches import SPLITS, side
from tmem.tasks.verifiers_env import Verifiers

EXAMPLE = Path(__file__).parents[2] / "examples" / "guess_number.py"


def words(text, count):
    return text if len(text.split()) <= count else " ".join(text.split()[:count])


def played(scene, *replies):
    """(seen, how the call went) of every turn."""
    out, replies = [], iter(replies)
    while (seen := scene.observe()) is not None:
        out.append((seen.text, scene.act(next(replies, "x")).called))
    return out


# without the package -----------------------------------------------------------------------------------------------------


@pytest.fixture
def guesses(monkeypatch):
    monkeypatch.setattr(verifiers_api, "load", lambda name: Guesses())


def test_tasks_are_held_out_by_their_keys_and_none_comes_twice_in_an_epoch(guesses):
    env = Verifiers("guesses", turns=3, max_new=5, step=2)
    env.require(*SPLITS)
    sides = {split: [Guesses.keys[i] for i in env.held[split]] for split in SPLITS}
    assert all(side(key) == split for split, keys in sides.items() for key in keys) and env.trained == sides["train"]
    asked = []
    for key in (f"0/rl/{step}/{i}" for step in range(3) for i in range(2)):
        episode = env.episode(key, "train")
        seen = episode.begin(words).observe()
        assert episode.id == f"verifiers/train/{key}" and seen.max_new == 5 and not episode.chunks and not episode.questions
        assert env.episode(key, "train").begin(words).observe() == seen
        asked.append(seen.text)
    assert len(set(asked)) == 6 and {text.split()[1] for text in asked} <= {str(int(key, 16)) for key in sides["train"]}


def test_rollouts_of_an_episode_that_say_the_same_see_the_same(guesses):
    """Whatever else draws random numbers: so a run that was killed resumes to the same bits."""
    begin = Verifiers("guesses", turns=3).episode("7", "train").begin
    one = played(begin(words))
    random.random()
    assert played(begin(words)) == one and len(one) == 3


def test_an_environment_that_cannot_be_is_one_sentence(guesses, monkeypatch):
    with pytest.raises(ValueError, match="verifiers: no environment; name one with --environment NAME"):
        Verifiers("")
    monkeypatch.setattr(Guesses, "keys", ["1"])
    with pytest.raises(ValueError, match="none of the 1 tasks of guesses falls to .*, which takes .0 % of them"):
        Verifiers("guesses").require(*SPLITS)


def test_settings_that_mean_nothing_are_one_sentence(guesses):
    wanted = {"task": "verifiers", "environment": "guesses", "reward": "score", "turns": 5, "turn_tokens": 9}
    found = task_of(dataclasses.replace(TRAIN, **wanted))
    assert isinstance(found, Verifiers) and (found.name, found.turns, found.max_new) == ("guesses", 5, 9)
    with pytest.raises(ValueError, match="environment: task 'stream' has none"):
        dataclasses.replace(TRAIN, environment="guesses")
    with pytest.raises(ValueError, match="reward: expected score, the sum of an environment's rewards, got 'f1'"):
        dataclasses.replace(TRAIN, **wanted | {"reward": "f1"})
    for other in ({"rl_credit": "action"}, {"rl_answers": "logp"}):
        with pytest.raises(ValueError, match="an environment with scenes is trained with rl_credit"):
            task_of(dataclasses.replace(TRAIN, **wanted, **other))


@pytest.mark.parametrize("library", ["verifiers", "verifiers.v1"])
def test_without_the_package_or_with_an_older_one_a_sentence_says_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=r"need the package verifiers 0\.4: pip install 'tmem\[verifiers\]'"):
        verifiers_api.load("any")


@pytest.fixture(scope="module")
def one_thread():
    """As the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_run_of_conversations_resumes_to_the_same_bits(tmp_path, one_thread):
    """Killed between the optimizer's step and the model's: all of RL's rollouts of that step are taken again."""
    whole, out = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    words = ["--talk", "--kill", "update", "2"]
    died = subprocess.run([sys.executable, tiny_run.__file__, str(out), *words], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    started = start(whole, **tiny_run.TALKED)
    started.run()
    start(out, resume=True, **tiny_run.TALKED).run()
    for name in ("metrics", "segments"):
        assert (out / f"{name}.jsonl").read_text() == (whole / f"{name}.jsonl").read_text()
    mine, theirs = weights(out), weights(whole)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    rows = [r for r in lines(whole) if r["phase"] == "rl"]
    assert len(rows) == 2 and all(r["turns"] > 1 and r["calls"] == r["turns"] and r["failed"] == 0 for r in rows)
    assert any(r["grad_norm"] > 0 for r in rows) and all(0 < r["dlogp_worst_segment"] < 1e-4 for r in rows)
    assert json.loads((whole / "trained.json").read_text()) == started.task.trained == Guessing().trained


def test_where_there_is_nothing_to_teach_the_supervised_phases_end_at_once(tmp_path, one_thread):
    warned = []
    trainer = start(tmp_path / "run", **tiny_run.TALKED | {"warm_steps": 3, "rl_steps": 1, "control_steps": 0})
    trainer.run(tiny_run.trainer.Progress(lambda row: None, lambda *_: None, warned.append))
    assert [w.split(",")[0] for w in warned] == ["warm: there is nothing to teach", "sft: there is nothing to teach"]
    assert not [r for r in lines(tmp_path / "run") if r["phase"] in ("warm", "sft")]
