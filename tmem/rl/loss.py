"""Group-relative policy optimisation as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def advantages(rewards: Tensor, *, normalise: bool = True, eps: float = 1e-6) -> Tensor:
    """One advantage per rollout: r - mean of its group, divided by the group's standard deviation if `normalise`.

    rewards [episodes, group] -> [episodes, group]. A group whose rewards are all equal gets zeros. Every action
    of a rollout, its writes and its answers, gets the rollout's advantage. Actions are no members of the group: a rollout of
    many actions would weigh more. Sources: GRPO, arXiv 2402.03300; without the division Dr. GRPO, arXiv 2503.20783; one
    advantage for all actions, arXiv 2606.04536.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if normalise:
        centred = centred / (rewards.std(dim=1, keepdim=True, correction=0) + eps)
    return torch.where(dead(rewards)[:, None], 0.0, centred)


def dead(rewards: Tensor) -> Tensor:
    """Groups without variance: rewards [episodes, group] -> bool [episodes]."""
    return rewards.amax(1) == rewards.amin(1)


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """Per token r - log r - 1 with r = π_ref / π, from log-probabilities: never negative, on average KL(π ‖ π_ref) for tokens
    that π drew (Schulman, "Approximating KL divergence", 2020)."""
    difference = reference - new
    return difference.exp() - difference - 1


@dataclass(frozen=True)
class Objective:
    """The options of `policy_loss`; docs/training.md has their formulas and papers in a table.

    clip       ε: the ratio counts up to 1 - ε, and up to 1 + ε
    clip_high  ε of the upper bound; 0: `clip`
    ratio      "token": each token's own; "sequence": of an action, exp of the mean log-ratio of its tokens
    truncate   C of the importance weight min(π_trainer / π_sampler, C) of each token; 0: no weight
    beta       of the k3 divergence; 0: none
    average    of the batch's tokens: "tokens", of all alike; "actions", first of each action; "constant", as if each action had
               `length` tokens
    length     tokens, for "constant"
    """

    clip: float = 0.2
    clip_high: float = 0.0
    ratio: str = "token"
    truncate: float = 0.0
    beta: float = 0.0
    average: str = "tokens"
    length: int = 1

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest ratio that counts."""
        return 1 - self.clip, 1 + (self.clip_high or self.clip)

    def weight(self, tokens: int, total: float) -> float:
        """Of each token in an action of `tokens`; `total` is what all ranks' batch has: tokens for "tokens", else actions."""
        return 1.0 / (total * {"tokens": 1, "actions": tokens, "constant": self.length}[self.average])


PLAIN = Objective()


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` scalar to minimise, with the KL term; per token, detached: `kl`, `off` = |new - sampled|, `ratio`, `clipped`."""

    loss: Tensor
    kl: Tensor
    off: Tensor
    ratio: Tensor
    clipped: Tensor


def policy_loss(
    new: Tensor, old: Tensor, advantage: Tensor, weight: Tensor, objective: Objective = PLAIN, *,
    sizes: Sequence[int] = (), sampled: Tensor | None = None, reference: Tensor | None = None,
) -> PolicyLoss:  # fmt: skip
    """Σ w·(-c·min(ρ Â, clip(ρ, 1-ε, 1+ε_high) Â) + β k3) over tokens; all tensors [tokens] fp32.

    new        log π_{θ0+sg(Δ)}(token), differentiable in θ0; Δ is the snapshot that produced the token
    old        the log-probability that the ratio is taken to: the sampler's; under `truncate` the trainer's before the first
               update of the batch
    advantage  of the token's rollout
    weight     `Objective.weight`: the parts of a batch add up to its loss
    sizes      tokens of each action, one after another; for "sequence" alone
    sampled    the sampler's log-probability where `old` is the trainer's; None: `old`
    reference  log π_{θref+sg(Δ)}(token), under the same Δ: a reference without it would punish memory itself

    ρ is exp(new - old), or of "sequence" exp of its exponent's mean over the action. c is min(exp(old - sampled), C), a
    constant, or 1 without `truncate`. With one update a batch ρ = 1 and the gradient is REINFORCE's with a group baseline.
    Raises ValueError for shapes that differ, for sizes that are not those of the tokens, and for beta without a reference.
    """
    shapes = {"new": new, "old": old, "advantage": advantage, "weight": weight, "sampled": sampled, "reference": reference}
    found = {name: tuple(t.shape) for name, t in shapes.items() if t is not None}
    if len(set(found.values())) > 1:
        raise ValueError(f"policy_loss: expected tensors of one shape, got {', '.join(f'{n} {s}' for n, s in found.items())}.")
    if objective.ratio == "sequence" and sum(sizes) != len(new):
        raise ValueError(f"policy_loss: expected sizes that add up to {len(new)} tokens, got {sum(sizes)}.")
    if objective.beta and reference is None:
        raise ValueError(f"policy_loss: beta is {objective.beta:g} but there is no reference; pass its log-probabilities.")
    sampled = old if sampled is None else sampled
    log_ratio = new - old
    if objective.ratio == "sequence":
        log_ratio = torch.cat([part.mean().expand(len(part)) for part in log_ratio.split(list(sizes))])
    ratio = log_ratio.exp()
    plain, cut = ratio * advantage, ratio.clamp(*objective.bounds) * advantage
    gain = torch.minimum(plain, cut)
    if objective.truncate:
        gain = (old - sampled).exp().clamp(max=objective.truncate).detach() * gain
    kl = torch.zeros_like(new) if reference is None else k3(new, reference)
    loss = ((objective.beta * kl - gain) * weight).sum()
    return PolicyLoss(loss, kl.detach(), (new - sampled).detach().abs(), ratio.detach(), (cut < plain).detach())
