"""The words before a question are read once for all questions under one Δ, and answers stay what they are."""

import dataclasses

import pytest
import torch
from tiny_agent import CONFIG, agent_of

from tmem.agent import agent as agents

ASKED = "Answer in a few words; if you do not know, answer: {unknown}.\n{question}"
WORDED = dataclasses.replace(
    CONFIG,
    learn=dataclasses.replace(CONFIG.learn, renderings=(ASKED,)),
    answer=dataclasses.replace(CONFIG.answer, asked=ASKED),
)
QUESTIONS = ["What is Ada's boat?", "Who rows it?", "Where does Ben live?"]


def asking(config=WORDED, **options):
    agent = agent_of(config=config, **options)
    slots = [agent.bank.alloc() for _ in range(2)]
    for site in agent.bank.sites:
        site.bt[slots[0]].normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return agent, slots


def said(agent, asked, slots, **how):
    replies = agent.say([agent.asked(q) for q in asked], slots, max_new=6, **how)
    return [(r.generation.ids, r.generation.logprobs) for r in replies]


def test_an_opening_is_what_all_questions_begin_with_where_it_is_long_enough():
    agent, _ = asking()
    prompts = [agent.chat.prompt(agent.asked(q)) for q in QUESTIONS]
    (begin, *others) = agent.opened(prompts)
    assert others == [begin] * 2 and agents.OPENING <= begin < min(map(len, prompts))
    assert len({tuple(p[:begin]) for p in prompts}) == 1 and len({p[begin] for p in prompts}) > 1
    assert agent.opened([agent.chat.prompt("Rows of boats"), prompts[0][: agents.OPENING]]) == [0, 0]
    assert asking(CONFIG)[0].opened([agent.chat.prompt(QUESTIONS[0])]) == [0]  # asked bare


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_question_is_answered_with_the_same_bits_alone_and_among_others(family):
    agent, slots = asking(family=family)
    under = [slots[0], slots[1], slots[0]]
    together = said(agent, QUESTIONS, under, questions=True)
    for question, slot, found in zip(QUESTIONS, under, together):
        assert said(agent, [question], [slot], questions=True) == [found]
    whole = said(agent, QUESTIONS, under)
    assert [ids for ids, _ in whole] == [ids for ids, _ in together]
    for (_, one), (_, other) in zip(whole, together):
        assert one == pytest.approx(other, abs=1e-5)


def test_the_opening_is_read_once_under_each_delta(monkeypatch):
    agent, slots = asking()
    begins, decode = [], agents.decode
    monkeypatch.setattr(agents, "decode", lambda *given, **how: begins.append(how["begins"]) or decode(*given, **how))
    agent.answer(QUESTIONS, [slots[0]] * 3)
    said(agent, QUESTIONS, [slots[0]] * 3)
    assert all(b >= agents.OPENING for b in begins[0]) and begins[-1] is None
