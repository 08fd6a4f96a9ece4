"""A write of many replies: spans of the passage, a question to each, and what the passage answers."""

import dataclasses

import pytest
import torch
from tiny_agent import CONFIG, EPISODES, agent_of

import tmem.agent.agent as agent_module
from tmem.agent import prefill
from tmem.agent.loop import run
from tmem.agent.spans import picked, ranked
from tmem.agent.write import Written, answered, asked_of, beside, parse_answers, surest, together
from tmem.episode import Pair
from tmem.models import forward as fw

MANY = dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=6))


def written(*pairs, **counts):
    return Written([Pair(*p) for p in pairs], **counts)


def test_a_question_to_each_span_makes_a_pair_of_both():
    answers, texts = ["Oslo", "Rex", "3", "4", "5"], [" Where?\nmore", "Who?", "where", " ?", "How ma"]
    found = asked_of(answers, texts, [True] * 4 + [False])
    assert found == written(("Where?", "Oslo"), ("Who?", "Rex"), duplicates=1, empty=1, malformed=1)


def test_drawn_questions_are_answered_from_the_passage_a_new_answer_before_a_known_one():
    drawn = written(*((f"{x}?", "drawn") for x in "abcdefg"), malformed=3)
    texts = ["Oslo", "Rex\nmore", "oslo.", "Unknown", "Bergen", "", "Rex"]
    passage = "Ada: I live in Oslo with Rex."
    found = answered(drawn, texts, "unknown", passage, 8)
    want = written(("a?", "Oslo"), ("b?", "Rex"), ("c?", "oslo."), ("g?", "Rex"), malformed=3, unanswered=3)
    assert found == want and found.dropped == 6 and drawn.unanswered == 0
    assert answered(drawn, texts, "unknown", passage, 3).pairs == want.pairs[:3]


def test_of_a_known_question_the_surest_answer_stands_whenever_it_was_read():
    """Sureness: mean log p of the tokens, plus the share of the question's words in the passage: -2 + 1/2, -1 + 1, 0 + 0."""
    where = "Where does Ada live?"

    def read(passage, said, *logprobs):
        return parse_answers([where], [said], [logprobs], "unknown", passage)

    first, second, third = (
        read("Ada is in Oslo.", "Oslo", -1.0, -3.0),
        read("Ada: I live in Bergen.", "Bergen", -1.0),
        read("Ulm.", "Ulm", 0.0),
    )
    assert [*first.sure.values(), *second.sure.values(), *third.sure.values()] == [-1.5, 0.0, 0.0]
    third.sure = {key: -0.5 for key in third.sure}
    for order, dropped in (([first, second, third], 2), ([third, first, second], 2), ([second, third, first], 2)):
        found = together(order)
        assert found.pairs == [Pair(where, "Bergen")] and found.conflicts == dropped and list(found.sure.values()) == [0.0]
    assert surest(third, second.sure) == written(conflicts=1) and surest(second, third.sure) == second
    assert surest(written(("a?", "1")), second.sure) == written(("a?", "1"))


def test_a_known_question_that_no_passage_answers_is_learned_as_unknown():
    none = parse_answers(["a?", "b?"], ["unknown", "1"], [[0.0]] * 2, "unknown", "1")
    both = together([none, parse_answers(["a?", "b?"], ["Unknown.", "unknown"], [[0.0]] * 2, "unknown", "1")])
    assert surest(both, {}, "no idea").pairs == [Pair("b?", "1"), Pair("a?", "no idea")]
    assert surest(both, {"a": -9.0}, "no idea").pairs == [Pair("b?", "1")] == surest(both, {}).pairs
    later = together([both, parse_answers(["a?"], ["2"], [[-5.0]], "unknown", "2")])
    assert surest(later, {}, "no idea").pairs == [Pair("b?", "1"), Pair("a?", "2")]


def test_yesterday_is_a_date_once_the_passage_is_gone():
    first = "Session date: 1:56 pm on 8 May, 2023\nAda: I came yesterday."
    passage = f"{first}\n\nSession date: 9 June, 2023\nBen: Last week, or next month."
    drawn = written(("When?", "x"), ("When then?", "x"), ("Who?", "x"), ("And?", "x"))
    found = answered(drawn, ["yesterday", "Last week", "Ada", "next month."], "unknown", passage, 9)
    assert [p.answer for p in found.pairs] == ["7 May 2023", "the week before 9 June 2023", "Ada", "July 2023"]
    assert parse_answers(["When?"], ["Yesterday"], [[0.0]], "unknown", passage).pairs == [Pair("When?", "7 May 2023")]
    assert parse_answers(["When?"], ["yesterday"], [[0.0]], "unknown", "I came yesterday.").pairs == [
        Pair("When?", "yesterday")
    ]
    assert parse_answers(["When?"], ["last week"], [[0.0]], "unknown", first).pairs == [Pair("When?", "last week")]


def test_of_several_passages_the_later_answer_to_a_question_stands():
    first, second = written(("a?", "1"), ("b?", "2"), empty=1), written(("c?", "3"), ("A", "4"), ("b", "2."), unanswered=2)
    want = written(("A", "4"), ("b?", "2"), ("c?", "3"), empty=1, unanswered=2, duplicates=1, conflicts=1)
    assert together([first, second]) == want and together([first]) == first


