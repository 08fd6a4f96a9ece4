"""The task that a training run's settings name."""

from __future__ import annotations

from ..tasks.passages import Passages
from ..tasks.stream import Stream
from ..tasks.task import Task, find_task
from .config import TrainConfig


def task_of(config: TrainConfig) -> Task:
    """stream, passages or a class of one's own. Raises ValueError or FileNotFoundError, each in one sentence."""
    if config.task == "stream":
        return Stream(config.difficulty, config.rl_questions or None)
    if config.task != "passages":
        return find_task(config.task)
    passages = Passages(
        config.data, step=max(config.warm_episodes, config.rl_episodes), join=config.join, cut_words=config.cut_words,
        swap_names=config.swap_names, resolve_dates=config.resolve_dates, questions=config.rl_questions,
    )  # fmt: skip
    passages.require("train", config.eval_split)
    return passages
