"""The benchmarks' files: what the loaders make of the official formats, the scores, and one sentence for a wrong file."""

import copy
import importlib
import json
import os
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tmem import tasks
from tmem.tasks import Evidence, Question, clbench, left_out, locomo, longmemeval, metrics, passages, records, squad
from tmem.tasks import task as own_task

DATA = Path(os.environ.get("TMEM_DATA", Path(__file__).parents[3] / "shared/data"))

LOCOMO = {
    "sample_id": "conv-x",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bo",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Bo", "dia_id": "D1:1", "text": "Look!", "blip_caption": "a photo of a red bowl"},
            {"speaker": "Ann", "dia_id": "D1:2", "text": "Nice.", "img_url": ["u"], "query": "bowl"},
        ],
        "session_2_date_time": "9:00 am on 2 June, 2023",
        "session_2": [],
        "session_3_date_time": "9:00 am on 3 June, 2023",
        "session_3": [{"speaker": "Ann", "dia_id": "D3:5", "text": "Late one."}],
    },
    "qa": [
        {"question": "What did Bo show?", "answer": "the red bowl", "category": 4, "evidence": ["D1:1"]},
        {"question": "When?", "answer": 2022, "category": 2, "evidence": ["D3:05; D1:2", "D", "D9:9", "D:1:2"]},
        {"question": "Would Ann?", "answer": "Likely", "category": 3},
        {"question": "What did Ann break?", "adversarial_answer": "a bowl", "category": 5, "evidence": ["D1:2 D1:1"]},
    ],
    "event_summary": {},
}
LONGMEMEVAL = {
    "question_id": "e47",
    "question_type": "multi-session",
    "question": "How many?",
    "question_date": "2023/05/30 (Tue) 23:40",
    "answer": 3,
    "answer_session_ids": ["s1"],
    "haystack_dates": ["2023/05/21 (Sun) 09:00", "2023/05/20 (Sat) 02:21", "2023/05/22 (Mon) 10:00"],
    "haystack_session_ids": ["s0", "s1", "s2"],
    "haystack_sessions": [
        [{"role": "user", "content": "Later."}, {"role": "assistant", "content": "Yes.", "has_answer": True}],
        [{"role": "user", "content": "First,\nin two lines."}, {"role": "assistant", "content": "", "has_answer": False}],
        [],
    ],
}
PASSAGE = {
    "title": "Oslo_Fjord",
    "context": "It is in Norway. St. Hans is a feast there. In 1624 it burned!\nOslo has 3 lines.",
    "questions": [{"question": "What burned?", "answer": "1624 it"}, {"question": "How many lines?", "answer": 3}],
}
OFFICIAL = {
    "title": "Oslo",
    "paragraphs": [
        {
            "context": "A tram. A bus, a tram.",
            "qas": [
                {
                    "id": "q1",
                    "question": "What?",
                    "answers": [{"text": "tram", "answer_start": 17}, {"text": "a tram", "answer_start": 15}],
                },
                {"id": "q2", "question": "Who?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "bus"}]},
            ],
        },
        {"context": "Nothing asked.", "qas": []},
    ],
}
TASK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A law."}, {"type": "text", "text": "Another."}]},
        {"role": "assistant", "content": "Read."},
        {"role": "user", "content": "Which holds?"},
    ],
    "rubrics": ["names the first", "gives a reason"],
    "metadata": {"task_id": "t1", "context_id": "c1", "context_category": "Rules", "sub_category": "Law"},
}
LOADERS = {
    "locomo": (LOCOMO, locomo.episodes),
    "longmemeval": (LONGMEMEVAL, longmemeval.episodes),
    "squad": (PASSAGE, squad.episodes),
    "squad official": (OFFICIAL, squad.episodes),
    "passages": (PASSAGE, partial(passages.episodes, split="all")),
    "passages official": (OFFICIAL, partial(passages.episodes, split="all")),
    "clbench": (TASK, clbench.episodes),
}


@pytest.fixture
def file(tmp_path):
    def write(content, name="data.json"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(record) + "\n" for record in content))
        else:
            path.write_text(json.dumps(content))
        return path

    return write


# what the loaders make of a file ---------------------------------------------------------------------------------------


def test_locomo_evidence_is_the_line_of_each_known_turn(file):
    (episode,) = locomo.episodes(file([LOCOMO]))
    bowl, nice, late = (
        Evidence(0, "Bo: Look! [shares a photo of a red bowl]"), Evidence(0, "Ann: Nice."), Evidence(1, "Ann: Late one.")
    )  # fmt: skip
    assert [q.evidence for q in episode.questions] == [(bowl,), (late, nice), (), (nice, bowl)]
    assert all(e.text in episode.chunks[e.chunk].splitlines() for q in episode.questions for e in q.evidence)


def test_locomo_adversarial_questions_can_offer_a_choice(file):
    path = file([{**LOCOMO, "sample_id": f"conv-{i}"} for i in range(30)])
    asked = [e.questions[3] for e in locomo.episodes(path, adversarial="choice", seed=5)]
    for q in asked:
        assert sorted(q.choices) == ["No information available", "a bowl"]
        assert q.text.startswith("What did Ann break?") and q.text.endswith(f"(a) {q.choices[0]} (b) {q.choices[1]}")
    orders = Counter(q.choices for q in asked)
    assert set(orders.values()) != {30} and min(orders.values()) >= 5
    assert asked == [e.questions[3] for e in tasks.episodes("locomo", data=path, adversarial="choice", seed=5)]
    assert asked != [e.questions[3] for e in locomo.episodes(path, adversarial="choice", seed=6)]
    limited = {q for e in locomo.episodes(path, adversarial="choice", seed=5, limit=2) for q in e.questions if q.choices}
    assert limited and limited <= set(asked), "the order depends on the question, not on the others drawn"
    open_ones = [e.questions for e in tasks.episodes("locomo", data=path)]
    assert all(q.text == "What did Ann break?" for *_, q in open_ones)
    assert not any(q.choices for questions in open_ones for q in questions)


def test_longmemeval_reads_sessions_by_date_and_marks_the_evidence(file):
    (episode,) = tasks.episodes("longmemeval", data=file([LONGMEMEVAL]))
    assert episode.chunks == (
        "DATE: 2023/05/20 (Sat) 02:21\nuser: First,\nin two lines.\nassistant: ",
        "DATE: 2023/05/21 (Sun) 09:00\nuser: Later.\nassistant: Yes.",
    )
    assert episode.id == "e47" and episode.pairs == ((), ())
    assert episode.questions == (
        Question(
            "e47", "How many? (asked on 2023/05/30 (Tue) 23:40)", ("3",), "multi-session",
            evidence=(Evidence(1, "assistant: Yes."),),
        ),
    )  # fmt: skip


