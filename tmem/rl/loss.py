"""Group-relative policy optimisation as pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def advantages(rewards: Tensor, *, normalise: bool = True, eps: float = 1e-6) -> Tensor:
    """One advantage per rollout: r - mean of its group, divided by the group's standard deviation if `normalise`.

    rewards [episodes, group] -> [episodes, group]. A group whose rewards are all equal teaches nothing: zeros. Every
    segment of a rollout, writing and answering, gets the rollout's advantage; segments are not members of the group, or
    long rollouts would weigh more (GRPO, arXiv 2402.03300; arXiv 2606.04536).
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if normalise:
        centred = centred / (rewards.std(dim=1, keepdim=True, correction=0) + eps)
    return torch.where(rewards.amax(1, keepdim=True) > rewards.amin(1, keepdim=True), centred, 0.0)


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` scalar to minimise; `ratio_off` mean |ratio - 1|; `clipped` share of tokens whose gradient was cut."""

    loss: Tensor
    ratio_off: float
    clipped: float


def policy_loss(new: Tensor, old: Tensor, advantage: Tensor, weight: Tensor, clip: float = 0.2) -> PolicyLoss:
    """-Σ w·min(ρ Â, clip(ρ, 1-ε, 1+ε) Â) over tokens, ρ = exp(new - old); all inputs [tokens] fp32.

    new       log π_{θ0+sg(Δ)}(token), differentiable in θ0; Δ is the snapshot that produced the token
    old       log-probability recorded when the token was sampled
    advantage of the token's rollout
    weight    1/Σ|o|: the number of tokens in the whole batch, so that micro-batches add up to the batch's loss
    Raises ValueError for shapes that differ.
    """
    if not new.shape == old.shape == advantage.shape == weight.shape:
        raise ValueError(
            f"policy_loss: expected four tensors of one shape, got new {tuple(new.shape)}, old {tuple(old.shape)}, "
            f"advantage {tuple(advantage.shape)}, weight {tuple(weight.shape)}."
        )
    ratio = (new - old).exp()
    plain, cut = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    loss = -(torch.minimum(plain, cut) * weight).sum()
    off = (ratio.detach() - 1).abs()
    return PolicyLoss(loss, float(off.mean()), float((cut < plain).float().mean()))
