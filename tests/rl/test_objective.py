"""The options of the policy loss against numbers worked by hand, updates that follow one another, and the wrong variants."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from test_rl import each, policy_of, rollouts_of
from tiny_agent import TRAIN, agent_of
from wrong import (
    clip_higher_both_ways,
    dead_by_rollout,
    mismatch_counted_twice,
    ratio_to_last_update,
    sequence_ratio_of_sums,
)

from tmem.rl import grpo, replay
from tmem.rl.grpo import Group
from tmem.rl.loss import Objective, policy_loss
from tmem.testing import assert_close

FP64 = {"dtype": torch.float64}


def found(loss, log_ratios, advantages, objective, *, sizes=(), mismatch=None):
    """(loss, gradient in log π, clipped) of tokens with these log-ratios, each of weight 1/2; mismatch: log π of the trainer
    before its first update less that of the sampler."""
    old = torch.linspace(-3, -1, len(log_ratios), **FP64)
    new = (old + torch.tensor(log_ratios, **FP64)).requires_grad_()
    options = {"sizes": sizes} | ({} if mismatch is None else {"sampled": old - torch.tensor(mismatch, **FP64)})
    out = loss(new, old, torch.tensor(advantages, **FP64), torch.full_like(old, 0.5), objective, **options)
    out.loss.backward()
    return float(out.loss.detach()), new.grad.tolist(), out.clipped.tolist()


def is_by_hand(loss, case):
    given, options, (value, gradient, clipped) = case
    value_found, gradient_found, clipped_found = found(loss, *given, **options)
    close = {"rel": 1e-12, "abs": 1e-12}  # fp64
    return (
        value_found == pytest.approx(value, **close)
        and gradient_found == pytest.approx(gradient, **close)
        and clipped_found == clipped
    )


# Two good tokens, one of them above the upper bound 1.28; two bad ones, one of them below the lower bound 0.8. A clipped token
# has no gradient.
CLIP_HIGHER = (
    ([math.log(1.25), math.log(1.5), math.log(0.85), math.log(0.75)], [1.0, 2.0, -1.0, -2.0], Objective(0.2, 0.28)),
    {},
    (-(1.25 + 2 * 1.28 - 0.85 - 2 * 0.8) / 2, [-1.25 / 2, 0.0, 0.85 / 2, 0.0], [False, True, False, True]),
)

# An action of two tokens whose log-ratios have the mean 0.15, and one of a single token. Each token of the first has a share of
# half in the ratio, and there are two of them.
SEQUENCE = (
    ([0.4, -0.1, -0.1], [1.0, 1.0, -2.0], Objective(ratio="sequence")),
    {"sizes": [2, 1]},
    (
        -(2 * math.exp(0.15) - 2 * math.exp(-0.1)) / 2,
        [-math.exp(0.15) / 2, -math.exp(0.15) / 2, math.exp(-0.1)],
        [False] * 3,
    ),
)

# The trainer gave the first token 0.9 times the sampler's probability, the second one 3 times, of which 2 count.
TRUNCATED = (
    ([0.1, 0.0], [1.0, -1.0], Objective(truncate=2.0)),
    {"mismatch": [math.log(0.9), math.log(3.0)]},
    (-(0.9 * math.exp(0.1) - 2.0) / 2, [-0.9 * math.exp(0.1) / 2, 1.0], [False] * 2),
)


@pytest.mark.parametrize(
    "case, wrong",
    [(CLIP_HIGHER, clip_higher_both_ways), (SEQUENCE, sequence_ratio_of_sums), (TRUNCATED, mismatch_counted_twice)],
    ids=["clip-higher", "sequence", "truncated"],
)
def test_an_option_is_what_was_worked_by_hand_and_its_wrong_variant_is_not(case, wrong):
    assert is_by_hand(policy_loss, case)
    assert not is_by_hand(wrong.policy_loss, case)


def test_without_an_option_its_inputs_change_nothing():
    plain = found(policy_loss, [0.4, -0.1, -0.1], [1.0, 1.0, -2.0], Objective())
    assert found(policy_loss, [0.4, -0.1, -0.1], [1.0, 1.0, -2.0], Objective(), sizes=[1, 2], mismatch=[1.0, 2.0, 3.0]) == plain


@pytest.mark.parametrize("average, weights", [
    ("tokens", [1 / 4, 1 / 4]),  # four tokens
    ("actions", [1 / 2, 1 / 6]),  # two actions of one and three
    ("constant", [1 / 16, 1 / 16]),  # two actions of eight
])  # fmt: skip
def test_the_weights_of_a_token_in_an_action_of_one_and_in_one_of_three(average, weights):
    objective = Objective(average=average, length=8)
    assert [objective.weight(n, 4 if average == "tokens" else 2) for n in (1, 3)] == pytest.approx(weights, rel=1e-15)


def test_sizes_that_are_not_those_of_the_tokens_are_named():
    with pytest.raises(ValueError, match="sizes that add up to 4 tokens, got 3"):
        policy_loss(*torch.zeros(4, 4), Objective(ratio="sequence"), sizes=[1, 2])
    with pytest.raises(ValueError, match=r"one shape, got new \(4,\), .* sampled \(2,\)"):
        policy_loss(*torch.zeros(4, 4), sampled=torch.zeros(2))


# in an update ------------------------------------------------------------------------------------------------------------


def gradient(policy):
    out = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in policy.params])
    policy.drop()
    return out


@pytest.mark.parametrize("average", ["tokens", "actions", "constant"])
def test_an_average_of_actions_does_not_depend_on_micro_batches(monkeypatch, average):
    """And is the sum over the actions alone, each with its weight."""
    agent = agent_of(slots=8)
    policy, rollouts = policy_of(agent), rollouts_of(agent, monkeypatch)
    objective = Objective(average=average, length=40, ratio="sequence" if average == "actions" else "token")
    parts = []
    for tokens in (64, 4096):
        replay.backward(agent, policy, rollouts, each(rollouts), 8, objective, tokens=tokens)
        parts.append(gradient(policy))
    assert_close("micro-batches", parts[0], parts[1], 1e-4)  # fp32, other sums
    for rollout, advantages in zip(rollouts, each(rollouts)):
        for k, action in enumerate(rollout.actions):
            weight, n = objective.weight(len(action.generation.ids), 8), len(action.generation.ids)
            alone = [a if i == k else 0.0 for i, a in enumerate(advantages)]
            replay.backward(agent, policy, [rollout], [alone], 1 / (weight * n), Objective(average="actions"))
            parts[0] -= gradient(policy)
    assert float(parts[0].norm()) < 1e-4 * float(parts[1].norm())


def two_updates(agent, policy, rollouts, backward, objective):
    """What the second update on a batch finds; θ0 is then as it was."""
    before = [p.detach().clone() for p in policy.params]
    first = backward(agent, policy, rollouts, each(rollouts), 100, objective, before=None)
    policy.step(1e-2)
    second = backward(agent, policy, rollouts, each(rollouts), 100, objective, before=first)
    moved = gradient(policy)
    policy.restart()
    with torch.no_grad():
        torch._foreach_copy_(policy.params, before)
    policy.publish()
    return first, second, moved


@pytest.mark.parametrize("truncate", [0.0, 1e3])
def test_the_ratio_of_a_second_update_is_to_the_policy_before_the_first(monkeypatch, truncate):
    agent = agent_of(slots=8)
    policy, rollouts, objective = policy_of(agent), rollouts_of(agent, monkeypatch), Objective(clip=9.0, truncate=truncate)
    first, second, _ = two_updates(agent, policy, rollouts, replay.backward, objective)
    n = first.tokens
    assert first.ratio / n == pytest.approx(1, abs=1e-5) and abs(second.ratio / n - 1) > 1e-3 and second.tokens == n
    assert second.actions == first.actions and max(most for *_, most in first.actions) < 1e-4  # |Δ log p|: the first's
    own = torch.cat([s.own for s in second.samples])
    sampled = torch.tensor([lp for s in second.samples for lp in s.action.generation.logprobs])
    assert_close("before the first update", own, sampled, 1e-5)
    if truncate:
        _, wrong, _ = two_updates(agent, policy, rollouts, ratio_to_last_update.backward, objective)
        assert wrong.ratio / n == pytest.approx(1, abs=1e-5)


def test_a_mismatch_of_the_sampler_is_weighed_and_leaves_the_ratio_alone(monkeypatch):
    """A sampler that finds every token e^0.3 times as likely as the trainer does: each token has the weight e^-0.3, in both
    updates; without the weight the ratio is off by as much."""
    agent = agent_of(slots=8)
    policy, rollouts = policy_of(agent), rollouts_of(agent, monkeypatch)
    exact = two_updates(agent, policy, rollouts, replay.backward, Objective())
    for rollout in rollouts:
        for action in rollout.actions:
            action.generation.logprobs[:] = [lp + 0.3 for lp in action.generation.logprobs]
    first, second, moved = two_updates(agent, policy, rollouts, replay.backward, Objective(truncate=2.0))
    assert first.ratio == first.tokens and second.ratio == pytest.approx(exact[1].ratio, rel=1e-5)
    assert second.clipped == exact[1].clipped
    for mine, theirs in ((first.loss, exact[0].loss), (second.loss, exact[1].loss)):
        assert mine == pytest.approx(math.exp(-0.3) * theirs, rel=1e-4)
    off = two_updates(agent, policy, rollouts, replay.backward, Objective())[0]
    assert off.ratio == pytest.approx(math.exp(-0.3) * off.tokens, rel=1e-4)
    assert [round(mean, 4) for *_, mean, _ in first.actions] == [0.3] * len(first.actions)


def groups_of(*sizes):
    """Groups of rollouts of so many actions of five tokens, one of which says nothing."""
    said = SimpleNamespace(generation=SimpleNamespace(ids=[1] * 5))
    nothing = SimpleNamespace(generation=SimpleNamespace(ids=[]))
    return [Group([SimpleNamespace(actions=[said] * n + [nothing]) for n in group], [], [0.0]) for group in sizes]


def test_what_counts_in_the_average_with_dead_groups_and_without():
    groups, advantages = groups_of([1, 2, 3], [4, 4], []), [[-1.0] * 2, [0.0] * 3, [1.0] * 4, [0.0] * 5, [0.0] * 5]
    counts = {
        (dead, average): grpo._counted(dataclasses.replace(TRAIN, rl_dead=dead, rl_average=average), groups, advantages)
        for dead in ("counted", "dropped")
        for average in ("tokens", "actions", "constant")
    }
    assert list(counts.values()) == [70, 14, 14, 30, 6, 6]
    assert dead_by_rollout.counted(groups, advantages) == 20  # the second rollout is the mean of a group that is alive


def test_updates_with_a_delta_learned_again_are_refused():
    with pytest.raises(ValueError, match='rl_updates: above 1 it needs replay "snapshot"'):
        dataclasses.replace(TRAIN, rl_updates=2, replay="log")
