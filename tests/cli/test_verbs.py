"""`tmem train` and `tmem eval` as a user types them, on a tiny model: files, their form, and one-sentence errors."""

import json
import sys

import pytest
from tiny_cli import rows
from tiny_eval import asking
from tiny_search import QUESTIONS, files

from tmem.cli.train import _said
from tmem.evaluation import reading
from tmem.methods.methods import READ
from tmem.models import embed


def settled(path):
    """What must be the same however the work was cut up: all but seconds, in no order."""
    found = rows(path) + rows(path, "readings")
    return sorted(json.dumps({k: v for k, v in r.items() if k != "seconds"}) for r in found)


OFFLINE = [m for m in READ if m != "dense"]  # dense needs the extra, see test_retrieve.py


def test_eval_compares_all_methods_and_leaves_its_files(tmem, tmp_path):
    words = ["eval", "--limit", "2", "--split", "dev", "--probe", "--methods", ",".join(OFFLINE), "--out", "OUT"]
    found = tmem(*words)
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "OUT/results.json").read_text())
    assert results["task"] == "stream" and set(results["methods"]) == set(OFFLINE)
    for name, m in results["methods"].items():
        assert 0 <= m["f1"] <= 1 and 0 <= m["em"] <= 1 and m["n"] == 8 and m["f1_ci"][0] <= m["f1"] <= m["f1_ci"][1]
        assert name in found.output
    answers, readings = rows(tmp_path / "OUT"), rows(tmp_path / "OUT", "readings")
    assert len({(q["method"], q["id"]) for q in answers}) == len(answers) == 8 * len(OFFLINE)
    assert len({(r["method"], r["episode"]) for r in readings}) == len(readings) == 2 * len(OFFLINE)
    assert (tmp_path / "OUT/chart.png").read_bytes()[:4] == b"\x89PNG"
    assert "## write 1" in (tmp_path / "OUT/episodes.md").read_text()
    words[-1] = "OUT2"
    assert tmem(*words).exit_code == 0
    assert settled(tmp_path / "OUT") == settled(tmp_path / "OUT2")


def test_each_method_keeps_and_costs_what_it_says(tmem, tmp_path):
    assert tmem("eval", "--limit", "2", "--methods", ",".join(OFFLINE), "--out", "OUT").exit_code == 0
    methods = json.loads((tmp_path / "OUT/results.json").read_text())["methods"]
    for name in ("none", "constant"):
        assert methods[name]["state_bytes"] == 0 and methods[name]["learned_tokens"] == 0
    assert methods["constant"]["read_tokens"] == 0 and methods["none"]["read_tokens"] > 0
    assert methods["full"]["prompt_tokens"] > methods["retrieval"]["prompt_tokens"] > methods["none"]["prompt_tokens"]
    assert methods["tmem"]["prompt_tokens"] == methods["gold"]["prompt_tokens"] < methods["tmem+retrieval"]["prompt_tokens"]
    assert methods["tmem"]["prompt_tokens"] < methods["none"]["prompt_tokens"], "worked examples"
    assert methods["tmem"]["state_bytes"] > 0 and methods["tmem"]["peak_tokens"] > methods["tmem"]["prompt_tokens"]
    for name in ("summary", "notes"):  # the text is read once, not once per question
        assert methods[name]["read_tokens"] > methods["tmem"]["prompt_tokens"] * methods["tmem"]["n"]
    unknown = [r for r in rows(tmp_path / "OUT") if r["method"] == "constant"]
    assert all(r["em"] == (r["kind"] == "unknown") for r in unknown) and {r["prediction"] for r in unknown} == {"unknown"}


def test_differences_are_paired_and_have_the_sign_they_say(tmem, tmp_path):
    assert tmem("eval", "--limit", "3", "--methods", "none,constant", "--out", "OUT").exit_code == 0
    results, answers = json.loads((tmp_path / "OUT/results.json").read_text()), rows(tmp_path / "OUT")
    mean = {m: sum(r["f1"] for r in answers if r["method"] == m) / 12 for m in ("none", "constant")}
    cell = results["differences"]["f1"]["constant - none"]
    assert cell["mean"] == pytest.approx(mean["constant"] - mean["none"]) and cell["low"] <= cell["mean"] <= cell["high"]


