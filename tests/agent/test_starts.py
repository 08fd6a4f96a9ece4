"""An answer from a passage is begun in several ways: what each first token leads to, and which answer stands."""

import dataclasses
import math

import pytest
import torch
from tiny_agent import CONFIG, agent_of

import tmem.agent.sampling as sampling
from tmem.agent.decode import decode
from tmem.agent.write import RELUCTANT, first_line, stands

MANY = dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=6, starts=3))
PROMPTS = [[5, 9, 2], [7] * 20, [3, 1, 4, 1, 5]]


def said(agent, prompts, **how):
    return decode(agent.model, prompts, end=agent.chat.ends, max_new=6, **how)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_generation_begins_with_the_token_of_its_rank_and_is_greedy_after_it(fixed):
    agent, ranks = agent_of(), [0, 1, 2, 5]
    found = iter(said(agent, [p for p in PROMPTS for _ in ranks], ranks=ranks * len(PROMPTS), fixed=fixed))
    for prompt in PROMPTS:
        first = agent.model(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1).sort(descending=True)
        for rank in ranks:
            one, token = next(found), int(first.indices[rank])
            assert one.ids[0] == token and one.logprobs[0] == pytest.approx(float(first.values[rank]), abs=1e-4)
            if token not in agent.chat.ends:
                assert one.ids[1:] == decode(agent.model, [[*prompt, token]], end=agent.chat.ends, max_new=5)[0].ids
            assert one == said(agent, [prompt], ranks=[rank], fixed=fixed)[0]
    assert said(agent, PROMPTS, ranks=[0] * len(PROMPTS)) == said(agent, PROMPTS)


def test_what_begins_too_improbably_is_not_followed(monkeypatch):
    agent, prompt = agent_of(), PROMPTS[0]
    logp = agent.model(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1).sort(descending=True).values
    share = math.exp(float(logp[2] + logp[3]) / 2 - float(logp[0]))  # between the third and the fourth
    monkeypatch.setattr(sampling, "SLIGHT", share)
    found = said(agent, [prompt] * 5 + PROMPTS[1:], ranks=[0, 1, 2, 3, 4, 0, 0])
    assert [bool(g.ids) for g in found] == [True] * 3 + [False] * 2 + [True] * 2
    assert found[5:] == said(agent, PROMPTS[1:]) and found[3].logprobs == [] and not found[3].finished


def test_a_first_token_is_either_drawn_or_of_a_rank():
    agent = agent_of()
    with pytest.raises(ValueError, match="give one of them"):
        said(agent, PROMPTS, ranks=[0, 1, 0], temperature=1.0, keys=["a", "b", "c"])


def test_the_likeliest_answer_that_stands_in_the_passage_is_taken():
    passage = "Ada: I live in Oslo, with Rex."
    assert stands([("Oslo", -1.0), ("Rex", -0.9)], "unknown", passage) == 1
    assert stands([("Paris", -0.1), ("oslo.", -9.0)], "unknown", passage) == 1
    assert stands([("Paris", -2.0), ("London", -1.0)], "unknown", passage) == 1
    assert stands([("Osl", -0.1), ("Oslo", -9.0)], "unknown", passage) == 1, "a part of a word does not stand there"
    assert stands([("Unknown.", -1.0), ("Oslo", -1.0 - RELUCTANT + 0.1)], "unknown", passage) == 1
    assert stands([("Unknown.", -1.0), ("Oslo", -1.0 - RELUCTANT - 0.1)], "unknown", passage) == 0
    assert stands([("Paris", -0.1), ("unknown", -5.0)], "unknown", passage) == 1
    assert stands([("no idea", -1.0), ("Oslo", -1.1)], "no idea", passage) == 1
    assert stands([("Oslo", -3.0), ("No.", -0.2)], "unknown", passage) == 1, "a yes or no stands in no passage"
    assert stands([("", -0.1), ("Oslo", -1.1)], "unknown", passage) == 1 and stands([("", -0.1)], "unknown", "") == 0


def test_what_is_answered_from_a_passage_is_the_best_of_its_starts_and_costs_them_all(monkeypatch):
    monkeypatch.setattr(sampling, "SLIGHT", 0.0)
    agent, passage, asked = agent_of(slots=3, config=MANY), "Ada: I live in Oslo.", ["Where?", "Who lives there?"]
    (draft,) = agent.write([passage], known=[asked])
    total = 0
    for reply in draft.replies:
        tried = agent.say([reply.prompt] * 3, max_new=16, begins=[reply.begin] * 3, ranks=[0, 1, 2])
        values = [(first_line(r.text), sum(r.generation.logprobs)) for r in tried]
        best = tried[stands(values, "unknown", passage)]
        assert (reply.generation, reply.text) == (best.generation, best.text)
        assert reply.generated == sum(r.generated for r in tried) > best.generated
        total += reply.generated
    assert draft.generated == total
    assert agent.write([passage], known=[asked])[0] == agent.write([passage, "Ben: hi."], known=[asked, ["Who?"]])[0]
    drawn = agent.write([passage], known=[asked], temperature=1.0)[0]
    assert [r.untaken for r in drawn.replies] == [0, 0], "what is drawn is drawn once"
