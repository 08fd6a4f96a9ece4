"""Wrong: every action is a member of the group, so a rollout with many actions moves the mean and is judged by it."""

import torch

from tmem.rl import loss


def advantages(rewards, actions):
    flat = [r for r, n in zip(rewards, actions) for _ in range(n)]
    found = loss.advantages(torch.tensor([flat]))[0]
    return [part.tolist() for part in found.split(actions)]
