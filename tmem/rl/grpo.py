"""One step of GRPO: rollouts of groups, advantages, the update of θ0, and what there is to say about it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..agent.agent import Agent
from ..agent.loop import Clock, Rollout
from ..machine import out_of_memory
from ..tasks.task import Environment
from . import credit, neutral, replay
from .config import TrainConfig
from .halves import Halves, correlation, halves
from .loss import Objective, advantages, dead
from .policy import Policy, falling
from .rollout import Scores, means, require, reward, rewarded, sample, scores
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


class Told(NamedTuple):
    """What every rank tells the others of one group."""

    rewards: list[float]
    tokens: int  # generated
    tries: int
    values: list[dict[str, float]]
    halves: Halves


def step(
    agent: Agent, policy: Policy, task: Environment, config: TrainConfig, number: int, *,
    note: Callable[[str], None] = lambda _: None, clock: Clock,
) -> tuple[dict, list]:  # fmt: skip
    """Step `number` on all ranks together: a function of θ0, the optimizer's state and the configuration.

    Returns what goes into metrics.jsonl (docs/training.md lists the fields) and, per action of this rank's rollouts,
    [kind, writes before it, tokens, mean |Δ log p|, largest |Δ log p|].
    """
    world = policy.world
    places = world.share(range(config.rl_episodes))
    groups = _groups(agent, task, config, number, places, note, clock)
    with clock("watch"):
        neutral_nll = neutral.nll(agent)
        _watch_neutral_text(agent, config, zip(places, groups))
    everyone = world.gathered([_told(group, config, f"{config.seed}/halves/{number}/{p}") for p, group in zip(places, groups)])
    full = [group for group in everyone if group.rewards]
    with clock("credit"):
        advantage = _advantages(agent, config, [g for g in groups if g.rewards])
    note("update")
    rate = _rate(config, number)
    compared, norm, skipped, actions = _updated(agent, policy, config, groups, advantage, rate, clock)
    row = {
        **_of_rewards(everyone), "loss": compared.pop("loss"), "tokens": sum(group.tokens for group in full),
        "live_tokens": compared.pop("live_tokens"), "grad_norm": norm, "lr": rate, "update_skipped": skipped, **compared,
        "neutral_nll": neutral_nll, **means([v for group in full for v in group.values]),
    }  # fmt: skip
    return row, [[kind, writes, n, mean, most] for _, kind, writes, n, mean, most in actions]


def _updated(agent, policy, config, groups, advantage, rate, clock) -> tuple[dict, float, int, list]:
    """`rl_updates` updates on one batch: what the trainer found, the largest gradient norm, how many were skipped, and the
    actions. Loss, KL, entropy, ratio and clipping are means over the updates; |Δ log p| is the first's, before θ0 moved."""
    (total,) = policy.world.total(_counted(config, groups, advantage))
    batch, objective = _batch(config, groups, advantage), objective_of(config, agent)
    rollouts, advantage = [r for r, _ in batch], [own for _, own in batch]
    replayed, found, norms = None, [], []
    for _ in range(config.rl_updates):
        with clock("update"):
            replayed = replay.backward(
                agent, policy, rollouts, advantage, max(1, total), objective,
                tokens=config.micro_tokens, mode=config.replay, before=replayed,
            )  # fmt: skip
        tokens, compared = _compared(policy, replayed)
        found.append(compared)
        with clock("optimizer"):
            norms += [policy.step(rate, config.grad_clip)] if tokens else []
            policy.drop()
    moving = ("loss", "kl", "entropy", "ratio", "clipped")
    compared = {**found[0], **{name: sum(f[name] for f in found) / len(found) for name in moving}}
    return compared, largest(norms), sum(not norm < float("inf") for norm in norms), replayed.actions


def objective_of(config: TrainConfig, agent: Agent) -> Objective:
    """The policy loss of a configuration."""
    limits = agent.config.write.max_new, agent.config.answer.max_new
    return Objective(
        config.rl_clip, config.rl_clip_high, config.rl_ratio, config.rl_truncate, config.rl_kl, config.rl_average, max(limits)
    )


