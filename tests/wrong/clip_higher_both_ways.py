"""Wrong: the higher bound also moves the lower one, so that a bad action becomes less likely by more until it is clipped."""

from dataclasses import replace

from tmem.rl import loss


def policy_loss(new, old, advantage, weight, objective, **options):
    wide = replace(objective, clip=objective.clip_high or objective.clip)
    return loss.policy_loss(new, old, advantage, weight, wide, **options)