def test_longmemeval_without_marks_points_to_whole_sessions(file):
    record = copy.deepcopy(LONGMEMEVAL)
    del record["haystack_sessions"][0][1]["has_answer"]
    (episode,) = longmemeval.episodes(file([record]))
    assert episode.questions[0].evidence == (Evidence(0, episode.chunks[0]),)


def test_longmemeval_does_without_its_optional_fields(file):
    record = {k: v for k, v in LONGMEMEVAL.items() if k not in ("question_date", "haystack_session_ids", "answer_session_ids")}
    record |= {"question_id": "e47_abs", "haystack_dates": ["2 May", "1 May", "?"], "answer": "You did not mention it."}
    (episode,) = longmemeval.episodes(file([record]))
    (q,) = episode.questions
    assert [c.splitlines()[0] for c in episode.chunks] == ["DATE: 2 May", "DATE: 1 May"], "unknown dates keep their order"
    assert (q.text, q.category, q.kind) == ("How many?", "abstention", "multi-session")
    assert q.answers == ("You did not mention it.",)
    assert episode.note == longmemeval.UNSORTED
    assert tasks.score("longmemeval", q, "Unknown.") == {"f1": 0, "em": 0, "contains": 0}


@pytest.mark.parametrize(
    "dates, order, headers",
    [
        (["2023-05-21T09:00", "2023-05-20T02:21"], [1, 0], ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 09:00"]),
        (["2023-05-20 10:00:30", "2023-05-20 9:59"], [1, 0], ["2023/05/20 (Sat) 09:59", "2023/05/20 (Sat) 10:00"]),
        (["2023/05/20 (Sat) 23:00", "2023-05-20T22:00Z"], [1, 0], ["2023/05/20 (Sat) 22:00", "2023/05/20 (Sat) 23:00"]),
        (["2023-05-20T23:30+00:00", "2023-05-21T01:00+05:00"], [1, 0], ["2023/05/21 (Sun) 01:00", "2023/05/20 (Sat) 23:30"]),
        (["1:56 pm on 8 May, 2023", "2023/05/08 (Mon) 09:00"], [1, 0], ["2023/05/08 (Mon) 09:00", "2023/05/08 (Mon) 13:56"]),
        (["2023/10/01", "2023/9/30"], [1, 0], ["2023/09/30 (Sat)", "2023/10/01 (Sun)"]),
        (["2023/05/21 (Sun) 09:00", "2023/02/31 (Fri) 02:21"], [0, 1], None),  # no calendar has it
        (["2023-05-21T25:00", "2023-05-20T02:21"], [0, 1], None),
        (["tomorrow", "2023-05-20"], [0, 1], None),
        (["2023-05-20", ""], [0, 1], None),
        (["2023-05-20T01:00-08", "2023-05-20 08:59 GMT"], [1, 0], ["2023/05/20 (Sat) 08:59", "2023/05/20 (Sat) 01:00"]),
        (
            ["Sat, 20 May 2023 02:21:00 +0000", "May 19, 2023 at 9:00 pm"],
            [1, 0],
            ["2023/05/19 (Fri) 21:00", "Sat, 20 May 2023 02:21:00 +0000"],
        ),
    ],
)
def test_longmemeval_sorts_sessions_by_time_whatever_the_form_of_their_dates(file, dates, order, headers):
    sessions = [[{"role": "user", "content": f"Session {i}."}] for i in range(2)]
    record = LONGMEMEVAL | {"haystack_dates": dates, "haystack_session_ids": ["a", "b"], "haystack_sessions": sessions}
    (episode,) = tasks.episodes("longmemeval", data=file([record]))
    assert [int(chunk[-2]) for chunk in episode.chunks] == order
    if headers is None:
        assert episode.note == longmemeval.UNSORTED
    else:
        assert [chunk.splitlines()[0] for chunk in episode.chunks] == [f"DATE: {header}" for header in headers]
        assert episode.note == ""


@pytest.mark.parametrize(
    "date, shown",
    [
        ("2023/05/30 (Tue) 23:40", "2023/05/30 (Tue) 23:40"),
        ("2023-05-30T23:40", "2023/05/30 (Tue) 23:40"),
        ("2023-05-30 23:40:59.5", "2023/05/30 (Tue) 23:40"),
        ("2023-05-30", "2023/05/30 (Tue)"),
        ("12:05 am on 30 May, 2023", "2023/05/30 (Tue) 00:05"),
        ("May 30, 2023", "2023/05/30 (Tue)"),
        ("Tuesday, 30 May 2023", "Tuesday, 30 May 2023"),
        ("13:05 pm on 30 May, 2023", "13:05 pm on 30 May, 2023"),
        ("30 Mai 2023", "30 Mai 2023"),
        ("last week", "last week"),
        ("30 May 2023, 11:40 pm", "2023/05/30 (Tue) 23:40"),
        ("30 May 202323:40", "30 May 202323:40"),
    ],
)
def test_the_weekday_and_time_of_a_question_reach_the_prompt(file, date, shown):
    (episode,) = longmemeval.episodes(file([LONGMEMEVAL | {"question_date": date}]))
    assert episode.questions[0].text == f"How many? (asked on {shown})"


@pytest.mark.parametrize("date", [..., None, "", "  "])
def test_a_question_without_a_date_says_nothing_of_one(file, date):
    (episode,) = longmemeval.episodes(file([changed(LONGMEMEVAL, ["question_date"], date)]))
    assert episode.questions[0].text == "How many?"


def test_longmemeval_draws_every_type_and_keeps_the_order(file):
    a, b, c = longmemeval.KINDS[:3]
    kinds = [a] * 40 + [b] * 8 + [c] * 2
    path = file([{**LONGMEMEVAL, "question_id": str(i), "question_type": kind} for i, kind in enumerate(kinds)])

    def drawn(limit, seed=0):
        return [e.questions[0] for e in tasks.episodes("longmemeval", data=path, limit=limit, seed=seed)]

    for seed in range(5):
        assert {q.kind for q in drawn(3, seed)} == {a, b, c} and len(drawn(2, seed)) == 2
        assert Counter(q.kind for q in drawn(25, seed)) == {a: 20, b: 4, c: 1}
        ids = [int(q.id) for q in drawn(12, seed)]
        assert len(ids) == 12 and ids == sorted(ids)
    assert drawn(12) == drawn(12) != drawn(12, seed=1)
    assert {q.id for q in drawn(5)} < {q.id for q in drawn(12)}
    assert len(drawn(99)) == len(drawn(None)) == 50


REALTALK = {
    **LOCOMO,
    "sample_id": "realtalk-1",
    "qa": [
        {"question": "Is Ann shy?", "answer": "Probably", "category": 3, "evidence": ["D1:2"]},
        {"question": "Both?", "answer": "tea, milk", "category": 1, "evidence": ["D1:1", "D1:2"]},
    ],
}


def test_other_conversations_in_locomo_s_fields_go_by_their_own_name(file):
    """Benchmark names are for the public data: nothing else is called LoCoMo."""

    def called(*names):
        return locomo.called(locomo.episodes(file([LOCOMO | {"sample_id": name} for name in names])))

    assert called("conv-26") is called(*locomo.CONVERSATIONS) is None
    assert called("realtalk-1", "realtalk-2") == "REALTALK (LoCoMo's format)"
    assert called("conv-26", "conv-99") == called("conv-26", "realtalk-1") == "conversations (LoCoMo's format)"
    (episode,) = tasks.episodes("locomo", data=file([REALTALK]))
    assert [(q.kind, q.category) for q in episode.questions] == [("commonsense", "3"), ("multi-hop", "1")]
    assert tasks.score("locomo", episode.questions[0], "probably")["official_f1"] == 1


def test_squad_passages(file):
    (episode,) = tasks.episodes("squad", data=file([PASSAGE]))
    assert episode.id == "0/Oslo Fjord" and episode.chunks == ("TITLE: Oslo Fjord\n" + PASSAGE["context"],)
    assert [(q.id, q.answers, q.kind, q.evidence[0].text) for q in episode.questions] == [
        ("0/0", ("1624 it",), "squad", "In 1624 it burned!"),
        ("0/1", ("3",), "squad", "Oslo has 3 lines."),
    ]


def test_squad_passages_may_have_several_answers_and_ids(file):
    asked = {"id": "d7/q", "question": "What burned?", "answer": "1624 it", "answers": ["1624 it", "it", 1624], "tags": []}
    (episode,) = tasks.episodes("squad", data=file([PASSAGE | {"source": "own", "questions": [asked]}]))
    (question,) = episode.questions
    assert (question.id, question.answers) == ("d7/q", ("1624 it", "it", "1624"))
    assert [tasks.score("squad", question, said)["squad_em"] for said in ("it", "1624", "1623")] == [1, 1, 0]
    del asked["answer"]
    assert squad.episodes(file([PASSAGE | {"questions": [asked]}]))[0].questions == (question,)
    with pytest.raises(ValueError, match="item 2 of `answers` is null; expected text or a number"):
        squad.episodes(file([PASSAGE | {"questions": [asked | {"answers": ["x", None]}]}]))


def test_squad_reads_the_official_versions(file):
    first, second = tasks.episodes("squad", data=file({"version": "v2.0", "data": [OFFICIAL]}))
    told, untold = first.questions
    assert (told.id, told.answers, told.category) == ("q1", ("tram", "a tram"), "")
    assert told.evidence == (Evidence(0, "A bus, a tram."),), "the one at answer_start, not the first"
    assert (untold.id, untold.answers, untold.category) == ("q2", metrics.ABSTENTIONS, "abstention")
    assert second.chunks == ("TITLE: Oslo\nNothing asked.",) and second.questions == ()


def test_squad_reads_rows_of_one_question_each(file):
    """As Hugging Face has them: neighbours with one context are one passage, read once."""
    row = {"title": "Oslo_Fjord", "context": "A tram. A bus, a tram.", "question": "What?"}
    rows = [
        row | {"id": "a", "answers": {"text": ["tram", "a tram"], "answer_start": [17, 15]}},
        row | {"id": "b", "answers": {"text": [], "answer_start": []}},
        row | {"id": "c", "context": "A bus.", "answers": {"text": ["bus"]}},
    ]
    first, second = tasks.episodes("squad", data=file(rows, "x.jsonl"))
    told, untold = first.questions
    assert first.chunks == ("TITLE: Oslo Fjord\nA tram. A bus, a tram.",)
    assert (told.id, told.answers, told.evidence) == ("a", ("tram", "a tram"), (Evidence(0, "A bus, a tram."),))
    assert (untold.id, untold.category) == ("b", "abstention")
    assert [q.id for q in second.questions] == ["c"] and second.chunks == ("TITLE: Oslo Fjord\nA bus.",)


@pytest.mark.parametrize(
    "answer, start, sentence",
    [
        ("in Norway. St. Hans", 0, "It is in Norway. St. Hans is a feast there."),  # over a boundary; "St." is one, too
        ("It is in Norway.", 0, "It is in Norway."),
        ("Norway", 99, "It is in Norway."),  # a start beyond: the first one
        ("Norway", -7, "It is in Norway."),
    ],
)
def test_squad_evidence_holds_the_whole_answer(answer, start, sentence):
    assert squad._evidence(PASSAGE["context"], answer, start)[0].text == sentence


def test_squad_evidence_of_what_is_not_there_is_none():
    assert squad._evidence("A tram.", "a bus") == squad._evidence("A tram.", "") == ()


def test_clbench_asks_the_last_user_message(file):
    (episode,) = tasks.episodes("clbench", data=file([TASK], "CL-bench.jsonl"))
    assert episode.chunks == ("system: Be brief.", "user: A law.\nAnother.", "assistant: Read.")
    assert episode.questions == (
        Question("t1", "Which holds?", (), "Rules", category="Law", rubrics=("names the first", "gives a reason")),
    )
    assert tasks.score("clbench", episode.questions[0], "the first") == {}


RULE = "The rule is long and dull."
CONTEXT = "\n\n".join(" ".join((f"Section {i}.", *[RULE] * 60)) for i in range(5))
ASK = "What does section 7 say?\n1. In short.\n\n2. At length."


@pytest.mark.parametrize(
    "message, task",
    [
        (f"{CONTEXT}\n\n{ASK}", ASK),
        (f"{CONTEXT}\n \n{ASK}", ASK),
        (f"Title\n\n{CONTEXT}\n\n{ASK}", f"Title\n\n{ASK}"),
        (f"List the rules.\n\n{CONTEXT}", "List the rules.\n\n" + " ".join([RULE] * 37)),  # what fits of the last section
        (CONTEXT.replace("\n\n", " ") + "\nWhat of 7?", "What of 7?"),
    ],
    ids=["behind", "behind a line of spaces", "behind, with a title", "before", "last line"],
)
def test_clbench_splits_a_message_of_context_and_task(file, message, task):
    lone = {**TASK, "messages": [{"role": "user", "content": message}]}
    (episode,) = clbench.episodes(file([lone], "x.jsonl"))
    (chunk,) = episode.chunks
    assert episode.questions[0].text == task
    assert Counter((chunk.removeprefix("user: ") + " " + task).split()) == Counter(message.split()), "all is read or asked"


@pytest.mark.parametrize("boundary", ["\n\n", "\n", ". ", " ", ""])
def test_a_split_loses_nothing_and_keeps_the_task_short(boundary):
    for n in (10, 400, 900):
        message = boundary.join(f"w{i}" * 9 for i in range(n))
        context, task = clbench.split(message)
        assert len(task) <= clbench.HEAD + clbench.TAIL + 2
        if boundary:
            assert Counter(f"{context} {task}".split()) == Counter(message.split())
        else:
            assert context + task == message


def test_clbench_short_and_late_messages(file):
    def chunks_and_question(*messages):
        (e,) = clbench.episodes(file([{**TASK, "messages": [{"role": r, "content": c} for r, c in messages]}], "x.jsonl"))
        return e.chunks, e.questions[0].text

    assert chunks_and_question(("user", "Say it.")) == (("user: Say it.",), "Say it.")
    assert chunks_and_question(("system", "S"), ("user", "Q"), ("assistant", "A")) == (("system: S",), "Q")
    long = "Only this passage. " * 250  # a long last turn after others is asked as it is
    assert chunks_and_question(("user", "C"), ("assistant", "A"), ("user", long)) == (("user: C", "assistant: A"), long)


def test_lines_of_jsonl_may_hold_line_separators_and_be_empty(file):
    record = {**TASK, "rubrics": ["a\u2028b", "c\x85d"]}
    path = file("\ufeff" + json.dumps(record, ensure_ascii=False) + "\r\n\n" + json.dumps(TASK), "x.jsonl")
    assert [e.questions[0].rubrics for e in clbench.episodes(path)] == [("a\u2028b", "c\x85d"), tuple(TASK["rubrics"])]


# scores ----------------------------------------------------------------------------------------------------------------


def asked(*answers, **fields):
    return Question("q", "?", answers, "kind", **fields)


def check_squad(rules):
    for prediction, answers, f1, em in (
        ("The Denver Broncos!", ("Denver Broncos",), 1, 1),
        ("an apple a day", ("apple day",), 1, 1),
        ("theatre", ("atre",), 0, 0),  # articles go as whole words
        ("Denver", ("Denver Broncos",), 2 / 3, 0),
        ("in 1624", ("1623", "1624"), 2 / 3, 0),
        ("1624", ("1623", "1624"), 1, 1),
        ("Broncos Broncos", ("Broncos",), 2 / 3, 0),
        ("running", ("runs",), 0, 0),
        ("", ("tram",), 0, 0),
        ("the", ("a",), 1, 1),  # as in the official code, nothing is equal to nothing
    ):
        assert rules.squad_f1(prediction, asked(*answers)) == pytest.approx(f1), prediction
        assert rules.squad_em(prediction, asked(*answers)) == em, prediction


def test_a_squad_question_without_an_answer_is_right_or_wrong_and_nothing_between():
    untold = replace(asked(*metrics.ABSTENTIONS), category="abstention")
    for said, right in (("unknown", 1), ("No information available on that.", 1), ("No", 0), ("available", 0), ("", 0)):
        assert metrics.squad_f1(said, untold) == metrics.squad_em(said, untold) == right, said


def check_choice(rules):
    for choices in ((metrics.ABSTENTIONS[0], "a bowl"), ("a bowl", metrics.ABSTENTIONS[0])):
        question = asked(*metrics.ABSTENTIONS, intrusions=("a bowl",), category="5", choices=choices)
        for prediction, place in (("a", 0), ("B", 1), ("(a)", 0), (" (b)\n", 1), ("b.", 1), ("(A).", 0), ("b)", 1)):
            assert rules.chosen(prediction, question) == choices[place]
            assert rules.chosen(f"({'ab'[place]}) {choices[place]}.", question) == choices[place]
        for prediction in ("a bowl", "", "c", "ab", "Unknown", "(a) no bowl", f"(a) {choices[1]}", "b) " + choices[0]):
            assert rules.chosen(prediction, question) == prediction
    assert rules.chosen("a", asked("x")) == "a"


def test_a_chosen_letter_scores_as_its_text():
    question = asked(*metrics.ABSTENTIONS, intrusions=("a bowl",), category="5", choices=("a bowl", metrics.ABSTENTIONS[0]))
    assert tasks.score("locomo", question, "(b)") == {"f1": 1, "em": 1, "contains": 1, "intrusion": 0, "official_f1": 1}
    assert tasks.score("locomo", question, "a") == {"f1": 0, "em": 0, "contains": 0, "intrusion": 1, "official_f1": 0}
    assert metrics.official_f1("(b)", question) == 1 and metrics.official_f1("(a)", question) == 0
    assert metrics.official_f1("b", replace(question, choices=())) == 0


def check_summary(rules):
    rows = [
        {"id": str(i), "kind": kind, "category": category, "answers": ["x"], "f1": f1, "judge": judge}
        for i, (kind, category, f1, judge) in enumerate(
            (("b", "", 1.0, True), ("a", "", 0.5, True), ("a", "", 0.0, False), ("a", "abstention", 1.0, False))
        )
    ]
    rows[2]["judge"] = None
    assert rules.summary(rows) == {
        "f1": {"types": {"a": 0.5, "b": 1.0}, "task_average": 0.75, "overall": 0.625, "abstention": 1.0},
        "judge": {"types": {"a": 0.5, "b": 1.0}, "task_average": 0.75, "overall": pytest.approx(2 / 3), "abstention": 0.0},
    }
    assert rules.summary(rows[:1])["f1"]["abstention"] is None and rules.summary([]) == {}


RULES = SimpleNamespace(
    squad_f1=metrics.squad_f1, squad_em=metrics.squad_em, chosen=locomo.chosen, summary=longmemeval.summary
)  # fmt: skip
WRONG = {
    "squad_keeps_articles": check_squad,
    "squad_first_answer": check_squad,
    "choice_by_place": check_choice,
    "average_of_questions": check_summary,
    "abstentions_apart": check_summary,
}


@pytest.mark.parametrize("check", dict.fromkeys(WRONG.values()))
def test_scores_worked_by_hand(check):
    check(RULES)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_implementations_are_caught(name):
    module = importlib.import_module(f"wrong.{name}")
    faults = {rule: getattr(module, rule) for rule in vars(RULES) if hasattr(module, rule)}
    assert faults, f"tests/wrong/{name}.py defines none of the rules"
    with pytest.raises(AssertionError):
        WRONG[name](SimpleNamespace(**{**vars(RULES), **faults}))


def test_each_task_has_its_scores():
    question = asked("x", category="4")
    assert {task: list(tasks.score(task, question, "x")) for task in tasks.TASKS} == {
        "stream": ["f1", "em", "contains", "intrusion"],
        "locomo": ["f1", "em", "contains", "intrusion", "official_f1"],
        "longmemeval": ["f1", "em", "contains"],
        "squad": ["f1", "em", "contains", "squad_f1", "squad_em"],
        "passages": ["f1", "em", "contains"],
        "clbench": [],
    }


# CL-bench is never trained on ------------------------------------------------------------------------------------------


def test_training_refuses_clbench(file):
    named = file([TASK], "CL-bench.jsonl"), file([TASK], "tasks.jsonl"), file([TASK], "tasks.json")
    for name in ("clbench", "CL-bench", "clbench_dev.jsonl", *map(str, named)):
        with pytest.raises(ValueError, match="CL-bench is for evaluation only"):
            own_task.find_task(name)


def test_training_refuses_clbench_in_a_preset(tmp_path):
    from tmem.rl.trainer import Trainer

    with pytest.raises(ValueError, match="CL-bench is for evaluation only"):
        Trainer("default", tmp_path / "run", task="clbench")
    assert not (tmp_path / "run").exists()


def test_other_files_are_no_clbench(file):
    for name in (file([PASSAGE], "x.jsonl"), file("{", "x.json"), file("clbench", "clbench.py"), "absent.jsonl", "strem"):
        assert not clbench.is_clbench(str(name))
    with pytest.raises(ValueError, match="expected stream, passages, search, verifiers or file.py:Class"):
        own_task.find_task(str(file([PASSAGE], "x.jsonl")))


# left out --------------------------------------------------------------------------------------------------------------


def listed(file, content, name="list.json", task="locomo"):
    return left_out.read_leave_out(file(content, name), locomo.question_id if task == "locomo" else left_out.as_it_is)


@pytest.mark.parametrize("name", ["list.json", "list.jsonl", "list.txt"])
def test_questions_that_a_list_names_are_left_out(file, name):
    """By the loader's ids or by locomo-audit's, before any is drawn; without a list nothing changes."""
    data = file([LOCOMO | {"sample_id": sample} for sample in ("conv-26", "conv-30")])
    ids = ["conv-26/1", "locomo_1_qa0", "locomo_0_qa3"]
    left = listed(file, "\n".join(ids) + "\n\n" if name == "list.txt" else ids, name)
    asked = [q.id for e in tasks.episodes("locomo", data=data, leave_out=left) for q in e.questions]
    assert asked == ["conv-26/0", "conv-26/2", "conv-30/1", "conv-30/2", "conv-30/3"]
    left.check()
    assert left_out.about(left)["leave_out"] == 3
    drawn = [[q.id for q in e.questions] for e in tasks.episodes("locomo", data=data, leave_out=left, limit=2)]
    assert drawn[0] == ["conv-26/0", "conv-26/2"] and len(drawn[1]) == 2
    assert tasks.episodes("locomo", data=data, limit=2) == tasks.episodes(
        "locomo", data=data, limit=2, leave_out=left_out.LeaveOut()
    )


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.txt", "# wrong golds\n\nconv-26/0  # no bowl\n#conv-26/2\nconv-26/1\n"),
        ("list.txt", "\ufeff# wrong\r\nconv-26/0\r\n\r\n  conv-26/1\t\r\n"),
        ("list", "conv-26/1\nconv-26/0"),
        ("list.json", {"about": "wrong golds", "ids": ["conv-26/0", "conv-26/1"]}),
        ("list.json", {"errors": [{"question_id": "conv-26/0"}, {"id": "conv-26/1", "error_type": "AMBIGUOUS"}]}),
        ("list.jsonl", '"conv-26/0"\n{"_id": "conv-26/1"}\n'),
        ("list.json", [{"id": f"conv-26/{i}", "label_error": i < 2} for i in range(4)]),
    ],
)
def test_a_list_may_have_any_plain_form(file, name, content):
    data = file([LOCOMO | {"sample_id": "conv-26"}])
    left = listed(file, content, name)
    (episode,) = tasks.episodes("locomo", data=data, leave_out=left)
    assert [q.id for q in episode.questions] == ["conv-26/2", "conv-26/3"]
    left.check()


