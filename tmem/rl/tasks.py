"""The environment that a training run's settings name."""

from __future__ import annotations

from ..tasks.passages import Passages
from ..tasks.searches import Searches
from ..tasks.stream import Stream
from ..tasks.task import Environment, Task, find_task
from ..tasks.verifiers_env import Verifiers
from .config import TrainConfig
from .rollout import LIKELY


def task_of(config: TrainConfig) -> Environment:
    """stream, passages, search, verifiers or a class of one's own. Raises ValueError or FileNotFoundError in one sentence."""
    if config.task == "stream":
        return Stream(config.difficulty, config.rl_questions or None)
    step = max(config.warm_episodes, config.rl_episodes)
    if config.task == "passages":
        passages = Passages(
            config.data, step=step, join=config.join, cut_words=config.cut_words, swap_names=config.swap_names,
            resolve_dates=config.resolve_dates, questions=config.rl_questions,
        )  # fmt: skip
        passages.require("train", config.eval_split)
        return passages
    if config.task == "search":
        found: Environment = Searches(
            config.data, config.corpus, objectives=config.objectives, turns=config.turns, max_new=config.turn_tokens,
            each=config.each, method=config.method, step=step,
        )  # fmt: skip
        found.require("train", config.eval_split)
    elif config.task == "verifiers":
        found = Verifiers(config.environment, turns=config.turns, max_new=config.turn_tokens, step=step)
        found.require("train", config.eval_split)
    else:
        found = find_task(config.task)
    if not isinstance(found, Task) and (config.rl_credit != "rollout" or config.rl_answers in LIKELY):
        raise ValueError(
            'preset: [train]: an environment with scenes is trained with rl_credit = "rollout", and rl_answers = "sampled" or '
            '"greedy"; credit of single actions and scored answers are for text in, questions out.'
        )
    return found
