"""Wrong: a rollout's actions carry the Δ after the write instead of the Δ that produced them."""

import dataclasses

from tmem.agent import loop


def run(agent, episodes, keys, **options):
    rollouts = loop.run(agent, episodes, keys, **options)
    for rollout in rollouts:
        last = rollout.actions[-1].delta
        rollout.actions = [dataclasses.replace(a, delta=last) for a in rollout.actions]
    return rollouts