def test_of_a_wrong_citation_alone_the_question_stays(file):
    """In the audit's own form, and in one where most records have no error."""
    data = file([LOCOMO | {"sample_id": "conv-26"}])
    audit = [
        {"question_id": "locomo_0_qa0", "question": "What did Bo show?", "error_type": "WRONG_CITATION"},
        {"question_id": "locomo_9_qa0", "error_type": "WRONG_CITATION"},  # of a conversation that is not here
        {"question_id": "locomo_0_qa1", "question": "when? ", "error_type": "TEMPORAL_ERROR"},
    ]
    joined = [
        {"question_id": "locomo_7_qa0", "sample_id": "conv-26", "label_error": {"type": "WRONG_CITATION"}},
        {"question_id": "locomo_7_qa1", "sample_id": "conv-26", "label_error": {"type": "HALLUCINATION"}},
        {"question_id": "locomo_7_qa2", "sample_id": "conv-26", "label_error": None},
    ]
    for content in (audit, joined):
        left = listed(file, content)
        (episode,) = tasks.episodes("locomo", data=data, leave_out=left)
        assert [q.id for q in episode.questions] == ["conv-26/0", "conv-26/2", "conv-26/3"]
        (said,) = left_out.notes(left)
        assert said == "1 question left out by list.json; 1 that it names for a wrong citation alone stays"


