"""Wrong: no stop-gradient, so the policy gradient runs into the fast weights as well."""

from tmem.rl import replay


def backward(agent, policy, rollouts):
    bank = agent.bank
    free = bank.free
    bank.free = lambda slot: None  # keeps the rows, to be looked at
    route = bank.route
    bank.route = lambda slots, learn=True, **options: route(slots, learn=True, **options)
    try:
        replay.backward(agent, policy, rollouts[:1], [[1.0] * len(rollouts[0].actions)], 100)
    finally:
        bank.free, bank.route = free, route
