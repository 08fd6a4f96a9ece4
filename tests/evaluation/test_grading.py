"""`tmem eval --judge-url`: every answer gets a verdict or is counted, nothing is asked twice, scores say what was judged."""

import json

import pytest
from tiny_cli import rows
from tiny_eval import data

from tmem.evaluation.judge import judge, local


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

    with local.serve(answer) as url:
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
    with local.serve(lambda messages: "WRONG") as url:
        found = tmem(*words, "--resume", "--judge-url", url, "--judge-concurrency", "1")
    assert found.exit_code == 0 and rows(tmp_path / "OUT") == before, found.output
    assert json.loads((tmp_path / "OUT/results.json").read_text())["methods"]["none"]["judge"] == 0


def test_a_resumed_run_keeps_its_judge_and_adds_up_what_it_took(tmem, tmp_path, words, monkeypatch):  # noqa: F811
    found = {}

    def results():
        return json.loads((tmp_path / "OUT/results.json").read_text())

    class Metered(local._Handler):
        def _answer(self):
            status, content = super()._answer()
            return status, {**content, "usage": {"prompt_tokens": 100, "completion_tokens": 2}}

    monkeypatch.setattr(local, "_Handler", Metered)
    with local.serve(lambda messages: "CORRECT") as url:
        asking = ["--judge-url", url, "--judge-model", "m", "--judge-prices", "10", "100"]
        assert tmem(*words, *asking).exit_code == 0
        found["first"] = results()
        assert tmem(*words, "--resume").exit_code == 0
        found["without"] = results()
        more = [w if w != "none,constant" else "none,constant,full" for w in words]
        said = " ".join(tmem(*more, "--resume", *asking).output.split())  # lines end where the console's width has them
        found["more"] = results()
    first, without, more = (found[k] for k in ("first", "without", "more"))
    assert without["judge"] == first["judge"] and without["methods"] == first["methods"]
    assert without["differences"]["judge"] == first["differences"]["judge"]
    judge = first["judge"]
    assert (judge["model"], judge["host"], judge["plumbing"]) == ("m", "127.0.0.1", False)
    assert [judge[k] for k in ("judged", "left_out", "unreachable", "malformed")] == [6, 2, 0, 0]
    assert judge["spent"] == {"requests": 6, "unmetered": 0, "prompt_tokens": 600, "completion_tokens": 12,
                              "cost": pytest.approx(600e-5 + 12e-4)}  # fmt: skip
    assert more["judge"]["spent"]["requests"] == 9 and more["judge"]["spent"]["prompt_tokens"] == 900
    assert more["judge"]["pass"]["requests"] == 3 and more["judge"]["pass"]["cached"] == 6
    assert "3 requests" in said and "9 requests, 900 + 18 tokens, cost 0.0108" in said
    assert [(m["n"], m["judged"], m["judge"]) for m in more["methods"].values()] == [(4, 3, 1.0)] * 3
    assert url not in (tmp_path / "OUT/results.json").read_text()


def test_answers_that_came_after_the_judge_have_no_verdict_yet(tmem, tmp_path, words):  # noqa: F811
    with local.serve(lambda messages: "WRONG") as url:
        assert tmem(*words, "--judge-url", url).exit_code == 0
    more = [w if w != "none,constant" else "none,constant,full" for w in words]
    assert tmem(*more, "--resume").exit_code == 0
    methods = json.loads((tmp_path / "OUT/results.json").read_text())["methods"]
    assert methods["none"]["judge"] == 0 and methods["none"]["judged"] == 3 and "judge" not in methods["full"]


def test_answers_outlive_a_judge_that_refuses(tmem, tmp_path, words):  # noqa: F811
    words[words.index("none,constant")] = "none,tmem"
    with local.serve(lambda messages: "CORRECT") as url:
        found = tmem(*words, "--judge-url", f"{url}/elsewhere")
        refusal = "does not exist (404: there is only /v1/chat/completions)"
        assert found.exit_code == 2 and refusal in found.output and "--resume" in found.output, found.output
        assert len(rows(tmp_path / "OUT")) == 8 and (tmp_path / "OUT/episodes.md").exists()
        later = tmem(*words, "--judge-url", url, "--resume")
    assert later.exit_code == 0 and "6 judged, 2 left out" in later.output, later.output


def test_evidence_that_no_file_names_is_not_shown(tmem, tmp_path):  # noqa: F811
    words = ["eval", "--task", "clbench", "--data", data("clbench", tmp_path), "--answer-tokens", "4", "--out", "OUT"]
    found = tmem(*words, "--methods", "none,oracle")
    assert found.exit_code == 2 and "methods of clbench: expected" in found.output and not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("asked", [[], ["--judge-url", "local"]])
def test_without_verdicts_clbench_scores_nothing_and_says_so(tmem, tmp_path, asked):  # noqa: F811
    words = ["eval", "--task", "clbench", "--data", data("clbench", tmp_path), "--methods", "none,tmem", "--answer-tokens", "4"]
    found = tmem(*words, "--out", "OUT", *asked)
    assert found.exit_code == 0 and "nothing is scored and there is no chart" in found.output, found.output
    assert ("no answer got a verdict" if asked else "see --judge-url") in found.output
    assert ("0 judged" in found.output) == bool(asked)
    results = json.loads((tmp_path / "OUT/results.json").read_text())
    assert {m["n"] for m in results["methods"].values()} == {2} and results["differences"] == {}
    assert len(rows(tmp_path / "OUT")) == len(rows(tmp_path / "OUT", "readings")) == 4
    assert (tmp_path / "OUT/episodes.md").exists() and not (tmp_path / "OUT/chart.png").exists()
    with local.serve(lambda messages: '{"rubrics": [1, 1], "overall": 1}') as url:
        later = tmem(*words, "--out", "OUT", "--resume", "--judge-url", url)
    assert later.exit_code == 0 and (tmp_path / "OUT/chart.png").exists(), later.output
    methods = json.loads((tmp_path / "OUT/results.json").read_text())["methods"]
    assert all(m["judge"] == m["rubrics"] == 1 and m["judged"] == 2 for m in methods.values())


def test_what_stopped_the_judge_is_named_and_not_that_it_stopped(tmem, tmp_path, words, monkeypatch):  # noqa: F811
    monkeypatch.setattr(judge, "GIVE_UP", 2)
    found = tmem(*words, "--judge-url", "local")
    assert found.exit_code == 0 and "4 unreachable, 2 malformed" in found.output, found.output
    assert "without a verdict, mostly: the reply" in found.output, found.output


def test_replies_that_say_nothing_are_counted_and_not_scored(tmem, tmp_path, words):  # noqa: F811
    found = tmem(*words, "--judge-url", "local")  # a tiny random model never says CORRECT or WRONG
    assert found.exit_code == 0 and "6 malformed" in found.output and "a measure of nothing" in found.output, found.output
    assert "is not in the form asked for" in " ".join(found.output.split()) and "verdicts.jsonl" in found.output
    results = json.loads((tmp_path / "OUT/results.json").read_text())
    assert results["judge"]["malformed"] == 6 and results["methods"]["none"]["judged"] == 0
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