def test_a_list_made_for_other_data_is_refused(file):
    data = file([LOCOMO | {"sample_id": "conv-26"}])
    left = listed(file, [{"question_id": "conv-26/0", "question": "Who?"}])
    with pytest.raises(ValueError, match="list.json names 'conv-26/0' with the question 'Who\\?', and the data ask 'What"):
        tasks.episodes("locomo", data=data, leave_out=left)
    left = listed(file, ["conv-26/0", "conv-26/77", "locomo_5_qa1"])
    tasks.episodes("locomo", data=data, leave_out=left)
    with pytest.raises(ValueError, match=r"names 'conv-26/77', and the data hold no question with that id \(2 of 3 are"):
        left.check()
    with pytest.raises(ValueError, match=r"names 'conv-26/77', .* \(1 of 3 are unknown"):
        left.check(lambda id: id == "conv-44/1")


@pytest.mark.parametrize(
    "content, name, sentence",
    [
        ("", "list.txt", "list.txt is empty; give a list of question ids"),
        ([], "list.json", "list.json is empty"),
        ({"a": 1}, "list.json", "list.json holds no list"),
        ({"a": ["conv-26/0"], "b": []}, "list.json", "list.json holds no list, or several"),
        ("# nothing\n", "list.txt", "list.txt is empty"),
        ("question_id,why\nconv-26/0,wrong\n", "list.csv", "list.csv is no .txt, .json or .jsonl file; give a list"),
        ([{"answer": "x"}], "list.json", "entry 1: `question_id` is missing; expected text or a number"),
        (["a", " "], "list.json", "entry 2: `question_id` is empty"),
        (["a", None], "list.json", "entry 2: `question_id` is null"),
        ([{"id": "a", "label_error": 3}], "list.json", "`label_error` is a number; expected text or an object"),
        (b"\xff\xfe", "list.txt", "list.txt is not UTF-8"),
        ("[" * 100_000, "list.json", "list.json is nested too deeply"),
        ("[" * 100_000, "list.jsonl", "list.jsonl, line 1 is nested too deeply"),
    ],
)
def test_a_list_that_is_none_is_one_sentence(file, content, name, sentence):
    with pytest.raises(ValueError) as error:
        listed(file, content, name)
    assert sentence in str(error.value) and str(error.value).startswith("leave-out: ") and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="leave-out: no file at /nowhere.txt"):
        left_out.read_leave_out("/nowhere.txt")


