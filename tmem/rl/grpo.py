"""One step of GRPO: rollouts of groups, advantages, the update of θ0, and what there is to say about it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..agent.agent import Agent
from ..agent.loop import Clock, Rollout
from ..tasks import Task
from . import neutral, replay
from .config import TrainConfig
from .loss import advantages, dead
from .policy import Policy
from .rollout import Scores, means, out_of_memory, reward, sample, scores
from .world import largest


@dataclass
class Group:
    """The rollouts of one episode; none if there was no memory for them."""

    rollouts: list[Rollout]
    found: list[Scores]
    rewards: list[float]
    tries: int = 1  # episodes sampled for this place: more than one where earlier groups had no variance
    neutral_kl: list[float] = field(default_factory=list)  # of the first rollout's Δ, where the place is probed

    @property
    def alive(self) -> bool:
        return len(set(self.rewards)) > 1

    @property
    def values(self) -> list[dict[str, float]]:
        """What was measured, by name; every number is averaged over the rows that have it."""
        return [s.values for s in self.found] + [{"neutral_kl": kl} for kl in self.neutral_kl]

    @property
    def tokens(self) -> int:
        return sum(len(a.generation.ids) for r in self.rollouts for a in r.actions)


def step(
    agent: Agent, policy: Policy, task: Task, config: TrainConfig, number: int, *,
    note: Callable[[str], None] = lambda _: None, clock: Clock,
) -> tuple[dict, list]:  # fmt: skip
    """Step `number` on all ranks together: a function of θ0, the optimizer's state and the configuration.

    Returns what goes into metrics.jsonl (docs/training.md lists the fields) and, per segment of this rank's rollouts,
    [kind, writes before it, tokens, mean |Δ log p|, largest |Δ log p|].
    """
    world = policy.world
    places = world.share(range(config.rl_episodes))
    groups = _groups(agent, task, config, number, places, note, clock)
    with clock("watch"):
        neutral_nll = neutral.nll(agent)
        for place, group in zip(places, groups):
            if place < config.probe and group.rollouts and config.replay == "snapshot":
                group.neutral_kl = [neutral.kl(agent, group.rollouts[0].delta)]
    everyone = world.gathered([(g.rewards, g.tokens, g.tries, g.values) for g in groups])
    full = [row for row in everyone if row[0]]
    total = sum(tokens for _, tokens, _, _ in full)
    mine = [g for g in groups if g.rewards]
    advantage = advantages(torch.tensor([g.rewards for g in mine]), normalise=config.normalise) if mine else torch.zeros(0)
    note("update")
    with clock("update"):
        replayed = replay.backward(
            agent, policy, [r for g in mine for r in g.rollouts], advantage.flatten().tolist(), max(1, total),
            clip=config.rl_clip, beta=config.rl_kl, tokens=config.micro_tokens, mode=config.replay,
        )  # fmt: skip
    offs = [off * n for _, _, _, n, off, _ in replayed.segments]
    loss, live, kl, entropy, ratio, clipped, off = world.total(
        replayed.loss, replayed.tokens, replayed.kl, replayed.entropy, replayed.ratio, replayed.clipped, sum(offs)
    )
    worst, worst_segment = world.most(largest(s[5] for s in replayed.segments), largest(s[4] for s in replayed.segments))
    with clock("optimizer"):
        rate = config.rl_lr * min(1.0, (number + 1) / max(1, config.rl_warmup))
        norm = policy.step(rate, config.grad_clip) if live else 0.0
        policy.drop()
    rewards = torch.tensor([row[0] for row in full], dtype=torch.float64)
    values = means([v for row in full for v in row[3]])
    row = {
        "reward": float(rewards.mean()) if len(full) else None,
        "reward_std_in_group": float(rewards.std(1, correction=0).mean()) if len(full) else None,
        "dead_groups": int(dead(rewards).sum()) if len(full) else 0,
        "resampled": sum(row[2] - 1 for row in everyone),
        "skipped_groups": len(everyone) - len(full),
        "loss": loss, "tokens": total, "live_tokens": int(live), "grad_norm": norm, "lr": rate,
        "update_skipped": int(bool(live) and not norm < float("inf")),
        **{k: v / max(1.0, live) for k, v in dict(kl=kl, entropy=entropy, ratio=ratio, clipped=clipped).items()},
        "dlogp": off / max(1.0, live), "dlogp_worst_segment": worst_segment, "dlogp_worst_token": worst,
        "neutral_nll": neutral_nll, **values,
    }  # fmt: skip
    return row, [[kind, writes, n, mean, most] for _, kind, writes, n, mean, most in replayed.segments]


def _groups(agent, task, config, number, places, note, clock) -> list[Group]:
    """A group for each place; those without variance are sampled again from other episodes as often as the config allows."""
    groups: dict[int, Group] = {}
    for again in range(config.rl_resample + 1):
        due = [p for p in places if p not in groups or (groups[p].rewards and not groups[p].alive)]
        if not due:
            break
        ending = f"/again{again}" if again else ""
        keys = {p: f"{config.seed}/rl/{number}/{p}{ending}" for p in due}
        for place, group in zip(due, _sampled(agent, task, config, number, keys, note, clock)):
            group.tries = again + 1
            groups[place] = group
    return [groups[p] for p in places]


def _sampled(agent, task, config, number, keys: dict[int, str], note, clock) -> list[Group]:
    """Groups of the episodes of `keys`. Where memory runs out, half as many at once; one that fails alone is left out."""
    rollouts = None
    try:
        rollouts = sample(
            agent, [task.episode(key, "train") for key in keys.values()], config, f"{config.seed}/rl/{number}",
            probed=[i for i, place in enumerate(keys) if place < config.probe],
            on_event=lambda phase, *_: note(phase), clock=clock,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if rollouts is None:  # the error, whose traceback holds what the attempt had made, is gone by now
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(keys) == 1:
            return [Group([], [], [])]
        items, half = list(keys.items()), len(keys) // 2
        parts = dict(items[:half]), dict(items[half:])
        return [g for part in parts for g in _sampled(agent, task, config, number, part, note, clock)]
    with clock("score"):
        found = [scores(task, r) for r in rollouts]
    n = config.rl_group
    return [
        Group(rollouts[i : i + n], found[i : i + n], [reward(s, config) for s in found[i : i + n]])
        for i in range(0, len(rollouts), n)
    ]
