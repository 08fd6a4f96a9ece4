"""Tokens are told of as they come, and a prompt may be ended, which changes no other's."""

from tiny_agent import agent_of

PROMPTS = [f"what is {'x' * n}?" for n in (1, 30, 4, 9, 2, 60, 7)]


def test_every_token_is_told_of_and_an_ended_prompt_leaves_the_others_alone():
    agent = agent_of()
    whole = agent.say(PROMPTS, max_new=12)
    heard = {i: [] for i in range(len(PROMPTS))}
    most = [12, 1, 3, 12, 5, 2, 12]

    def watch(i, token):
        heard[i].append(token)
        return len(heard[i]) == most[i]

    for temperature in (0.0, 0.7):
        if temperature:
            heard = {i: [] for i in range(len(PROMPTS))}
            whole = agent.say(PROMPTS, max_new=12, temperature=temperature, keys=PROMPTS)
        said = agent.say(PROMPTS, max_new=12, temperature=temperature, keys=PROMPTS, watch=watch)
        for i, (one, all_of_it) in enumerate(zip(said, whole)):
            assert one.generation.ids == heard[i] == all_of_it.generation.ids[: most[i]]
            assert one.generation.finished == (one.generation.ids[-1] in agent.chat.ends)