@pytest.mark.parametrize(
    "task, record, id, rest",
    [("longmemeval", LONGMEMEVAL, "e47", []), ("squad", PASSAGE, "0/1", ["0/0"]), ("squad", OFFICIAL, "q1", ["q2"]),
     ("clbench", TASK, "t1", [])],
)  # fmt: skip
def test_every_task_leaves_questions_out(file, task, record, id, rest):
    left = listed(file, [id], task=task)
    path = file([record], "x.jsonl")
    assert [q.id for e in tasks.episodes(task, leave_out=left, data=path) for q in e.questions] == rest
    left.check()


@pytest.mark.parametrize("task, record, field", [("longmemeval", LONGMEMEVAL, ["question_id"]), ("squad", PASSAGE, ["title"]),
                                                 ("clbench", TASK, ["metadata", "task_id"])])  # fmt: skip
def test_a_list_is_checked_against_all_data_and_not_what_was_drawn(file, task, record, field):
    path = file([changed(record, field, f"r{i}") for i in range(6)])
    ids = [q.id for e in tasks.episodes(task, data=path) for q in e.questions]
    for id in ids:
        left = listed(file, [id], task=task)
        assert id not in {q.id for e in tasks.episodes(task, data=path, leave_out=left, limit=1) for q in e.questions}
        left.check()


