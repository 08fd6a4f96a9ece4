"""Wrong: beside the importance weight the ratio is still to the sampler, so that its mismatch with the trainer counts twice."""

from tmem.rl import loss


def policy_loss(new, old, advantage, weight, objective, *, sampled, **options):
    return loss.policy_loss(new, sampled, advantage, weight, objective, sampled=2 * sampled - old, **options)
