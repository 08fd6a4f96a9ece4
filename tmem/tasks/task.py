"""What training needs of an environment: episodes in, scores out."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..episode import Episode, Question
from . import clbench, metrics


class Environment:
    """A class of one's own says what an episode is: a stream, a scene with tools, or both, and how it is scored.

    A preset's [train] table names it, `task = "mine.py:Mine"`, and which of its scores is the reward, `reward = "f1"`.

        files    that its episodes are made from: a run is gone on with only where they are the same
        trained  ids of questions that training may ask
    """

    files: Sequence[str] = ()
    trained: Sequence[str] = ()

    def episode(self, key: str, split: str) -> Episode:
        """The episode of this key, the same on every call: training asks for split "train", evaluation for "dev" or "test"."""
        raise NotImplementedError

    def score(self, question: Question, answer: str) -> dict[str, float]:
        """Scores of an answer to a question of an episode; those of a scene are its own, see tmem.episode.Scene."""
        raise NotImplementedError


class Task(Environment):
    """An environment without scenes: text in, questions out. f1 and em against the questions' answers come with it."""

    def episode(self, key: str, split: str) -> Episode:
        """The episode of this key, the same on every call: training asks for split "train", evaluation for "dev" or "test".

        Its gold pairs, one tuple for each chunk, are what the supervised steps teach; where there are none (empty tuples) only
        RL can be done (`warm_steps = 0`).
        """
        raise NotImplementedError

    def score(self, question: Question, answer: str) -> dict[str, float]:
        """Scores of one answer in 0..1, by name. RL's reward is the mean over an episode's questions of one of them.

        f1: 2PR / (P + R) over words in lower case, without punctuation, with the best of the question's answers. em: 1 where
        one of them has the same words. intrusion: 1 where one of the question's intrusions is named instead.
        """
        return {
            "f1": metrics.f1(answer, question),
            "em": metrics.em(answer, question),
            "intrusion": metrics.intrusion(answer, question),
        }


def find_task(name: str) -> Environment:
    """The environment that `file.py:Class` names. Runs that file: name only your own. Raises ValueError if there is none.

    Nor for CL-bench, by its name or a file of it: its licence allows evaluation only.
    """
    if clbench.is_clbench(name):
        raise ValueError(f"preset: [train] task: {clbench.EVALUATION_ONLY}")
    cls = name.partition(":")[2]
    if not source(name) or not cls:
        raise ValueError(f"preset: [train] task: expected stream, passages, search, verifiers or file.py:Class, got {name!r}.")
    path = Path(*source(name))
    if not path.is_file():
        raise ValueError(f"preset: [train] task: there is no file {path}; give its path from where you start tmem.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, cls, None)
    if not (isinstance(found, type) and issubclass(found, Environment)):
        raise ValueError(
            f"preset: [train] task: {path} has no class {cls} derived from tmem.tasks.Task or tmem.tasks.Environment."
        )
    return found()


def source(name: str) -> list[str]:
    """The file in which a task of one's own stands, `file.py:Class`; of the others none."""
    file = name.partition(":")[0]
    return [file] if Path(file).suffix == ".py" else []
