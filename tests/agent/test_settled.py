"""An answer out of Δ that it is not sure of is an abstention."""

import dataclasses
import math

import pytest
from tiny_agent import CONFIG, EPISODES, agent_of

import tmem.agent.agent as agent_module
from tmem.agent import loop
from tmem.agent.agent import Reply
from tmem.agent.config import AnswerConfig, agent_config, build
from tmem.agent.decode import Generation
from tmem.memory import Memory
from tmem.methods import reader

SURE = dataclasses.replace(CONFIG, answer=dataclasses.replace(CONFIG.answer, sure=0.5))


def reply(*probabilities, text="Oslo\nand more"):
    return Reply([1], Generation([2] * len(probabilities), [math.log(p) for p in probabilities], True), text)


@pytest.mark.parametrize(
    "probabilities, sure, said",
    [
        ((0.9, 0.6), 0.5, "Oslo"), ((0.9, 0.4), 0.5, "unknown"), ((0.4, 0.9), 0.5, "unknown"), ((0.01,), 0.0, "Oslo"),
        ((), 0.5, "Oslo"),
    ],
)  # fmt: skip
def test_the_least_probable_token_decides(probabilities, sure, said):
    agent = agent_of(config=dataclasses.replace(SURE, answer=dataclasses.replace(SURE.answer, sure=sure)))
    assert agent.settled(["Where?"], [reply(*probabilities)], [-1]) == [said]


def test_the_abstention_is_the_word_that_was_taught():
    other = dataclasses.replace(SURE, learn=dataclasses.replace(SURE.learn, unknown="no idea"))
    assert agent_of(config=other).settled(["Where?"], [reply(0.1)], [-1]) == ["no idea"]


@pytest.fixture
def unsure(monkeypatch):
    """Whatever is said is "Oslo", with a probability of 0.3."""

    def say(agent, prompts, slots=None, **how):
        return [reply(0.3) for _ in prompts]

    monkeypatch.setattr(agent_module.Agent, "say", say)


def test_whoever_asks_delta_gets_the_abstention(unsure):
    agent = agent_of(config=SURE)
    assert agent.answer(["Where?"]) == ["unknown"]
    memory = Memory(agent)
    assert memory.ask("Where?") == "unknown"
    (rollout,) = loop.run(agent, [dataclasses.replace(EPISODES[0], chunks=())], ["k"])
    assert rollout.answers == ["unknown"]
    kept = reader.Kept(delta=agent.bank.snapshot(memory.slot))
    asked = [(kept, EPISODES[0].questions[0])]
    assert [s.text for s in reader.ask(agent, asked)] == ["unknown"]


def test_what_stands_in_the_prompt_is_answered_as_it_was_said(unsure):
    """Text rivals, Δ beside found lines, and text that still waits: there the model abstains in words, as it was taught."""
    agent = agent_of(config=SURE)
    memory = Memory(agent)
    memory.observe("Ada: I live in Oslo.")
    assert memory.ask("Where?") == "Oslo"
    question = EPISODES[0].questions[0]
    for kept in (reader.Kept(text="a line"), reader.Kept(text="a line", delta=agent.bank.snapshot(memory.slot)), reader.Kept()):
        assert [s.text for s in reader.ask(agent, [(kept, question)])] == ["Oslo"]


def test_a_sampled_answer_is_what_was_drawn(unsure):
    agent = agent_of(config=SURE)
    (rollout,) = loop.run(agent, [dataclasses.replace(EPISODES[0], chunks=())], ["k"], temperature=1.0)
    assert rollout.answers == ["Oslo"]


def test_a_probability_is_below_one():
    with pytest.raises(ValueError, match=r"\[answer\] sure: expected a probability of 0 to below 1, got 1"):
        build(AnswerConfig, {"max_new": 4, "asked": "{question}", "sure": 1, "gain": 0.0}, "answer")
    assert 0 < agent_config("careful").answer.sure < 1 and agent_config("stream").answer.sure == 0
