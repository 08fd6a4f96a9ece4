"""Settings of training, read from a preset's [train] table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """Warm start, then GRPO, then the control: more supervised training instead of RL."""

    seed: int = 0
    task: str = "stream"  # or "file.py:Class", a tmem.tasks.Task of one's own
    difficulty: int = 1  # of stream
    # supervised warm start
    warm_steps: int = 25
    warm_plain: int = 16  # the first of them teach writing under Δ = 0 only
    warm_episodes: int = 4  # episodes per step: all their passages, and their questions under the Δ of their gold pairs
    warm_pairs: int = 0  # show writes of 1 to so many of a passage's gold pairs, at random; 0: of all of them
    warm_recall: float = 0.1  # weight of the questions' loss beside the passages'
    warm_lr: float = 3e-4
    # GRPO
    rl_steps: int = 6
    rl_episodes: int = 4  # episodes per step, of all ranks together
    rl_group: int = 6  # rollouts per episode
    rl_questions: int = 0  # stream: asked after a training episode at most; more make the reward less noisy; 0: its own
    # "sampled", or with less noise and only writing trained: "greedy", the likeliest answers; "scored", whose reward is the
    # probability of a right answer: what em would be on average over sampled ones
    rl_answers: str = "sampled"
    rl_lr: float = 1e-5
    rl_warmup: int = 3  # steps in which the learning rate rises to rl_lr
    rl_clip: float = 0.2
    rl_kl: float = 0.0  # β of the k3 divergence from θ0 at RL's start, under the same Δ
    rl_resample: int = 0  # how often an episode whose group has no variance is replaced by another one
    normalise: bool = True  # divide advantages by the group's standard deviation
    reward: str = "f1"  # mean over an episode's questions of this score of the task
    length_cost: float = 0.0  # taken from the reward for each hundred tokens written
    format_cost: float = 0.0  # taken from the reward for each line or pair that the parser dropped
    replay: str = "snapshot"  # or "log": learn Δ_t again in the update instead of keeping it
    refresh_a: int = 0  # RL steps after which A is taken anew from θ0; 0: never
    grad_clip: float = 1.0
    micro_tokens: int = 2048  # padded tokens in one forward and backward pass; more take more memory
    checkpointing: bool = False  # compute activations again in backward: less memory, a third more work
    layout: str = "ddp"  # of θ0 over ranks, or "fsdp"
    drift: float = 0.0  # mean |Δ log p| between sampler and trainer that is worth a warning in a segment; 0: 1e-4, in bf16 0.1
    probe: int = 2  # rollouts of a step whose pairs are asked back in other words
    # control
    control_steps: int = 0  # supervised steps instead of RL; 0: as many as fit into the seconds that RL took
    # held-out evaluation
    eval_episodes: int = 24
    eval_split: str = "test"
    save_every: float = 180.0  # seconds between checkpoints inside a phase

    def __post_init__(self):
        if self.rl_steps and self.rl_group < 2:
            raise ValueError("preset: [train] rl_group: expected 2 or more; alone in its group a rollout has no advantage.")
        for name, choices in (
            ("eval_split", ("dev", "test")), ("difficulty", (1, 2, 3)), ("replay", ("snapshot", "log")),
            ("layout", ("ddp", "fsdp")), ("rl_answers", ("sampled", "greedy", "scored")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                known = " or ".join(str(c) for c in choices)
                raise ValueError(f"preset: [train] {name}: expected {known}, got {getattr(self, name)!r}.")
        if self.task == "stream" and self.reward not in ("f1", "em"):
            raise ValueError(f"preset: [train] reward: expected f1 or em, got {self.reward!r}.")
        if self.layout == "fsdp" and self.replay == "log":
            raise ValueError('preset: [train] replay: "log" needs layout "ddp": under fsdp all ranks must go in step.')
