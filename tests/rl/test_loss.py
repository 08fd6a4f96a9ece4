"""The loss of GRPO against cases worked by hand, its invariances, and the wrong variants, which must be caught."""

import math

import pytest
import torch

from tmem.rl.loss import Objective, advantages, dead, k3, policy_loss

KL = Objective(beta=0.1)


def test_advantages_are_centred_in_their_group_and_zero_in_a_dead_one():
    rewards = torch.tensor([[0.0, 1.0, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3], [1.0, 1.0, 1.0, 0.0]])
    a = advantages(rewards)
    assert torch.allclose(a.mean(1), torch.zeros(3), atol=1e-6)
    assert not a[1].any() and dead(rewards).tolist() == [False, True, False]
    assert torch.allclose(a[0], torch.tensor([-1.0, 1.0, 0.0, 0.0]) * math.sqrt(2), atol=1e-4)  # std sqrt(1/8) = 0.5 / sqrt(2)
    assert torch.allclose(advantages(rewards, normalise=False)[0], rewards[0] - 0.5)


def test_advantages_do_not_depend_on_the_order_of_rollouts_or_groups():
    rewards = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.randperm(5), torch.randperm(6)
    assert torch.allclose(advantages(rewards[rows][:, columns]), advantages(rewards)[rows][:, columns], atol=1e-6)


def test_policy_loss_is_reinforce_at_ratio_one_and_clips_beyond():
    new = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    adv = torch.tensor([1.0, -1.0, 2.0, 0.5])
    weight = torch.full((4,), 0.25)
    policy_loss(new, new.detach(), adv, weight).loss.backward()
    assert torch.allclose(new.grad, -adv * weight)  # the gradient of -Σ w Â log π
    old = new.detach() - torch.tensor([0.5, 0.5, -0.5, -0.5])  # ratio e^0.5, e^0.5, e^-0.5, e^-0.5
    new.grad = None
    found = policy_loss(new, old, adv, weight)
    found.loss.backward()
    assert found.clipped.tolist() == (new.grad == 0).tolist() == [True, False, False, False]
    by_hand = -(1.2 * 1 + math.exp(0.5) * -1 + math.exp(-0.5) * 2 + math.exp(-0.5) * 0.5) / 4
    assert float(found.loss.detach()) == pytest.approx(by_hand, rel=1e-5)
    assert found.off.tolist() == [0.5] * 4


def test_the_kl_term_is_k3_and_its_gradient_vanishes_at_the_reference():
    new = torch.tensor([-1.0, -2.0, -0.7], requires_grad=True)
    reference = torch.tensor([-1.0, -1.5, -1.7])
    weight = torch.full((3,), 1 / 3)
    found = policy_loss(new, new.detach(), torch.zeros(3), weight, Objective(beta=0.5), reference=reference)
    found.loss.backward()
    by_hand = [0.0, math.exp(0.5) - 0.5 - 1, math.exp(-1.0) + 1.0 - 1]
    assert found.kl.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert float(found.loss.detach()) == pytest.approx(0.5 * sum(by_hand) / 3, rel=1e-5)
    assert new.grad.tolist() == pytest.approx([0.5 * (1 - math.exp(d)) / 3 for d in (0.0, 0.5, -1.0)], abs=1e-6)
    assert (k3(torch.randn(99), torch.randn(99)) >= 0).all()


def test_k3_is_the_divergence_on_average():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    by_hand = float((p * (p / q).log()).sum())
    assert float((p * k3(p.log(), q.log())).sum()) == pytest.approx(by_hand, rel=1e-5)


def test_a_batch_may_be_split_and_permuted_and_padded_with_weight_zero():
    generator = torch.Generator().manual_seed(1)
    new, old, adv, ref = torch.randn(4, 12, generator=generator)
    weight = torch.full((12,), 1 / 12)
    whole = float(policy_loss(new, old, adv, weight, KL, reference=ref).loss)
    order = torch.randperm(12, generator=generator)
    parts = [order[:5], order[5:]]
    split = [policy_loss(new[i], old[i], adv[i], weight[i], KL, reference=ref[i]).loss for i in parts]
    assert float(sum(split)) == pytest.approx(whole, rel=1e-5)
    padded = [torch.cat([t, torch.full((3,), v)]) for t, v in ((new, -9.0), (old, -2.0), (adv, 5.0), (weight, 0.0), (ref, 0.0))]
    assert float(policy_loss(*padded[:4], KL, reference=padded[4]).loss) == pytest.approx(whole, rel=1e-5)


def test_bad_shapes_and_a_missing_reference_are_named():
    new = torch.zeros(4)
    with pytest.raises(ValueError, match=r"one shape, got new \(4,\), old \(2,\)"):
        policy_loss(new, new[:2], new, new)
    with pytest.raises(ValueError, match="beta is 0.1 but there is no reference"):
        policy_loss(new, new, new, new, KL)