def test_generated_questions_are_left_out(file):
    whole = [q.id for e in tasks.episodes("stream", limit=2) for q in e.questions]
    left = listed(file, whole[:2], task="stream")
    assert [q.id for e in tasks.episodes("stream", limit=2, leave_out=left) for q in e.questions] == whole[2:]
    left.check()


# paths and ids -----------------------------------------------------------------------------------------------------------

ODD = ("{}", "{0.__class__}", "{x!r:>9}", "}{", "%s %(a)d", "[/b]", ":smile:", "$_$", "ü😀", "a b", "*?", "{" * 40)


@pytest.mark.parametrize("name", LOADERS)
def test_text_of_paths_and_records_is_no_format(tmp_path, name):
    """Read alike, and refused alike at every place, whatever folders, files and ids are called."""
    record, load = LOADERS[name]
    id = {"locomo": ["sample_id"], "longmemeval": ["question_id"], "clbench": ["metadata", "task_id"]}.get(name, ["title"])
    rng = random.Random(f"odd/{name}")
    for odd in ODD:
        path = tmp_path / odd / f"{odd}.json"
        path.parent.mkdir(parents=True)
        mine = changed(record, id, odd)
        path.write_text(json.dumps([mine]), encoding="utf-8")
        (tmp_path / "plain.json").write_text(json.dumps([mine]), encoding="utf-8")
        episodes = load(path)
        assert episodes == load(tmp_path / "plain.json") and odd.replace("_", " ") in episodes[0].id.replace("_", " ")
        refused = 0
        places = list(paths(mine))
        for place in rng.sample(places, min(12, len(places))):
            path.write_text(json.dumps([changed(mine, place, [[3]])]), encoding="utf-8")
            try:
                load(path)
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{name.split()[0]}: {path}") and "\n" not in str(error)
        assert refused > 3


