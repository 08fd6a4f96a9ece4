"""Questions that a passage seems to answer and does not."""

import random

import pytest
from test_reading import record, written

from tmem.episode import Question
from tmem.tasks import untold
from tmem.tasks.passages import Passages
from tmem.tasks.squad import Passage

TALK = "Ann: I live in Rome.\nBen: I live with a parrot.\nAnn: Well, well."


def passage(*asked, text=TALK, title="Talk [1]"):
    return Passage(title, text, tuple(Question(str(i), q, answers, "plain") for i, (q, *answers) in enumerate(asked)))


def drawn(of, *arguments, draws=40):
    return {of(*arguments, random.Random(i)) for i in range(draws)}


@pytest.mark.parametrize(
    "asked, found",
    [
        ([("Where does Ann live?", "Rome")], {"Where does Ben live?"}),
        ([("where does ANN live?", "Rome")], {"where does BEN live?"}),
        ([("Where does Ann live?", "Rome"), ("Where does Ben live?", "Rome")], {""}),  # it asks that itself
        ([("Whom does Ann know?", "Ben, the man with a parrot")], {""}),  # the answer names the other one
        ([("Do Ann and Ben talk?", "they do")], {""}),  # of both
        ([("Who has a parrot?", "Ben")], {""}),  # of nobody
        ([("Does Ann live in Rome?", "Yes")], {""}),
        ([], {""}),
    ],
)
def test_a_question_about_one_person_is_asked_about_another_one_of_the_text(asked, found):
    assert drawn(untold.of_another, passage(*asked)) == found


def test_nobody_else_is_in_a_text_with_one_person():
    alone = passage(("Where does Ann live?", "Rome"), text="Ann lives in Rome.")
    assert drawn(untold.of_another, alone) == {""}


def test_another_part_s_question_is_asked_unless_an_answer_of_it_stands_here():
    here = passage(("Where does Ann live?", "Rome"))
    other = passage(
        ("Which bird sings?", "the lark"), ("What has Ben?", "a cat", "Parrot!"), ("Where does Ann live?", "Oslo"),
        ("Is it late?", "no"), text="A lark sings.",
    )  # fmt: skip
    assert drawn(untold.elsewhere, here, [other]) == {"Which bird sings?"}
    assert drawn(untold.elsewhere, here, []) == {""}


def test_training_asks_what_a_passage_does_not_answer_and_the_evaluation_does_not(tmp_path):
    books = [
        record(f"Book {i} [{j}]", f"In {i} part {j} lives Tom. He is {i * 3 + j + 7} years old.",
               (f"How old is he in {i}, {j}?", f"{i * 3 + j + 7}"))
        for i in range(60) for j in range(3)
    ]  # fmt: skip
    task = Passages([written(tmp_path / "a.json", books)], swap_names=1.0)
    strange = 0
    for i in range(30):
        episode = task.episode(f"s/{i}/0", "train")
        never = [q for q in episode.questions if q.category == "abstention"]
        strange += len(never)
        assert all("unknown" in q.answers for q in never)
        assert not {q.text for q in never} & {p.question for pairs in episode.pairs for p in pairs}
        assert len(episode.questions) == 1 + len(never) and sum(map(len, episode.pairs)) == 1
        assert episode == task.episode(f"s/{i}/0", "train")
        for split in ("dev", "test"):
            assert all(q.category != "abstention" for q in task.episode(f"s/{i}/0", split).questions)
    assert strange > 20


def test_the_people_of_what_is_not_told_are_swapped_with_the_others(tmp_path):
    asked = ("Where does Mary live?", "Rome")
    text = "Mary: I live in Rome.\nDavid: I do not.\nMary: No.\nDavid: No."
    file = written(tmp_path / "talk.json", [record(f"Talk {i}", f"{i}. {text}", asked) for i in "abcdefghijklmnopqrst"])
    task, seen = Passages([file], swap_names=1.0), 0
    for i in range(20):
        episode = task.episode(f"s/{i}/0", "train")
        for question in episode.questions:
            if question.category == "abstention":
                name = question.text.split()[2]
                seen += 1
                assert name in episode.chunks[0] and name not in ("Mary", "David")
    assert seen == 20