def test_seeds_are_other_episodes_and_known_questions_are_episodes_of_their_own(tmem, tmp_path):
    assert tmem("eval", "--limit", "1", "--seeds", "2", "--methods", "tmem", "--out", "OUT").exit_code == 0
    answers = rows(tmp_path / "OUT")
    assert [r["seed"] for r in answers] == [0] * 4 + [1] * 4 and len({r["episode"] for r in answers}) == 2
    found = tmem("eval", "--limit", "1", "--known", "--methods", "tmem,summary", "--slots", "3", "--out", "OUT2")
    assert found.exit_code == 0 and "questions known" in found.output, found.output
    readings = rows(tmp_path / "OUT2", "readings")
    assert len({r["read"] for r in readings}) == 4 and {r["episode"] for r in readings} == {answers[0]["episode"]}


def test_dense_says_what_to_install(tmem, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "find_spec", lambda name: None)
    found = tmem("eval", "--limit", "1", "--methods", "dense", "--out", "OUT")
    assert found.exit_code == 2 and "tmem[dense]" in found.output and not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("batches", [0, 1, 3, 4])
def test_a_killed_eval_goes_on_without_asking_again_or_losing_an_answer(tmem, tmp_path, monkeypatch, batches):
    words = ["eval", "--limit", "2", "--split", "dev", "--methods", "none,retrieval,tmem", "--out", "OUT"]
    monkeypatch.setattr(reading, "BATCH", 3)
    assert tmem(*words).exit_code == 0
    words[-1] = "OUT2"
    asked = []

    def counting(ask, agent, part, settings):
        if len(asked) == batches and not resumed:
            raise KeyboardInterrupt
        asked.append([q.id for _, q in part])
        return ask(agent, part, settings)

    resumed = False
    with asking(counting):
        assert tmem(*words).exit_code == 130
        with (tmp_path / "OUT2/answers.jsonl").open("a") as file:
            file.write('{"seed": 0, "method": "no')  # what a kill in the middle of a write leaves
        resumed = True
        found = tmem(*words, "--resume")
    assert found.exit_code == 0, found.output
    assert settled(tmp_path / "OUT") == settled(tmp_path / "OUT2")
    assert sum(map(len, asked)) == 3 * 8  # every question of every method once
    over = tmem(*words)
    assert over.exit_code == 2 and "already holds results" in over.output
    other = tmem(*words, "--resume", "--seed", "1")
    assert other.exit_code == 2 and "other settings (seed" in other.output


def test_eval_reads_locomo_and_limits_questions_by_seed(tmem, tmp_path):
    turns = [{"speaker": s, "dia_id": f"D1:{i}", "text": f"line {i}"} for i, s in enumerate(["Ada", "Ben"] * 3)]
    qa = [{"question": f"q{i}?", "answer": f"a{i}", "evidence": [], "category": 4} for i in range(5)]
    conversation = {"speaker_a": "Ada", "speaker_b": "Ben", "session_1": turns, "session_1_date_time": "1 May 2023"}
    data = tmp_path / "locomo.json"
    data.write_text(json.dumps([{"sample_id": "c1", "qa": qa, "conversation": conversation}]))
    words = ["eval", "--task", "locomo", "--data", str(data), "--methods", "none,tmem", "--limit", "3", "--out", "OUT"]
    assert tmem(*words).exit_code == 0
    results = json.loads((tmp_path / "OUT/results.json").read_text())
    assert results["methods"]["tmem"]["n"] == 3 and "official_f1" in results["methods"]["tmem"]
    asked = {m: [q["id"] for q in rows(tmp_path / "OUT") if q["method"] == m] for m in ("none", "tmem")}
    assert asked["none"] == asked["tmem"]