# wrong files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, name, sentence",
    [
        ("{", "x.json", "x.json is not JSON"),
        ('[{"a": 1},\n', "x.json", "x.json is not JSON"),
        ('{"a": 1}\n{"a": 2}\n', "x.json", "if it holds a record a line, name it .jsonl"),
        ("[NaN]", "x.json", "x.json is not JSON (NaN is no JSON number)"),
        ("[" + "7" * 5000 + "]", "x.json", "x.json is not JSON (Exceeds the limit"),
        ("[" * 200_000, "x.json", "x.json is nested too deeply"),
        (b'["\x00"]', "x.json", "x.json is not JSON (Invalid control character"),
        (b"\xff\xfe[\x00]\x00", "x.json", "x.json is not UTF-8"),
        ("", "x.json", "x.json is empty; get it"),
        ("\n\n", "x.jsonl", "x.jsonl is empty; get it"),
        (b"BZh91AY&SY\xd1", "x.json.bz2", "x.json.bz2 is compressed; unpack it with bunzip2"),
        (b"\xfd7zXZ\x00", "x.json.xz", "x.json.xz is compressed; unpack it with unxz"),
        (b"\x28\xb5\x2f\xfd\x00", "x.json.zst", "x.json.zst is compressed; unpack it with unzstd"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "x.json", "x.json is a pointer of Git LFS"),
        ("{}", "x.json", "x.json holds an object, expected a non-empty list of records; get it"),
        ("null", "x.json", "x.json holds null"),
        ("[[]]", "x.json", "x.json, record 1 is a list; expected an object."),
        ('{"a": 1}\n\n{"a": \n', "x.jsonl", "x.jsonl, line 3 is not JSON"),
        ('{"a": 1}\n3\n', "x.jsonl", "x.jsonl, record 2 is a number; expected an object."),
        ("[" * 200_000 + "\n", "x.jsonl", "x.jsonl, line 1 is nested too deeply"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(file, content, name, sentence):
    with pytest.raises(ValueError) as error:
        records.read(file(content, name), "some", "get it")
    assert sentence in str(error.value) and str(error.value).startswith("some: ") and "\n" not in str(error.value)


def test_what_is_there_and_no_file_is_said_to_be_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ValueError, match="some: .* is a folder, a pipe or a device; expected a file; get it"):
            records.read(path, "some", "get it")


def test_a_missing_file_says_where_to_get_it():
    for task in tasks.TASKS[1:]:
        with pytest.raises(FileNotFoundError, match=f"{task}: no file at /nowhere.json; get .*https://"):
            tasks.episodes(task, data="/nowhere.json")
        with pytest.raises(ValueError, match=f"{task}: no data file given; pass the path of (the official|a file of)"):
            tasks.episodes(task)
        with pytest.raises(ValueError, match=f"{task}: limit is 0, expected at least 1"):
            tasks.episodes(task, data="/nowhere.json", limit=0)
    with pytest.raises(ValueError, match="locomo: adversarial is 'closed', expected one of open, choice"):
        tasks.episodes("locomo", data="/nowhere.json", adversarial="closed")


@pytest.mark.parametrize(
    "task, record, id",
    [("locomo", LOCOMO, "conv-x"), ("longmemeval", LONGMEMEVAL, "e47"), ("squad", OFFICIAL, "q1"), ("clbench", TASK, "t1")],
)
def test_an_id_that_occurs_twice_is_refused(file, task, record, id):
    """Answers, verdicts and memories are kept by ids: of two with the same, one would be answered from the other's text."""
    path = str(file([record, record], "x.jsonl"))
    with pytest.raises(ValueError, match=f"{task}: .*x.jsonl: the id '{id}' occurs twice"):
        tasks.episodes(task, data=path)
    with pytest.raises(ValueError, match="x.jsonl, .*: the id .* occurs twice"):
        tasks.episodes(task, data=[str(file([record], "x.jsonl"))] * 2)


def test_several_files_are_one(file):
    first, second = str(file([PASSAGE], "a.json")), str(file([OFFICIAL], "b.json"))
    both = tasks.episodes("squad", data=(first, second))
    assert [q.text for e in both for q in e.questions] == [
        q.text for data in (first, second) for e in tasks.episodes("squad", data=data) for q in e.questions
    ]
    assert len(tasks.episodes("squad", data=(first, second), limit=2)) == 2
    with pytest.raises(FileNotFoundError, match="no file at /nowhere.json"):
        tasks.episodes("squad", data=(first, "/nowhere.json"))


def test_a_number_beyond_all_numbers_is_no_answer(file):
    path = file('[{"title": "T", "context": "x", "questions": [{"question": "?", "answer": 1e999}]}]', "x.json")
    with pytest.raises(ValueError, match="`answer` is larger than any number"):
        tasks.episodes("squad", data=str(path))


def changed(record, path, value):
    """A copy of `record` with another value at `path`; without it where the value is `...`."""
    record = copy.deepcopy(record)
    *parents, last = path
    room = record
    for key in parents:
        room = room[key]
    if value is ...:
        del room[last]
    else:
        room[last] = value
    return record


@pytest.mark.parametrize(
    "loader, path, value, sentence",
    [
        ("locomo", ["sample_id"], 7, "record 1: `sample_id` is a number; expected text."),
        ("locomo", ["sample_id"], "\ud800", "record 1: `sample_id` holds half a surrogate pair; expected Unicode text."),
        ("locomo", ["qa", 1], None, "record 1 (sample_id 'conv-x'), item 2 of `qa` is null; expected an object."),
        ("locomo", ["qa", 0, "answer"], ..., "item 1 of `qa`: `answer` is missing; expected text or a number."),
        ("locomo", ["qa", 0, "category"], True, "item 1 of `qa`: `category` is true or false; expected a whole number."),
        ("locomo", ["qa", 0, "category"], 10**4000, "`category` is 10000000000000000000; expected one of 1 to 5."),
        ("locomo", ["conversation", "session_1"], {}, "`conversation`: `session_1` is an object; expected a list."),
        ("locomo", ["conversation", "session_1", 1, "text"], ..., "item 2 of `session_1`: `text` is missing; expected text."),
        ("locomo", ["conversation", "session_1_date_time"], ..., "`session_1_date_time` is missing"),
        ("longmemeval", ["answer"], None, "record 1 (question_id 'e47'): `answer` is null; expected text or a number."),
        ("longmemeval", ["question_type"], [], "`question_type` is a list; expected text."),
        ("longmemeval", ["question_type"], "multi_session", "`question_type` is 'multi_session'; expected one of single-"),
        ("longmemeval", ["haystack_dates", 1], 5, "item 2 of `haystack_dates` is a number; expected text."),
        ("longmemeval", ["haystack_dates"], [], "`haystack_dates` has 0 items; expected 3, one a session."),
        ("longmemeval", ["haystack_session_ids"], ["s"], "`haystack_session_ids` has 1 items; expected 3, one a session."),
        ("longmemeval", ["haystack_sessions", 0, 1], "x", "turn 2 of session 1 is text; expected an object."),
        ("longmemeval", ["haystack_sessions", 0, 1, "has_answer"], "yes", "`has_answer` is text; expected true or false."),
        ("longmemeval", ["haystack_sessions"], [[], [], []], "`haystack_sessions` holds no turns"),
        ("squad", ["questions"], ..., "record 1: `questions` is missing; expected a list."),
        ("squad", ["context"], " ", "record 1: `context` is empty; expected a passage."),
        ("squad official", ["paragraphs", 0, "qas", 0, "answers", 1], "x", "item 2 of `answers` is text; expected an object."),
        ("passages", ["questions", 0, "tags"], "x", "item 1 of `questions`: `tags` is text; expected a list."),
        ("passages", ["questions", 0, "tags"], [3], "item 1 of `questions`, item 1 of `tags` is a number; expected text."),
        ("clbench", ["messages"], [], "`messages` asks nothing; expected a last user message with text."),
        ("clbench", ["messages", 3, "content"], None, "item 4 of `messages`: `content` is null; expected text or a list."),
        ("clbench", ["messages", 1, "content", 1], {"type": "image_url"}, "item 2 of `content`: `text` is missing"),
        ("clbench", ["rubrics"], [], "`rubrics` is empty; expected what an answer is graded by."),
        ("clbench", ["rubrics", 0], 3, "record 1, item 1 of `rubrics` is a number; expected text or an object."),
        ("clbench", ["rubrics", 0], {}, "record 1, item 1 of `rubrics`: `rubric_criteria` is missing; expected text."),
        ("clbench", ["metadata"], ..., "record 1: `metadata` is missing; expected an object."),
        ("clbench", ["metadata", "task_id"], ..., "record 1, `metadata`: `task_id` is missing; expected text."),
    ],
)  # fmt: skip
def test_a_wrong_record_is_named_with_its_field(file, loader, path, value, sentence):
    record, load = LOADERS[loader]
    found = file([changed(record, path, value)])
    with pytest.raises(ValueError) as error:
        load(found)
    assert sentence in str(error.value) and str(found) in str(error.value) and "\n" not in str(error.value)


VALUES = (
    None, True, False, 0, 5, -1, 10**30, 1.5, float("nan"), "", " ", "x", "D1:1", "b\u2028c\nd", "\0", "\ud800", "😀",
    [], [[]], [None], [3], ["x"], {}, {"a": None}, [{"text": "x"}], {"data": []},
)  # fmt: skip
DEEP = "[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900
TEXTS = (
    *DEEP, "\r\n", "{}", "%s", "\0",
    "\ufeff", "\\ud800", '"', "]", "}", ",", "9" * 5000, "[" * 5000, "{\n", "\x85", "1e999", "-Infinity",
    "é",
)  # fmt: skip


def paths(value, path=()):
    """Of everything inside a record."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths(value[key], (*path, key))


def mutated(record, rng):
    """A record with one to three of its fields dropped, replaced, doubled, renamed or swapped."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(paths(record))
        if not places:
            break
        place = rng.choice(places)
        *parents, last = place
        room = record
        for key in parents:
            room = room[key]
        match rng.choice(("drop", "replace", "replace", "double", "swap")):
            case "drop":
                record = changed(record, place, ...)
            case "replace":
                record = changed(record, place, rng.choice(VALUES))
            case "double" if isinstance(room, dict):
                record = changed(record, (*parents, rng.choice((f"{last}s", "session_2", "session_²", "answer"))), room[last])
            case "double":
                record = changed(record, place, [room[last], room[last]])
            case "swap":
                other = room
                for key in rng.choice([p for p in paths(room)] or [()]):
                    other = other[key]
                record = changed(record, place, copy.deepcopy(other))
    return record


def damaged(text, rng):
    at = rng.randrange(len(text) + 1)
    match rng.choice(("cut", "insert", "bytes")):
        case "cut":
            return text[:at].encode()
        case "insert":
            return (text[:at] + rng.choice(TEXTS) + text[at:]).encode()
    return text[:at].encode() + rng.choice((b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xfe\xff")) + text[at:].encode()


@pytest.mark.parametrize("name", LOADERS)
def test_whatever_a_file_holds_it_is_read_or_named_in_one_sentence(tmp_path, name):
    record, load = LOADERS[name]
    task, rng, outcomes = name.split()[0], random.Random(f"files/{name}"), Counter()
    for i in range(1000):
        mutants = [mutated(record, rng) if rng.random() < 0.8 else record for _ in range(rng.choice((1, 2)))]
        lines = rng.random() < 0.5
        under = {"version": "v", "data": mutants} if name.endswith(" official") else mutants
        text = "\n".join(map(json.dumps, mutants)) if lines else json.dumps(under)
        path = tmp_path / f"{i % 2}.{'jsonl' if lines else 'json'}"
        path.write_bytes(damaged(text, rng) if rng.random() < 0.2 else text.encode())
        options = {"adversarial": rng.choice(locomo.ADVERSARIAL)} if task == "locomo" else {}
        try:
            episodes = load(path, seed=i, limit=rng.choice((None, 1)), **options)
        except ValueError as error:  # also of a subclass; anything else fails
            said = str(error)
            assert said.startswith(f"{task}: {path}") and "\n" not in said and len(said) < len(str(path)) + 300, said
            outcomes["named"] += 1
            continue
        outcomes["read"] += 1
        json.dumps([vars(q) for e in episodes for q in e.questions], default=vars, ensure_ascii=False).encode()
        for episode in episodes:
            assert len(episode.chunks) == len(episode.pairs) > 0
            for question in episode.questions:
                assert all(e.text in episode.chunks[e.chunk] for e in question.evidence)
                assert all(0 <= score <= 1 for score in tasks.score(task, question, "(b)").values())
    assert min(outcomes["read"], outcomes["named"]) > 100, outcomes


# the real files --------------------------------------------------------------------------------------------------------


REAL = {
    "locomo": "locomo/locomo5.json",
    "longmemeval": "longmemeval/longmemeval_reconstructed_dev.json",
    "squad": "squad/squad_passages_dev.json",
    "clbench": "clbench/clbench_dev.jsonl",
}


@pytest.mark.parametrize("task", REAL)
def test_the_development_files_are_read_whole(task):
    path = DATA / REAL[task]
    if not path.is_file():
        pytest.skip(f"the development file of {task} is not at {path} (not part of the project)")
    episodes = tasks.episodes(task, data=path)
    questions = [q for e in episodes for q in e.questions]
    assert len({q.id for q in questions}) == len(questions) > 20
    for episode in episodes:
        for question in episode.questions:
            assert all(e.text in episode.chunks[e.chunk] for e in question.evidence)
            if task == "clbench":
                assert question.rubrics and question.text.strip() and len(question.text) < clbench.LONG
            else:
                scores = tasks.score(task, question, question.answers[0])
                assert scores["f1"] == scores["em"] == 1, (question.id, question.answers)
    without = sum(not q.evidence for q in questions)
    assert without == len(questions) if task == "clbench" else without < len(questions) / 100
    few = tasks.episodes(task, data=path, limit=8)
    assert {q.id for e in few for q in e.questions} < {q.id for q in questions}
