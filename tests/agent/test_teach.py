"""What a write teaches: rehearsal, and questions about somebody else."""

import dataclasses

import pytest
from tiny_agent import LEARN

from tmem.agent.probe import names
from tmem.agent.teach import chosen, contrast, rehearsal
from tmem.episode import Pair
from tmem.tasks import stream

ADA, BEN = Pair("Where does Ada live?", "Rome"), Pair("What does Ben eat?", "rice")
CLEO = Pair("Who knows Cleo?", "Dan")
CONFIG = dataclasses.replace(LEARN, rehearse=8)


def test_earlier_pairs_come_first_evenly_spaced_and_a_new_answer_stands():
    past = [Pair(f"q{i}?", str(i)) for i in range(9)]
    assert rehearsal(past, [ADA], 3) == [past[0], past[3], past[6]]
    assert rehearsal(past, [ADA], 0) == [] and rehearsal(past, [ADA], 9) == past
    anew = Pair("Q4", "new")  # the same question but for case and punctuation
    assert rehearsal(past, [anew], 9) == [*past[:4], *past[5:]]
    assert rehearsal([ADA, Pair("where does Ada live", "Oslo")], [BEN], 8) == [Pair("where does Ada live", "Oslo")]


def test_a_write_without_pairs_teaches_nothing():
    assert chosen([ADA, BEN], [], dataclasses.replace(CONFIG, contrast=8)) == []


def test_without_contrast_a_lesson_is_the_rehearsal():
    assert chosen([ADA], [BEN, CLEO], CONFIG) == [ADA, BEN, CLEO]


def test_every_pair_is_followed_by_its_question_about_somebody_else():
    config = dataclasses.replace(CONFIG, contrast=8, unknown="no idea")
    assert chosen([ADA], [BEN], config) == [
        ADA, Pair("Where does Ben live?", "no idea"), BEN, Pair("What does Ada eat?", "no idea"),
    ]  # fmt: skip


def others(past, new, known, limit=8) -> list[str | None]:
    return [p and p.question for p in contrast(past, new, known, limit, "unknown")]


@pytest.mark.parametrize("question", ["Where does Ben live?", "where does ben live", "In which town does Ben live?"])
def test_what_may_have_been_answered_is_no_contrast(question):
    """Also in other words, and where the answer was written earlier and is not rehearsed now."""
    known = Pair(question.replace("ben", "Ben"), "Bonn")
    assert others([], [ADA], [ADA, BEN, known]) == [None]
    assert contrast([], [ADA], [ADA, BEN], 8, "no idea") == [Pair("Where does Ben live?", "no idea")]


def test_few_contrasts_contradict_what_a_stream_says():
    """Paraphrases without a common word stay: judged by the templates that the questions were made from."""
    made = wrong = 0
    for key in range(24):
        pairs = [p for write in stream.episode(f"contrast/{key}", "test").pairs for p in write]
        known = {(names(p.question)[0], stream.attribute(p.question, "test")) for p in pairs}
        for p in filter(None, contrast([], pairs, pairs, 16, "unknown")):
            made += 1
            wrong += (names(p.question)[0], stream.attribute(p.question, "test")) in known
    assert made > 150 and wrong < 0.1 * made


def test_who_is_asked_about_changes_and_is_never_in_the_question_or_the_answer():
    known = [Pair(f"Where does {name} live?", "Rome") for name in ("Ada", "Ben", "Cleo", "Dan")]
    new = [Pair(f"What does Ada {verb}?", "Dan's cake") for verb in ("eat", "bake", "sell", "like")]
    asked = ["What does Ben eat?", "What does Cleo bake?", "What does Ben sell?", "What does Cleo like?"]
    assert others([], new, known) == asked
    assert others([], [Pair("Does Ada know Ben?", "yes")], [ADA, BEN]) == [None]
    assert others([], [ADA], [ADA]) == [None]  # nobody else is known


def test_a_name_is_a_whole_word_and_a_person_somebody_asked_about_alone():
    known = [Pair("What is Al's favourite album?", "Blue"), BEN, Pair("Which Italian city does Ada like?", "Rome")]
    assert others([], known[:1], known) == ["What is Ben's favourite album?"]
    assert others([], [Pair("Tell me where Ben works", "home")], known) == ["Tell me where Al works"]
    jose = Pair("What did José paint?", "walls")
    assert others([], [jose], [*known, jose]) == ["What did Al paint?"]


def test_the_limit_goes_to_new_pairs_first_then_evenly_over_the_past_and_to_everybody():
    people = [BEN, Pair("What does Cleo eat?", "figs")]
    many = [Pair(f"Where did Ada go in week {i}?", str(i)) for i in range(8)]
    found = others(many, [ADA], [*many, ADA, *people], 3)
    assert [i for i, q in enumerate(found) if q] == [0, 4, 8]
    assert {names(q)[0] for q in filter(None, found)} == {"Ben", "Cleo"}
    assert others(many, [ADA], [*many, ADA, *people], 0) == [None] * 9
    assert [i for i, q in enumerate(others([ADA], many, [*many, ADA, *people], 2)) if q] == [1, 5]
