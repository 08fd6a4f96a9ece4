"""Wrong: hidden columns weigh nothing, and their values are multiplied with that nothing all the same."""

import torch


def attend(q, k, v, mask, scale):
    groups = q.unflatten(1, (k.shape[1], -1)).double()
    scores = (groups @ k.double().transpose(-1, -2) * scale).masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(-1).nan_to_num(0.0) @ v.double()).flatten(1, 2).to(q.dtype)
