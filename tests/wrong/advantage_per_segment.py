"""Wrong: every segment is a member of the group, so a rollout with many segments moves the mean and is judged by it."""

import torch

from tmem.rl import loss


def advantages(rewards, segments):
    flat = [r for r, n in zip(rewards, segments) for _ in range(n)]
    found = loss.advantages(torch.tensor([flat]))[0]
    return [part.tolist() for part in found.split(segments)]