def test_search_is_resumed_with_the_sets_that_are_left(tmem, tmp_path, monkeypatch):
    from tmem.evaluation import searching

    said = {"answer": "it", "supporting_facts": [["Rome", 0]], "context": [["Rome", ["Rome lies on seven hills."]]]}
    hops = [{"_id": f"h{i}", "question": f"who is {i}", **said} for i in range(6)]
    (tmp_path / "hotpot.json").write_text(json.dumps(hops))
    for name, tokens in (("PROMPT", 64), ("TURN", 4), ("EACH", 2)):
        monkeypatch.setattr(searching, name, tokens)
    words = ["eval", "--task", "search", "--data", str(tmp_path / "hotpot.json"), "--turns", "1"]
    words += ["--context", "64", "--slots", "2", "--out", "OUT"]
    found = tmem(*words)
    assert found.exit_code == 0, found.output
    answers = rows(tmp_path / "OUT")
    assert len(answers) == 3 * 4 and {r["method"] for r in answers} == {"none", "full", "mem1", "tmem"}
    results = json.loads((tmp_path / "OUT/results.json").read_text())
    assert set(results["differences"]["em"]) >= {"mem1 - tmem"} and results["config"]["answer_tokens"] == 4 + 2 * 2
    kept = (tmp_path / "OUT/answers.jsonl").read_bytes().split(b"\n")
    (tmp_path / "OUT/answers.jsonl").write_bytes(b"\n".join(kept[:-3]) + b"\n")
    assert tmem(*words, "--resume").exit_code == 0
    assert sorted(r["id"] for r in rows(tmp_path / "OUT")) == sorted(r["id"] for r in answers)
    assert len(rows(tmp_path / "OUT", "readings")) == 12


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["eval", "--methods", "none,telepathy"], "methods of stream: expected some of none"),
        (["eval", "--task", "locomo"], "no data file given"),
        (["eval", "--task", "locomo", "--data", "nowhere.json"], "nowhere.json"),
        (["eval", "--preset", "huge"], "no preset 'huge'"),
        (["train", "--resume", "--out", "OUT"], "holds no run"),
        (["train", "--task", "passages", "--out", "OUT"], "passages: no data; name files of passages with --data FILE"),
        (["train", "--task", "passages", "--data", "nowhere.json:2", "--out", "OUT"], "passages: no file at nowhere.json; get"),
        (["train", "--task", "passages", "--data", "x.json:0", "--out", "OUT"], "the weight is 0; expected a number above 0"),
        (["train", "--data", "x.json", "--out", "OUT"], "task 'stream' reads no files"),
        (["train", "--task", "clbench", "--out", "OUT"], "CL-bench is for evaluation only"),
        (["eval", "--task", "passages"], "passages: no data file given"),
        (["eval", "--split", "all"], "unknown split 'all'"),
        (["eval", "--resume", "--out", "OUT"], "holds no results.json"),
        (["eval", "--task", "search", "--out", "OUT"], "search: no data file given"),
        (["eval", "--task", "search", "--data", "x.json", "--methods", "dense"], "methods of search: expected some of none"),
        (["eval", "--task", "search", "--data", "x.json", "--probe"], "--probe has no meaning for --task search"),
        (["eval", "--task", "clbench", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmem, tmp_path, words, sentence):
    found = tmem(*words)
    assert found.exit_code == 2 and sentence in found.output and len(found.output.splitlines()) <= 4, found.output
    assert not (tmp_path / "OUT").exists()


def test_train_prints_the_four_models_and_leaves_its_files(tmem, tmp_path):
    found = tmem("train", "--out", "OUT", "--rl-steps", "1")
    assert found.exit_code == 0, found.output
    summary = json.loads((tmp_path / "OUT/summary.json").read_text())
    assert summary["n_episodes"] == 3
    for phase in ("base", "warm", "sft", "rl"):
        assert 0 <= summary[f"reward_{phase}"] <= 1
        assert set(summary["evaluations"][phase]) == {"greedy", "sampled"}
    for text in ("base", "warm start", "RL", "control"):
        assert text in found.output
    assert (tmp_path / "OUT/curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "--resume" in tmem("train", "--out", "OUT").output


def test_train_without_a_terminal_says_a_line_for_each_step_and_quiet_says_the_result_alone(tmem, tmp_path):
    said = tmem("train", "--out", "OUT", "--rl-steps", "2").output.splitlines()
    for start in ("warm: 1 of 2, loss", "warm: 2 of 2, loss", "rl: 1 of 2, reward", "rl: 2 of 2, reward", "sft: 1 of 1, loss"):
        assert [line.startswith(start) and " gone" in line for line in said].count(True) == 1, start
    assert any(line.startswith("rl: 1 of 2") and line.endswith(" left") for line in said)
    quiet = tmem("train", "--out", "OUT2", "--rl-steps", "2", "--quiet").output.splitlines()
    assert not any(" gone" in line for line in quiet) and any("held-out episodes" in line for line in quiet)
    assert "rl: 2 of 2, reward" in (tmp_path / "OUT2/log.txt").read_text()


def test_train_learns_to_search(tmem, tmp_path):
    data, corpus = files(tmp_path)
    words = ["train", "--task", "search", "--data", data, "--corpus", corpus, "--objectives", "2", "--warm-steps", "1"]
    found = tmem(*words, "--rl-steps", "1", "--eval-episodes", "1", "--out", "OUT")
    assert found.exit_code == 0, found.output
    summary = json.loads((tmp_path / "OUT/summary.json").read_text())
    assert list(summary["evaluations"]) == ["base", "warm", "rl", "sft"]
    assert {"f1", "em", "counted", "found", "turns", "failed"} <= summary["evaluations"]["rl"]["greedy"].keys()
    asked = json.loads((tmp_path / "OUT/trained.json").read_text())
    assert 0 < len(asked) < len(QUESTIONS) and set(asked) <= {q["_id"] for q in QUESTIONS}
    assert "turn 1" in (tmp_path / "OUT/episodes/rl-greedy.md").read_text()
    (tmp_path / "corpus.json").write_text("{}")
    assert "has no document with text" in tmem(*words, "--out", "OUT2").output


def test_train_without_rl_names_the_models_that_there_are(tmem, tmp_path):
    preset = tmp_path / "tiny.toml"
    preset.write_text(preset.read_text().replace("control_steps = 1", "control_steps = 0"))
    found = tmem("train", "--out", "OUT", "--rl-steps", "0")
    assert found.exit_code == 0, found.output
    said = " ".join(found.output.split())
    unwrapped = "".join(found.output.split())  # a terminal's line may end amid a long path
    assert f"the model warm/ (tmem eval --model {tmp_path}/OUT/warm)".replace(" ", "") in unwrapped
    assert "warm start" in said and not any(word in said for word in ("RL", "control", "rl/", "sft/"))
    assert "models warm/, sft/ and rl/ (tmem eval" not in said and (tmp_path / "OUT/curve.png").exists()
    summary = json.loads((tmp_path / "OUT/summary.json").read_text())
    assert set(summary["evaluations"]) == {"base", "warm"} and "reward_rl" not in summary


def test_a_stopped_training_is_gone_on_with_by_all_its_options():
    given = {
        "preset": "default",
        "out": "my runs",
        "model": None,
        "task": "passages",
        "data": ("a.json", "b.json:2"),
        "rl_steps": 0,
    }
    assert _said(given) == [
        "--preset", "default", "--out", "my runs", "--task", "passages", "--data", "a.json", "--data", "b.json:2",
        "--rl-steps", "0",
    ]  # fmt: skip


def test_train_takes_an_environment_by_its_name_and_says_what_to_install(tmem, tmp_path, monkeypatch):
    from tiny_dialogue import Guesses

    from tmem.tasks import verifiers_api

    monkeypatch.setitem(sys.modules, "verifiers", None)
    words = ["train", "--task", "verifiers", "--environment", "guesses", "--warm-steps", "0", "--rl-steps", "1"]
    words += ["--eval-episodes", "1"]
    found = tmem(*words, "--out", "OUT")
    assert found.exit_code == 2 and "pip install 'tmem[verifiers]'" in found.output and "Traceback" not in found.output
    monkeypatch.setattr(verifiers_api, "load", lambda name: Guesses())
    found = tmem(*words, "--out", "OUT")
    assert found.exit_code == 0, found.output
    assert "decoding score " in " ".join(found.output.split()) and "Intrusions" not in found.output
    summary = json.loads((tmp_path / "OUT/summary.json").read_text())
    assert {"score", "score_found", "turns", "failed"} <= summary["evaluations"]["rl"]["greedy"].keys()
    assert json.loads((tmp_path / "OUT/run.json").read_text())["TrainConfig"]["environment"] == "guesses"
    assert "no environment; name one with --environment" in tmem("train", "--task", "verifiers", "--out", "OUT2").output
