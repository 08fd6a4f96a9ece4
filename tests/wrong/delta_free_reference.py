"""Wrong: the reference is asked without the memory, so memory itself is punished as a divergence."""

from tmem.rl import replay


def backward(agent, policy, rollouts, advantages, total, objective):
    score = replay._score

    def without(policy, bank, part, *, reference=False):
        if not reference:
            return score(policy, bank, part)
        with bank.route([-1] * len(part), learn=False):
            return score(policy, bank, part, reference=True)

    replay._score = without
    try:
        return replay.backward(agent, policy, rollouts, advantages, total, objective)
    finally:
        replay._score = score
