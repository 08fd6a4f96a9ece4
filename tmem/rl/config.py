"""Settings of training: a preset's [train] table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..agent.config import DEFAULT_PRESET, build, read

CHOICES = {
    "eval_split": ("dev", "test"), "difficulty": (1, 2, 3), "replay": ("snapshot", "log"), "layout": ("ddp", "fsdp"),
    "rl_answers": ("sampled", "greedy", "scored", "logp"), "policy": ("full", "lora"),
    "rl_credit": ("rollout", "action"), "rl_average": ("tokens", "actions", "constant"), "rl_ratio": ("token", "sequence"),
    "rl_dead": ("counted", "dropped"), "method": ("tmem", "mem1", "full"),
}  # fmt: skip
OF_PASSAGES = ("data", "join", "cut_words", "swap_names", "resolve_dates")
# Settings that came later, and what was done without them; then those that mean nothing to a run from before.
BEFORE = {
    "policy": "full",
    "data": [],
    "each": False,
    "method": "tmem",
    "warm_read": 0.0,
    "warm_keep": 0.0,
    "warm_decay": 0.0,
    "rl_credit": "rollout",
    "rl_decay": 0.0,
    "rl_average": "tokens",
    "rl_updates": 1,
    "rl_ratio": "token",
    "rl_clip_high": 0.0,
    "rl_truncate": 0.0,
    "rl_dead": "counted",
}
IDLE = (
    "policy_rank", "join", "cut_words", "swap_names", "resolve_dates", "corpus", "objectives", "turns", "turn_tokens",
    "environment",
)  # fmt: skip
READ = ("passages", "search")  # tasks that are made from files


@dataclass(frozen=True)
class TrainConfig:
    """A supervised warm start, then GRPO, then the control: more supervised training instead of RL.

    seed             of episodes, noise and batches
    task             "stream", "passages", "search", "verifiers", or "file.py:Class", a tmem.tasks.Task or Environment of
                     one's own
    difficulty       of stream: 1, 2 or 3
    policy           what of θ0 is trained: "full", all weights, or "lora", an adapter on all linear layers of the decoder
    policy_rank      of that adapter; its alpha is twice the rank

    Of passages and searches, see tmem.tasks.passages and tmem.tasks.searches:
    data             files, "FILE" or "FILE:WEIGHT"; what is asked is drawn from one in proportion to its weight, 1 unless said

    Of passages:
    join             1 to so many passages make a stream, drawn at random
    cut_words        a longer passage is cut at lines and sentences, each part with its questions; 0: none is
    swap_names       share of the training passages whose people get other first names
    resolve_dates    an answer such as "yesterday" becomes the date, where the passage begins with its session's

    Of searches:
    corpus           files of documents to search in; none: the questions' own contexts
    objectives       an episode asks 1 to so many questions at once, drawn at random
    turns            before the answer is asked for; of verifiers: replies of an episode at most
    turn_tokens      that a turn may say; so of verifiers
    each             whether every question is asked by itself when the search is over; else a turn answers all
    method           whose turns are trained: "tmem", or, for a comparison in which each has its own adapter, "mem1" or "full"

    Of verifiers, see tmem.tasks.verifiers_env:
    environment      the name of an installed environment, or a .py file of one; it is imported

    The warm start:
    warm_steps       supervised steps
    warm_plain       the first of them teach writing under Δ = 0 only
    warm_episodes    episodes per step: all their passages, and their questions under the Δ of their gold pairs
    warm_pairs       show writes of 1 to so many of a passage's gold pairs, drawn at random, and of many replies so many of
                     them; 0: of all of them
    warm_recall      weight of the questions' loss beside the passages'
    warm_read        weight of answers from the text: to half of the gold pairs' questions beside their passage, and an
                     abstention where the question is another passage's. So a model reads, and writes what a known question
                     asks
    warm_keep        weight of plain requests without a text, answered as the model answered them before, see tmem.rl.keep
    warm_lr          learning rate
    warm_decay       share of the supervised steps, the last ones, in which it falls to 0; 0: it stays

    GRPO (arXiv 2402.03300; the Δ of each action is a constant, arXiv 2606.04536):
    rl_steps         steps, a batch of rollouts each
    rl_episodes      episodes per step, of all ranks together
    rl_group         rollouts per episode, 2 or more
    rl_questions     of stream and passages: asked after a training episode at most; more make the reward less noisy; 0: its own
    rl_answers       "sampled" answers are trained too; with less noise and only writing trained: "greedy", the likeliest
                     answers; "logp", whose reward is the floored token log-probability of the right ones, see
                     tmem.agent.scored; or "scored", the probability of a right answer: what em would be on average over
                     sampled ones
    rl_credit        "rollout": every action gets its rollout's advantage; "action": a write gets what leaving it out takes from
                     the reward, an answer what its question got, see tmem.rl.credit; a rollout of many writes takes long then
    rl_lr            learning rate
    rl_warmup        steps in which the learning rate rises to rl_lr
    rl_decay         share of the RL steps, the last ones, in which it falls to 0; 0: it stays
    rl_average       how the loss averages the batch's tokens: "tokens", all alike (DAPO); "actions", first those of each action
                     (GRPO, GSPO); "constant", by the actions times the most tokens that one may have (Dr. GRPO)
    rl_updates       updates on each batch; from the second on the ratio is not 1
    rl_ratio         "token", or "sequence": of an action, the geometric mean over its tokens (GSPO)
    rl_clip          ε of the clipped ratio
    rl_clip_high     ε of its upper bound (DAPO's clip-higher); 0: rl_clip
    rl_truncate      C of each token's weight min(π_trainer / π_sampler, C), which makes up for a sampler that computes
                     otherwise than the trainer (TIS); the ratio is then to the trainer's own probability. 0: it is to the
                     sampler's
    rl_kl            β of the k3 divergence from θ0 at RL's start, under the same Δ; 0: none
    rl_resample      how often an episode whose group has no variance is replaced by another one (DAPO's dynamic sampling)
    rl_dead          whether the groups that are left without variance count in the average: "counted", or "dropped" (DAPO)
    normalise        divide advantages by the group's standard deviation; Dr. GRPO does not
    reward           mean over an episode's questions of this score of the task
    length_cost      taken from the reward for each hundred tokens written
    format_cost      taken from the reward for each line or pair that the parser dropped
    replay           "snapshot" keeps each Δ_t for the update; "log" learns it again
    refresh_a        RL steps after which A is taken anew from θ0; 0: never
    grad_clip        gradient norm of θ0
    micro_tokens     padded tokens in one forward and backward pass; more take more memory
    checkpointing    compute activations again in backward: less memory, a third more work
    layout           of θ0 over ranks: "ddp" or "fsdp"
    drift            mean |Δ log p| (nats) of an action, sampler to trainer, that is worth a warning; 0: 1e-4, in bf16 0.1
    probe            rollouts of a step whose pairs are asked back in other words

    The control:
    control_steps    supervised steps instead of RL; 0: as many as fit into the seconds that RL took

    Held-out evaluation, and checkpoints:
    eval_episodes    episodes
    eval_split       "dev" or "test"
    save_every       seconds between checkpoints inside a phase

    Raises ValueError for a value that is none of those named here, or that another one rules out.
    """

    seed: int
    task: str
    difficulty: int
    policy: str
    policy_rank: int
    data: tuple[str, ...]
    join: int
    cut_words: int
    swap_names: float
    resolve_dates: bool
    corpus: tuple[str, ...]
    objectives: int
    turns: int
    turn_tokens: int
    each: bool
    method: str
    environment: str
    warm_steps: int
    warm_plain: int
    warm_episodes: int
    warm_pairs: int
    warm_recall: float
    warm_read: float
    warm_keep: float
    warm_lr: float
    warm_decay: float
    rl_steps: int
    rl_episodes: int
    rl_group: int
    rl_questions: int
    rl_answers: str
    rl_credit: str
    rl_lr: float
    rl_warmup: int
    rl_decay: float
    rl_average: str
    rl_updates: int
    rl_ratio: str
    rl_clip: float
    rl_clip_high: float
    rl_truncate: float
    rl_kl: float
    rl_resample: int
    rl_dead: str
    normalise: bool
    reward: str
    length_cost: float
    format_cost: float
    replay: str
    refresh_a: int
    grad_clip: float
    micro_tokens: int
    checkpointing: bool
    layout: str
    drift: float
    probe: int
    control_steps: int
    eval_episodes: int
    eval_split: str
    save_every: float

    def __post_init__(self):
        if self.rl_steps and self.rl_group < 2:
            raise ValueError("preset: [train] rl_group: expected 2 or more; alone in its group a rollout has no advantage.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = " or ".join(str(c) for c in choices)
                raise ValueError(f"preset: [train] {name}: expected {known}, got {getattr(self, name)!r}.")
        for name in ("swap_names", "warm_decay", "rl_decay"):
            if getattr(self, name) > 1:
                raise ValueError(f"preset: [train] {name}: expected a share of 0 to 1, got {getattr(self, name):g}.")
        if self.data and self.task not in READ:
            raise ValueError(
                f'preset: [train] data: task {self.task!r} reads no files; set task = "passages" or leave data out.'
            )
        if self.corpus and self.task != "search":
            raise ValueError(f'preset: [train] corpus: task {self.task!r} has no search; set task = "search" or leave it out.')
        if self.objectives > 1 and self.task != "search":
            raise ValueError(
                f"preset: [train] objectives: expected 1, as task {self.task!r} asks no questions of a search, got "
                f'{self.objectives}; set task = "search" or leave it out.'
            )
        if self.method != "tmem" and self.task != "search":
            raise ValueError(
                f'preset: [train] method: expected "tmem", as task {self.task!r} has no search, got {self.method!r}.'
            )
        if self.environment and self.task != "verifiers":
            raise ValueError(
                f'preset: [train] environment: task {self.task!r} has none; set task = "verifiers" or leave environment out.'
            )
        if self.task == "verifiers" and self.reward != "score":
            raise ValueError(
                f"preset: [train] reward: expected score, the sum of an environment's rewards, got {self.reward!r}; the "
                "preset verifiers says so."
            )
        if self.task in ("stream", *READ) and self.reward not in ("f1", "em"):
            raise ValueError(f"preset: [train] reward: expected f1 or em, got {self.reward!r}.")
        if self.layout == "fsdp" and self.policy == "lora":
            raise ValueError('preset: [train] policy: "lora" needs layout "ddp"; every rank has room for an adapter.')
        if self.layout == "fsdp" and self.replay == "log":
            raise ValueError('preset: [train] replay: "log" needs layout "ddp": under fsdp all ranks must go in step.')
        if self.rl_updates > 1 and self.replay == "log":
            raise ValueError('preset: [train] rl_updates: above 1 it needs replay "snapshot"; a moved θ0 learns another Δ.')


def train_config(name: str | Path = DEFAULT_PRESET) -> TrainConfig:
    """The [train] table of a preset. Raises ValueError, see tmem.agent.config."""
    return build(TrainConfig, read(name).get("train", {}), "train")
