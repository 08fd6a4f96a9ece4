"""A write of many replies: one pair each, drawn from one prompt."""

import dataclasses

import pytest
from tiny_agent import CONFIG, EPISODES, agent_of

from tmem.agent.loop import run
from tmem.agent.write import Written, beside, parse_answers, parse_many, prompts, render_one
from tmem.episode import Pair

MANY = dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=6))


def written(*pairs, **counts):
    return Written([Pair(*p) for p in pairs], **counts)


@pytest.mark.parametrize(
    "texts, want",
    [
        ([render_one(Pair("Where is Ada?", "Oslo"))], written(("Where is Ada?", "Oslo"))),
        (["A: 1\nQ: a?", "A: 2\nQ: b?", "A: 2\nQ: c?"], written(("b?", "2"), ("a?", "1"), duplicates=1)),
        (["A: 2.\nQ: b?", "A: 2\nQ: c?"], written(("b?", "2."), duplicates=1)),
        (["A: 1\nQ: a?", "A: 2\nQ: A"], written(("a?", "1"), conflicts=1)),
        (["A: 1", "Q: a?\nA: 1", "A: 1\nQ: a?\nA: 2", "", "A: 1\nQ: a?\n\n"], written(("a?", "1"), malformed=4)),
        (["A: \nQ: a?", "A: !\nQ: a?", "A: 1\nQ: ?"], written(empty=3)),
    ],
)
def test_replies_are_read_as_pairs_the_answer_chosen_most_often_first(texts, want):
    assert parse_many(texts, [True] * len(texts), 8) == want


def test_of_replies_at_most_the_limit_is_kept_and_what_was_cut_off_is_not():
    texts = [f"A: {i}\nQ: question {i}?" for i in range(6)]
    found = parse_many(texts, [False, *[True] * 5], 3)
    assert [p.answer for p in found.pairs] == ["1", "2", "3"] and found.malformed == 1


def test_a_known_question_makes_a_pair_of_its_answer_unless_the_model_abstains():
    found = parse_answers(["a?", "b?", "c?", "a?"], ["1\nmore", "Unknown.", " ", "1"], "unknown")
    assert found == written(("a?", "1"), empty=1, duplicates=1)


def test_the_prompts_of_a_write():
    assert len(prompts("text", 1)) == 1 and len(set(prompts("text", 6))) == 1 and len(prompts("text", 6)) == 6
    assert prompts(" text\n", 6, ["a?", "b?"], "say {}".format) == ["text\n\nsay a?", "text\n\nsay b?"]
    assert all(p.startswith("text\n\n") for p in prompts("text", 1, ["a?"]) + prompts("text", 6))


def test_replies_are_drawn_apart_and_the_same_in_any_company():
    agent = agent_of(slots=3, config=MANY)
    passages = ["Ada: I live in Oslo.", "Ben: my dog is Rex, he is old."]
    together = agent.write(passages)
    assert all(len(d.replies) == 6 and len({tuple(r.generation.ids) for r in d.replies}) > 3 for d in together)
    assert [agent.write([p])[0] for p in passages] == together == agent.write(passages)
    assert together[0] != agent.write(passages, keys=["one", "two"])[0]
    for draft in together:
        assert draft.read == len(draft.replies[0].prompt)
        assert draft.generated == sum(len(r.generation.ids) for r in draft.replies)


def test_what_is_known_is_answered_from_the_passage_once_for_each_question():
    agent = agent_of(slots=3, config=MANY)
    ((first, second), none) = (d.replies for d in agent.write(["Ada: hi."] * 2, known=[["a?", "b?"], ["c?"]]))
    assert first.prompt == agent.chat.prompt(beside("Ada: hi.", agent.asked("a?"))) and first.prompt != second.prompt
    assert len(none) == 1 and first == agent.write(["Ada: hi."], known=[["a?"]])[0].replies[0]


@pytest.mark.parametrize("known", [False, True])
def test_a_rollout_traces_every_reply_as_an_action(known):
    agent = agent_of(slots=3, config=MANY)
    for rollout in run(agent, EPISODES, ["k0", "k1", "k2"], temperature=1.0, trace=True, known=known):
        writes = [a for a in rollout.actions if a.kind == "write"]
        each = len(rollout.episode.questions) if known else 6
        assert len(writes) == each * len(rollout.log) > 0
        assert sum(e.tokens for e in rollout.log) == sum(len(a.generation.ids) for a in writes)
