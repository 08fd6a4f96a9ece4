"""Whether written pairs are facts of a stream: person, attribute and value, counted by hand."""

import pytest

from tmem.agent.probe import names
from tmem.episode import Pair
from tmem.evaluation.facts import strict
from tmem.tasks import stream


def test_strict_facts_need_person_attribute_and_value():
    episode = stream.episode("study/0", "dev", 2)
    gold = [p for pairs in episode.pairs for p in pairs]
    right = strict(episode, gold)
    assert right["facts"] == right["precise"] == 1.0 and right["person"] == right["attribute"] == 0.0
    person = next(n for n in ("Ada", "Bob") if n not in str(episode.chunks))
    name = names(gold[0].question)[0]
    wrong = [Pair(gold[0].question.replace(name, person), gold[0].answer)]
    found = strict(episode, wrong)
    assert found["facts"] == found["precise"] == 0.0 and found["person"] == pytest.approx(1 / len(gold))
    other = next(p for p in gold if stream.attribute(p.question, "dev") != stream.attribute(gold[0].question, "dev"))
    swapped = [Pair(other.question.replace(names(other.question)[0], name), gold[0].answer)]
    assert strict(episode, swapped)["attribute"] == pytest.approx(1 / len(gold))
    assert strict(episode, [])["pairs"] == 0
