"""The spans of a passage: how probable each is, against the chain rule, and which of them are taken."""

import dataclasses
import math

import pytest
import torch
from tiny import FAMILIES, pairs
from tiny_agent import CONFIG, agent_of

from tmem.agent.spans import STARTS, TOKENS, WORDS, Ranked, Span, picked, ranked
from tmem.agent.teach import Lesson
from tmem.agent.write import ONE, beside
from tmem.words import normalise

PASSAGE = "Ada: I live in Oslo, in the old town. My dog is Rex; he is 3 or 4."


def spans_of(agent, passage=PASSAGE, slot=None) -> Ranked:
    return ranked(agent.model, agent.bank, agent.chat, passage, slot)


def logp(agent, found: Ranked, span: Span) -> list[float]:
    """One forward pass over the whole text, without padding, neighbours or cache."""
    ids = [*found.prompt, *span.ids, found.then[0]]
    rows = agent.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(rows[k - 1, ids[k]]) for k in range(len(found.prompt), len(ids))]


@pytest.mark.parametrize("family", (*FAMILIES, "gemma3_text"))
def test_a_span_is_as_probable_as_the_model_says(family):
    agent = agent_of(family=family)
    found = spans_of(agent)
    assert len(found.spans) > 20
    for span in found.spans:
        assert span.logprobs == pytest.approx(logp(agent, found, span), abs=1e-4)
        assert span.logp == pytest.approx(sum(span.logprobs))
    assert [s.logp for s in found.spans] == sorted((s.logp for s in found.spans), reverse=True)


def test_a_span_is_so_probable_under_its_own_delta():
    agent = agent_of()
    slot = agent.bank.alloc()
    agent.teach([slot], [pairs(6)], [Lesson()])
    bare, own = spans_of(agent, slot=-1), spans_of(agent, slot=slot)
    assert [s.logprobs for s in bare.spans] == [s.logprobs for s in spans_of(agent).spans]
    with agent.bank.route([slot], learn=False):
        assert own.spans[0].logprobs == pytest.approx(logp(agent, own, own.spans[0]), abs=1e-4)
    assert own.spans[0].logprobs != pytest.approx(logp(agent, own, own.spans[0]), abs=1e-4)


def test_spans_are_whole_words_of_the_passage_in_a_row_each_once():
    agent = agent_of()
    found = spans_of(agent)
    texts = {s.text for s in found.spans}
    assert {"Oslo", "I live", "Rex", "3", "3 or 4"} <= texts and not any(t.endswith((",", ";", ".")) for t in texts)
    for span in found.spans:
        assert PASSAGE[span.start : span.stop] == span.text and len(span.text.split()) <= WORDS and len(span.ids) <= TOKENS
        around = f" {PASSAGE} "
        assert not around[span.start].isalnum() and not around[span.stop + 1].isalnum()
        assert agent.chat.text(found.prompt[-2:] + span.ids) == f"A: {span.text}"
    assert len({normalise(t) for t in texts}) == len(texts)
    assert found.prompt[:-2] == agent.chat.prompt(beside(PASSAGE, ONE))
    whole = agent.chat.answer("A: Oslo\nQ: Where?")
    oslo = next(s for s in found.spans if s.text == "Oslo")
    assert whole[: 2 + len(oslo.ids) + len(found.then)] == found.prompt[-2:] + oslo.ids + found.then


def test_a_span_stays_in_its_line():
    assert not any("\n" in s.text for s in spans_of(agent_of(), "Ada: Oslo\nBen: Rex\nAda: no").spans)


@pytest.mark.parametrize("passage", ["", " \n ", "... ?! --"])
def test_a_passage_without_a_word_has_no_span(passage):
    agent = agent_of()
    assert spans_of(agent, passage).spans == []
    many = agent_of(config=dataclasses.replace(CONFIG, write=dataclasses.replace(CONFIG.write, replies=6)))
    (draft,) = many.write([passage])
    assert draft.replies == [] and draft.written.pairs == [] and draft.read == 0


def test_of_many_words_the_likeliest_begin_spans():
    agent = agent_of()
    found = spans_of(agent, " ".join(f"w{i}" for i in range(3 * STARTS)))
    assert len({s.start for s in found.spans}) <= STARTS and len(found.spans) > STARTS


def span(start, stop, logp=-1.0):
    return Span("x" * (stop - start), start, stop, [1], [logp, 0.0])


def test_no_two_taken_spans_share_more_than_half_of_the_shorter():
    a, inside, half, apart = span(0, 10), span(2, 5), span(5, 15), span(20, 24)
    assert picked([a, inside, half, apart], 4) == [a, half, apart]
    assert picked([a, inside, half, apart], 2) == [a, half] and picked([], 3) == []
    assert picked([inside, a], 2) == [inside]


def test_spans_are_drawn_in_proportion_to_their_probability():
    some = [span(20 * i, 20 * i + 5, math.log(p)) for i, p in enumerate((0.4, 0.2, 0.1))]
    n = 3000
    first = [picked(some, 1, 1.0, str(i))[0] for i in range(n)]
    for s, share in zip(some, (4 / 7, 2 / 7, 1 / 7)):
        assert abs(first.count(s) / n - share) < 4 * (share / n) ** 0.5
    cold = [picked(some, 1, 0.25, str(i))[0] for i in range(n)]
    assert abs(cold.count(some[0]) / n - 0.4**4 / (0.4**4 + 0.2**4 + 0.1**4)) < 0.05
    assert picked(some, 3, 1.0, "a") == picked(some, 3, 1.0, "a")
    assert len({tuple(s.start for s in picked(some, 3, 1.0, str(i))) for i in range(999)}) == 6