def test_a_known_question_makes_a_pair_of_its_answer_unless_the_model_abstains():
    found = parse_answers(["a?", "b?", "c?", "a?"], ["1\nmore", "Unknown.", " ", "1"], [[-1.0]] * 4, "unknown", "1")
    assert found == written(("a?", "1"), empty=1, duplicates=1, unanswered=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_write_of_many_replies_is_spans_and_a_question_to_each_the_same_in_any_company(temperature):
    agent = agent_of(slots=3, config=MANY)
    passages = ["Ada: I live in Oslo.", "Ben: my dog is Rex, he is old."]
    together = agent.write(passages, temperature=temperature)
    assert [agent.write([p], temperature=temperature)[0] for p in passages] == together
    other = agent.write(passages, keys=["one", "two"], temperature=temperature)
    assert (other == together) == (temperature == 0.0)
    for passage, draft in zip(passages, together):
        at = ranked(agent.model, agent.bank, agent.chat, passage, None)
        spans, asked = draft.replies[: len(draft.replies) // 2], draft.replies[len(draft.replies) // 2 :]
        assert [s.text for s in spans] == [s.text for s in picked(at.spans, 6, temperature, passage)]
        for span, question in zip(spans, asked):
            assert span.prompt == at.prompt and span.generation.ids[-1] == at.then[0]
            assert question.prompt == at.prompt + span.generation.ids[:-1] + at.then
        assert draft.generated == sum(len(r.generation.ids) for r in [*draft.replies, *draft.answers])


def test_what_is_asked_of_spans_is_answered_from_the_passage(monkeypatch):
    """Its prompts, answers and cost; the spans themselves are no answers."""
    agent, passage = agent_of(slots=3, config=MANY), "Ada: I live in Oslo."
    drawn = written(("Where?", "x"), ("Who?", "x"))
    monkeypatch.setattr(agent_module, "asked_of", lambda *_: drawn)
    (draft,) = agent.write([passage])
    assert [r.prompt for r in draft.answers] == [agent.chat.prompt(beside(passage, agent.asked(q))) for q in ("Where?", "Who?")]
    assert [r.text for r in draft.answers] == [r.text for r in agent.say([r.prompt for r in draft.answers], max_new=16)]
    assert draft.written == answered(drawn, [r.text for r in draft.answers], "unknown", passage, MANY.write.max_pairs)


@pytest.mark.parametrize("known", [None, [["Where?", "Who is it that lives there?", "Where?"], ["When?"]]])
def test_what_a_write_says_it_read_is_what_was_computed(known, monkeypatch):
    """The passage and the words before a question once, however many calls name them; the spans' branches are no prompts."""
    agent, tokens, pad = agent_of(slots=3, config=MANY), [], fw.pad
    monkeypatch.setattr(agent_module, "asked_of", lambda *_: written(("Where?", "x"), ("Who is it that came?", "y")))
    monkeypatch.setattr(prefill.fw, "pad", lambda pieces, *rest, **how: tokens.extend(pieces) or pad(pieces, *rest, **how))
    drafts = agent.write(["Ada: I live in Oslo.", "Ben: I was born in the north of Spain, long ago."], known=known)
    assert sum(d.read for d in drafts) == sum(map(len, tokens))
    assert all(agent.chat.count(d.passage) < r.begin <= r.read for d in drafts for r in [*d.replies, *d.answers])


def test_what_is_known_is_answered_from_the_passage_once_for_each_question():
    agent = agent_of(slots=3, config=MANY)
    ((first, second), none) = (d.replies for d in agent.write(["Ada: hi."] * 2, known=[["a?", "b?"], ["c?"]]))
    assert first.prompt == agent.chat.prompt(beside("Ada: hi.", agent.asked("a?"))) and first.prompt != second.prompt
    assert len(none) == 1 and first == agent.write(["Ada: hi."], known=[["a?"]])[0].replies[0]


def test_what_a_writer_says_where_a_passage_is_silent_is_its_own_word_whatever_a_task_abstains_with():
    asked = "Answer, or say {unknown}. {question}"
    agent = agent_of(config=dataclasses.replace(
        MANY, learn=dataclasses.replace(MANY.learn, unknown="no idea", renderings=(asked,)),
        answer=dataclasses.replace(MANY.answer, asked=asked),
    ))  # fmt: skip
    (draft,) = agent.write(["Ada: hi."], known=[["a?"]])
    assert draft.replies[0].prompt == agent.chat.prompt(beside("Ada: hi.", "Answer, or say unknown. a?"))
    assert agent.asked("a?") == "Answer, or say no idea. a?"


@pytest.mark.parametrize("known", [False, True])
def test_a_rollout_traces_every_reply_as_an_action(known):
    agent = agent_of(slots=3, config=MANY)
    for rollout in run(agent, EPISODES, ["k0", "k1", "k2"], temperature=1.0, trace=True, known=known):
        writes = [a for a in rollout.actions if a.kind == "write"]
        each = len(rollout.episode.questions) if known else 12
        assert 0 < len(writes) <= each * len(rollout.log)
        said = sum(len(a.generation.ids) for a in writes)
        assert said <= sum(e.tokens for e in rollout.log)
        for action in writes:
            ids = torch.tensor([action.prompt + action.generation.ids])
            logp = agent.model(input_ids=ids).logits[0].log_softmax(-1)
            n = len(action.prompt)
            want = [float(logp[n - 1 + k, token]) for k, token in enumerate(action.generation.ids)]
            assert action.writes or action.generation.logprobs == pytest.approx(want, abs=1e-4)