def _counted(config: TrainConfig, groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> int:
    """What this rank adds to the divisor of the loss: tokens, or actions."""
    sizes = [len(a.generation.ids) for r, _ in _batch(config, groups, advantages) for a in r.actions]
    return sum(sizes) if config.rl_average == "tokens" else sum(n > 0 for n in sizes)


def _batch(
    config: TrainConfig, groups: Sequence[Group], advantages: Sequence[Sequence[float]]
) -> list[tuple[Rollout, Sequence[float]]]:  # fmt: skip
    """The rollouts that the loss is a mean over, with their advantages: groups without one where these count."""
    batch, own = [], iter(advantages)
    for group in groups:
        theirs = [(rollout, next(own)) for rollout in group.rollouts]
        if config.rl_dead == "counted" or any(any(mine) for _, mine in theirs):
            batch += theirs
    return batch


def _told(group: Group, config: TrainConfig, key: str) -> Told:
    """What the other ranks need of a group; `key` draws the halves of its questions."""
    name = rewarded(config)
    found = halves([[q[name] for q in s.questions if name in q] for s in group.found], key)
    return Told(group.rewards, group.tokens, group.tries, group.values, found)


def _rate(config: TrainConfig, number: int) -> float:
    """The learning rate of step `number`: it rises over `rl_warmup` steps and falls to 0 over the last share `rl_decay`."""
    rising = min(1.0, (number + 1) / max(1, config.rl_warmup))
    return config.rl_lr * rising * falling(1 - number / config.rl_steps, config.rl_decay)


def _watch_neutral_text(agent: Agent, config: TrainConfig, placed: Iterable[tuple[int, Group]]) -> None:
    """Measure what Δ changes on neutral text, for the first rollout of the first `probe` places."""
    for place, group in placed:
        if place < config.probe and group.rollouts and config.replay == "snapshot":
            group.neutral_kl = [neutral.kl(agent, group.rollouts[0].delta)]


def _advantages(agent: Agent, config: TrainConfig, groups: Sequence[Group]) -> list[list[float]]:
    """One for each action of every rollout of groups that have rewards: its rollout's, or its own."""
    if config.rl_credit == "action":
        return credit.advantages(agent, [(g.rollouts, g.found) for g in groups], config)
    found = advantages(torch.tensor([g.rewards for g in groups]), normalise=config.normalise).flatten() if groups else ()
    return [[float(a)] * len(r.actions) for a, r in zip(found, (r for g in groups for r in g.rollouts))]


def _compared(policy: Policy, replayed: replay.Replayed) -> tuple[float, dict]:
    """How many tokens all ranks replayed, and as logged the loss and how the trainer's log-probabilities compare with the
    sampler's."""
    offs = sum(off * n for _, _, _, n, off, _ in replayed.actions)
    loss, live, tokens, *sums, off = policy.world.total(
        replayed.loss, replayed.live, replayed.tokens, replayed.kl, replayed.entropy, replayed.ratio, replayed.clipped, offs
    )
    worst, worst_action = policy.world.most(
        largest(most for *_, most in replayed.actions), largest(mean for *_, mean, _ in replayed.actions)
    )
    return tokens, {
        "loss": loss, "live_tokens": int(live),
        **{name: value / max(1.0, tokens) for name, value in zip(("kl", "entropy", "ratio", "clipped"), sums)},
        "dlogp": off / max(1.0, tokens), "dlogp_worst_segment": worst_action, "dlogp_worst_token": worst,
    }  # fmt: skip


def _of_rewards(everyone: Sequence[Told]) -> dict:
    """What the rewards of all groups were, as logged; null where there was no memory for any."""
    full = [group for group in everyone if group.rewards]
    rewards = torch.tensor([group.rewards for group in full], dtype=torch.float64)
    return {
        "reward": float(rewards.mean()) if full else None,
        "reward_std_in_group": float(rewards.std(1, correction=0).mean()) if full else None,
        "split_half": correlation([group.halves for group in full]),
        "dead_groups": int(dead(rewards).sum()) if full else 0,
        "resampled": sum(group.tries - 1 for group in everyone),
        "skipped_groups": len(everyone) - len(full),
    }


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
        require(found, [r.episode for r in rollouts], rewarded(config))
    n = config.rl_group
    return [
        Group(rollouts[i : i + n], found[i : i + n], [reward(s, config) for s in found[i : i + n]])
        for i in range(0, len(rollouts), n)
    ]
