"""What a write teaches: rehearsal, and questions about somebody else."""

import dataclasses

import pytest

from tmem.agent.learn import LearnConfig
from tmem.agent.lesson import contrast, lesson, rehearsal
from tmem.episode import Pair

ADA, BEN = Pair("Where does Ada live?", "Rome"), Pair("What does Ben eat?", "rice")
CLEO = Pair("Who knows Cleo?", "Dan")
CONFIG = LearnConfig(rehearse=8)


def test_earlier_pairs_come_first_evenly_spaced_and_a_new_answer_stands():
    past = [Pair(f"q{i}?", str(i)) for i in range(9)]
    assert rehearsal(past, [ADA], 3) == [past[0], past[3], past[6], ADA]
    assert rehearsal(past, [ADA], 0) == [ADA] and rehearsal(past, [ADA], 9) == [*past, ADA]
    anew = Pair("Q4", "new")  # the same question but for case and punctuation
    assert rehearsal(past, [anew], 9) == [*past[:4], *past[5:], anew]
    assert rehearsal([ADA, Pair("where does Ada live", "Oslo")], [BEN], 8) == [Pair("where does Ada live", "Oslo"), BEN]


def test_a_write_without_pairs_teaches_nothing():
    assert lesson([ADA, BEN], [], dataclasses.replace(CONFIG, contrast=8)) == []


def test_without_contrast_a_lesson_is_the_rehearsal():
    assert lesson([ADA], [BEN, CLEO], CONFIG) == [ADA, BEN, CLEO]


def test_every_pair_is_followed_by_its_question_about_somebody_else():
    config = dataclasses.replace(CONFIG, contrast=8, unknown="no idea")
    assert lesson([ADA], [BEN], config) == [
        ADA, Pair("Where does Ben live?", "no idea"), BEN, Pair("What does Ada eat?", "no idea"),
    ]  # fmt: skip


@pytest.mark.parametrize("known", [Pair("Where does Ben live?", "Bonn"), Pair("where does ben live", "Bonn")])
def test_a_question_that_was_answered_is_no_contrast(known):
    """Also where the answer was written earlier and is not rehearsed now."""
    assert ADA not in contrast([ADA], [ADA, BEN, known], 8, "unknown")
    assert contrast([ADA], [ADA, BEN], 8, "unknown") == {ADA: Pair("Where does Ben live?", "unknown")}


def test_who_is_asked_about_changes_and_is_never_in_the_question_or_the_answer():
    known = [Pair(f"Where does {name} live?", "Rome") for name in ("Ada", "Ben", "Cleo", "Dan")]
    others = [Pair(f"What does Ada {verb}?", "Dan's cake") for verb in ("eat", "bake", "sell", "like")]
    found = contrast(others, known, 8, "unknown")
    assert [p.question for p in found.values()] == [
        "What does Ben eat?", "What does Cleo bake?", "What does Ben sell?", "What does Cleo like?",
    ]  # fmt: skip
    assert contrast([Pair("Does Ada know Ben?", "yes")], [ADA, BEN], 8, "unknown") == {}
    assert contrast([ADA], [ADA], 8, "unknown") == {}  # nobody else is known


def test_contrasts_are_limited_and_evenly_spaced():
    many = [Pair(f"Where did Ada go in week {i}?", str(i)) for i in range(8)]
    found = contrast(many, [*many, BEN], 2, "unknown")
    assert list(found) == [many[0], many[4]]
    assert contrast(many, [*many, BEN], 0, "unknown") == {}
