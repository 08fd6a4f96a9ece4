"""Wrong: a write gets what it added to the writes before it, so what a later write teaches too is the first one's alone."""

from tmem.rl import credit


def added_by_writes(agent, rollouts):
    out = []
    for rollout in rollouts:
        logs = [[e.written.pairs for e in rollout.log[:j]] for j in range(len(rollout.log) + 1)]
        found = credit._rewards(agent, logs, [rollout] * len(logs))
        out.append([after - before for before, after in zip(found, found[1:])])
    return out
