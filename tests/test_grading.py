"""`tmem eval --judge-url`: every answer gets a verdict or is counted, nothing is asked twice, scores say what was judged."""

import json

import pytest
from test_verbs import rows, tmem  # noqa: F401

from tmem import judge_local


@pytest.fixture
def words(tmp_path):
    turns = [{"speaker": s, "dia_id": f"D1:{i}", "text": f"line {i}"} for i, s in enumerate(["Ada", "Ben"] * 3)]
    qa = [{"question": f"q{i}?", "answer": f"a{i}", "evidence": [], "category": 4} for i in range(3)]
    qa.append({"question": "never?", "adversarial_answer": "x", "evidence": [], "category": 5})
    conversation = {"speaker_a": "Ada", "speaker_b": "Ben", "session_1": turns, "session_1_date_time": "1 May 2023"}
    data = tmp_path / "locomo.json"
    data.write_text(json.dumps([{"sample_id": "c1", "qa": qa, "conversation": conversation}]))
    return ["eval", "--task", "locomo", "--data", str(data), "--methods", "none,constant", "--out", "OUT"]


def test_a_judge_grades_what_its_protocol_grades_and_is_asked_once(tmem, tmp_path, words):  # noqa: F811
    asked = []

    def answer(messages):
        asked.append(messages)
        return "so it is\nCORRECT" if "No information available" in messages[1]["content"] else "not so\nWRONG"

    with judge_local.serve(answer) as url:
        found = tmem(*words, "--judge-url", url, "--judge-concurrency", "1")
        assert found.exit_code == 0 and "6 judged, 2 left out" in found.output, found.output
        again = tmem(*words, "--judge-url", url, "--resume")
        assert again.exit_code == 0 and "0 requests" in again.output and "6 from the cache" in again.output
    assert len(asked) == 6
    methods = json.loads((tmp_path / "OUT/results.json").read_text())["methods"]
    assert methods["constant"]["judge"] == 1 and methods["none"]["judge"] == 0
    kinds = methods["constant"]["by_kind"]
    assert kinds["single-hop"]["judge"] == 1 and "judge" not in kinds["adversarial"]
    verdicts = rows(tmp_path / "OUT", "verdicts")
    assert len(verdicts) == 8 and {v["status"] for v in verdicts} == {"judged", "left out"}


def test_a_judge_added_later_is_told_what_was_answered_before(tmem, tmp_path, words):  # noqa: F811
    assert tmem(*words).exit_code == 0
    before = rows(tmp_path / "OUT")
    with judge_local.serve(lambda messages: "WRONG") as url:
        found = tmem(*words, "--resume", "--judge-url", url, "--judge-concurrency", "1")
    assert found.exit_code == 0 and rows(tmp_path / "OUT") == before, found.output
    assert json.loads((tmp_path / "OUT/results.json").read_text())["methods"]["none"]["judge"] == 0


def test_replies_that_say_nothing_are_counted_and_not_scored(tmem, tmp_path, words):  # noqa: F811
    found = tmem(*words, "--judge-url", "local")  # a tiny random model never says CORRECT or WRONG
    assert found.exit_code == 0 and "6 malformed" in found.output and "a measure of nothing" in found.output, found.output
    results = json.loads((tmp_path / "OUT/results.json").read_text())
    assert results["judge"]["plumbing"] and "judge" not in results["methods"]["none"] and "f1" in results["methods"]["none"]


@pytest.mark.parametrize(
    "more, sentence",
    [(["--judge-url", "ftp://x"], "not of the form"), (["--task", "stream", "--judge-url", "local"], "scored without one")],
)
def test_a_judge_that_cannot_be_is_refused_before_any_work(tmem, tmp_path, words, more, sentence):  # noqa: F811
    words = words if "--task" not in more else ["eval", "--out", "OUT"]
    found = tmem(*words, *more)
    assert found.exit_code == 2 and sentence in found.output and not (tmp_path / "OUT").exists(), found.output


def test_longmemeval_has_its_aggregates(tmem, tmp_path):  # noqa: F811
    def record(i, kind):
        sessions = [[{"role": "user", "content": f"I like {i}.", "has_answer": True}]]
        return {"question_id": f"q{i}", "question_type": kind, "question": "what?", "answer": "unknown",
                "question_date": "2023/05/30", "haystack_session_ids": ["s"],
                "haystack_dates": ["2023/05/20 (Sat) 02:21"], "haystack_sessions": sessions,
                "answer_session_ids": ["s"]}  # fmt: skip

    file = tmp_path / "lme.json"
    kinds = ("multi-session", "multi-session", "temporal-reasoning")
    file.write_text(json.dumps([record(i, k) for i, k in enumerate(kinds)]))
    words = ["eval", "--task", "longmemeval", "--data", str(file), "--methods", "constant,none", "--out", "OUT"]
    found = tmem(*words)
    assert found.exit_code == 0 and "task average" in found.output, found.output
    methods = json.loads((tmp_path / "OUT/results.json").read_text())["methods"]
    assert methods["constant"]["aggregates"]["f1"]["types"] == {"multi-session": 0.0, "temporal-reasoning": 0.0}
    assert methods["constant"]["aggregates"]["em"]["abstention"] is None
