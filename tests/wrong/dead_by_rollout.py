"""Wrong: a rollout whose reward is just the mean of its group counts as one of a group without variance."""


def counted(groups, advantages):
    rollouts = [r for group in groups for r in group.rollouts]
    return sum(len(a.generation.ids) for r, own in zip(rollouts, advantages) if any(own) for a in r.actions)
