"""A write of many replies: one pair each, drawn from one prompt."""

import dataclasses
import os

import pytest
from tiny_agent import CONFIG, EPISODES, agent_of

import tmem.agent.agent as agent_module
from tmem.agent.loop import run
from tmem.agent.write import Written, answered, beside, parse_answers, parse_many, prompts, render_one
from tmem.episode import Pair

MANY = dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=6))


def written(*pairs, **counts):
    return Written([Pair(*p) for p in pairs], **counts)


@pytest.mark.parametrize(
    "texts, want",
    [
        ([render_one(Pair("Where is Ada?", "Oslo"))], written(("Where is Ada?", "Oslo"))),
        (["A: 1\nQ: a?", "A: 2\nQ: b?", "A: 2\nQ: c?"], written(("a?", "1"), ("b?", "2"), ("c?", "2"))),
        (["A: 1\nQ: a?", "A: 2\nQ: A"], written(("a?", "1"), duplicates=1)),
        (["A: 1", "Q: a?\nA: 1", "A: 1\nQ: a?\nA: 2", "", "A: 1\nQ: a?\n\n"], written(("a?", "1"), malformed=4)),
        (["A: \nQ: a?", "A: !\nQ: a?", "A: 1\nQ: ?"], written(empty=3)),
    ],
)
def test_replies_are_read_as_pairs_of_an_answer_and_its_question(texts, want):
    assert parse_many(texts, [True] * len(texts)) == want


def test_a_reply_that_was_cut_off_is_no_pair():
    assert parse_many(["A: 1\nQ: a?", "A: 2\nQ: b?"], [False, True]) == written(("b?", "2"), malformed=1)


def test_drawn_questions_are_answered_from_the_passage_a_new_answer_before_a_known_one():
    drawn = written(*((f"{x}?", "drawn") for x in "abcdefg"), malformed=3)
    texts = ["Oslo", "Rex\nmore", "oslo.", "Unknown", "Bergen", "", "Rex"]
    passage = "Ada: I live in Oslo with Rex."
    found = answered(drawn, texts, "unknown", passage, 8)
    want = written(("a?", "Oslo"), ("b?", "Rex"), ("c?", "oslo."), ("g?", "Rex"), malformed=3, unanswered=3)
    assert found == want and found.dropped == 6 and drawn.unanswered == 0
    assert answered(drawn, texts, "unknown", passage, 3).pairs == want.pairs[:3]


def test_a_known_question_makes_a_pair_of_its_answer_unless_the_model_abstains():
    found = parse_answers(["a?", "b?", "c?", "a?"], ["1\nmore", "Unknown.", " ", "1"], "unknown")
    assert found == written(("a?", "1"), empty=1, duplicates=1, unanswered=1)


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


def test_what_replies_ask_is_answered_from_the_passage(monkeypatch):
    """Its prompts, answers and cost; the drawn answers are no pairs."""
    agent, passage = agent_of(slots=3, config=MANY), "Ada: I live in Oslo."
    drawn = written(("Where?", "x"), ("Who?", "x"))
    monkeypatch.setattr(agent_module, "parse_many", lambda texts, finished: drawn)
    (draft,) = agent.write([passage])
    assert [r.prompt for r in draft.answers] == [agent.chat.prompt(beside(passage, agent.asked(q))) for q in ("Where?", "Who?")]
    assert [r.text for r in draft.answers] == [r.text for r in agent.say([r.prompt for r in draft.answers], max_new=16)]
    assert draft.read == len(draft.replies[0].prompt) + sum(r.read for r in draft.answers)
    assert draft.written == answered(drawn, [r.text for r in draft.answers], "unknown", passage, MANY.write.max_pairs)


def test_a_text_is_tokenised_once_for_all_replies_and_their_beginnings_are_right(monkeypatch):
    agent, tokenised, given = agent_of(config=MANY), [], []
    prompt, say = agent.chat.prompt, agent.say
    monkeypatch.setattr(agent.chat, "prompt", lambda text: tokenised.append(text) or prompt(text))
    monkeypatch.setattr(agent, "say", lambda ids, *args, begins, **how: given.extend(zip(ids, begins)) or
                        say(ids, *args, begins=begins, **how))  # fmt: skip
    monkeypatch.setattr(agent_module, "parse_many", lambda *_: written(("Who flies?", "Ada"), ("Who sails?", "Ben")))
    passages = ["Ada: I fly.", " Ben: I sail.\n"]
    agent.write(passages)
    assert len(given) == 2 * 6 + 2 * 2 and len(tokenised) == len(set(tokenised)) + 2 == 2 + 4 + 2 * 2
    texts = [p for p in passages for _ in range(6)] + [p for p in passages for _ in range(2)]
    assert [begin for _, begin in given] == [len(os.path.commonprefix([ids, prompt(t.strip())]))
                                             for (ids, _), t in zip(given, texts)]  # fmt: skip
    assert all(0 < begin < len(ids) for ids, begin in given)


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
