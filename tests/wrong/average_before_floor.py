"""Wrong: the floor stands on the mean, so that one token that would never be said hides all others of its answer."""

from tmem.agent.scored import FLOOR


def floored(logp):
    return max(sum(logp) / len(logp), FLOOR)
