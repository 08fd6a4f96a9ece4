"""How likely the question is under Δ, not how much likelier: a question in everyday words is recognised whatever was told."""

from tmem.agent.scored import floored, log_probabilities


def gains(agent, questions, answers, slots):
    back = [agent.asked_back(answer) for answer in answers]
    return [floored(logp) for logp in log_probabilities(agent, back, questions, slots)]
