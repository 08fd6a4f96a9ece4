"""Δ knows a question again from its answer, or abstains: what it was taught in reverse, the formula, and whoever asks."""

import dataclasses

import pytest
import torch
from tiny_agent import CONFIG, EPISODES, agent_of
from wrong import gain_of_delta_alone

import tmem.agent.agent as agent_module
import tmem.agent.recognise as recognise
from tmem.agent.agent import Reply
from tmem.agent.config import agent_config
from tmem.agent.decode import Generation
from tmem.agent.learn import learn
from tmem.agent.renderings import check, rendered
from tmem.agent.scored import FLOOR
from tmem.episode import Pair
from tmem.memory import Memory
from tmem.methods import reader

BACK = "Which question has {answer}?"
LEARN = dataclasses.replace(CONFIG.learn, reverse=BACK, epochs=120, lr=0.02)
KNOWS = dataclasses.replace(
    CONFIG,
    adapter=dataclasses.replace(CONFIG.adapter, rank=8, last_layers=4),
    learn=LEARN,
    answer=dataclasses.replace(CONFIG.answer, gain=0.15),
)
TOLD = [Pair("where is Ada?", "Oslo"), Pair("who is Emil?", "a cat"), Pair("what is red?", "the bus")]


def taught(config=KNOWS):
    agent = agent_of(config=config)
    slot = agent.bank.alloc()
    learn(agent.model, agent.bank, [(slot, TOLD)], agent.chat, config.learn)
    return agent, slot


def test_a_question_is_taught_from_its_answer_in_turns_with_the_renderings():
    pairs = [Pair("a?", "1"), Pair("b?", "no idea")]
    assert rendered(pairs, 1, ("{question}",), "no idea", BACK) == [Pair("Which question has 1?", "a?"), Pair("b?", "no idea")]
    assert rendered(pairs, 2, ("{question}",), "no idea", BACK) == pairs == rendered(pairs, 5, ("{question}",), "no idea")
    assert LEARN.turns == 2 and CONFIG.learn.turns == 1
    odd = rendered([Pair("a?", "{question} {answer}")], 1, ("{question}",), "?", BACK)
    assert odd == [Pair("Which question has {question} {answer}?", "a?")]


def test_a_gain_is_that_of_the_formula():
    agent, slot = taught()
    questions, answers = ["where is Ada?", "zzz zzz zzz"], ["Oslo", "Oslo"]
    found = recognise.gains(agent, questions, answers, [slot, slot])
    for question, answer, gain in zip(questions, answers, found):
        start, then = agent.chat.prompt(BACK.replace("{answer}", answer)), agent.chat.answer(question)
        logp = []
        for row in (slot, -1):
            with torch.no_grad(), agent.bank.route([row], learn=False):
                logits = agent.model(torch.tensor([start + then])).logits[0, len(start) - 1 : -1].double()
            logp.append(logits.log_softmax(-1).gather(1, torch.tensor(then)[:, None])[:, 0].clamp(min=FLOOR))
        each = (logp[0] - logp[1]).tolist()  # a token is a character here
        words = [range(9, 12)] if "Ada" in question else [range(0, 3), range(4, 7), range(8, 11)]
        want = [max(0.0, sum(each[i] for i in at) / 3) for at in words]
        assert gain == pytest.approx(sum(want) / len(want), abs=1e-4)
    assert gain_of_delta_alone.gains(agent, questions, answers, [slot, slot]) != pytest.approx(found, abs=1e-2)
    assert found[0] > 0.5 > found[1]


def test_words_of_meaning_count_and_what_delta_makes_less_likely_does_not():
    words = [("where", [0]), ("is", [1]), ("Ada", [2, 3]), ("now", [4])]
    assert recognise.gain(words, [0, 0, -1, -1, -9], [-9, -9, -2, -3, -1]) == pytest.approx((1.5 + 0) / 2)
    assert recognise.gain(words, [0, 0, -9, -9, -9], [0, 0, -5, -7, -4]) == 0.0, "the floor"
    assert recognise.gain([("who", [0]), ("is", [1])], [0, 0], [-9, -9]) == 0.0


def test_the_words_of_a_text_and_their_tokens():
    agent = agent_of()
    ids = agent.chat.plain("to be, or")
    assert agent.chat.words(ids) == [("to", [0, 1]), ("be", [3, 4]), ("or", [7, 8])]


def test_a_gain_has_the_same_bits_in_any_company():
    agent, slot = taught()
    questions, answers = (
        [p.question for p in TOLD] + ["a much longer question than the others are?"],
        ["Oslo", "a cat", "it", "x"],
    )
    together = recognise.gains(agent, questions, answers, [slot] * 4)
    assert together == [recognise.gains(agent, [q], [a], [slot])[0] for q, a in zip(questions, answers)]


def test_what_was_told_is_answered_and_the_answer_to_another_question_is_none():
    agent, slot = taught()
    questions = [p.question for p in TOLD]
    replies = [Reply([1], Generation([2], [0.0], True), p.answer) for p in TOLD]
    assert agent.settled(questions, replies, [slot] * 3) == ["Oslo", "a cat", "the bus"]
    assert agent.settled(["zzz zzz zzz"] * 3, replies, [slot] * 3) == ["unknown"] * 3
    assert agent.settled(["zzz zzz zzz"] * 3, replies, [-1] * 3) == ["Oslo", "a cat", "the bus"], "no Δ"


def test_whoever_asks_delta_gets_the_abstention(monkeypatch):
    agent, slot = taught()
    seen = []
    monkeypatch.setattr(agent_module, "gains", lambda _, asked, *rest: seen.append(asked) or [0.1] * len(asked))
    assert agent.answer(["where is Ada?"], [slot]) == ["unknown"]
    memory = Memory(agent)
    memory.learn([(p.question, p.answer) for p in TOLD])
    assert memory.ask("where is Ada?") == "unknown"
    kept = reader.Kept(delta=agent.bank.snapshot(slot))
    assert [s.text for s in reader.ask(agent, [(kept, EPISODES[0].questions[0])])] == ["unknown"]
    monkeypatch.setattr(agent_module, "gains", lambda _, asked, *rest: [0.16] * len(asked))
    assert agent.answer(["where is Ada?"], [slot]) != ["unknown"] and len(seen) == 3


def test_a_preset_says_how_to_ask_back_or_does_not():
    for bad in ("Which question?", "{answer} {question}", "{answer} {"):
        with pytest.raises(ValueError, match=r"\[learn\] reverse: expected a text with \{answer\}"):
            check("{question}", ("{question}",), 3, bad)
    with pytest.raises(ValueError, match=r"\[answer\] gain: it needs \[learn\] reverse"):
        dataclasses.replace(KNOWS, learn=CONFIG.learn)
    assert agent_config("default").answer.gain > 0 and not agent_config("stream").learn.reverse
