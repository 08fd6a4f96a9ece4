"""Settings of training, read from a preset's [train] table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """Warm start, then GRPO, then the control: as many seconds of more supervised training as RL took."""

    seed: int = 0
    difficulty: int = 1
    # supervised warm start
    warm_steps: int = 25
    warm_plain: int = 16  # the first of them teach writing under Δ = 0 only
    warm_episodes: int = 4  # episodes per step: all their passages, and their questions under the Δ of their gold pairs
    warm_recall: float = 0.1  # weight of the questions' loss beside the passages'
    warm_lr: float = 3e-4
    # GRPO
    rl_steps: int = 6
    rl_episodes: int = 4  # episodes per step
    rl_group: int = 6  # rollouts per episode
    rl_lr: float = 1e-5
    rl_clip: float = 0.2
    normalise: bool = True  # divide advantages by the group's standard deviation
    reward: str = "f1"  # mean over an episode's questions of this score
    grad_clip: float = 1.0
    micro_tokens: int = 4096  # padded tokens in one forward and backward pass
    # held-out evaluation
    eval_episodes: int = 24
    eval_split: str = "test"
    save_every: float = 180.0  # seconds between checkpoints inside a phase

    def __post_init__(self):
        if self.reward not in ("f1", "em"):
            raise ValueError(f"preset: [train] reward: expected f1 or em, got {self.reward!r}.")
        if self.rl_steps and self.rl_group < 2:
            raise ValueError("preset: [train] rl_group: expected 2 or more; alone in its group a rollout has no advantage.")
        if self.eval_split not in ("dev", "test") or self.difficulty not in (1, 2, 3):
            raise ValueError(
                f"preset: [train]: expected eval_split dev or test and difficulty 1, 2 or 3, "
                f"got {self.eval_split!r} and {self.difficulty!r}."
            )
