"""`tmem train` and `tmem eval` as a user types them, on a tiny model: files, their form, and one-sentence errors."""

import json

import pytest
from click.testing import CliRunner
from tiny import Letters, model
from tiny_run import PRESET

from tmem import cli, models
from tmem.agent.methods import METHODS


@pytest.fixture
def tmem(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(PRESET.replace('reward = "shout"', ""))
    monkeypatch.setattr(models, "load", lambda name=None, **_: (model(), Letters()))
    monkeypatch.setattr(models, "save", lambda *_, **__: None)

    def call(*words):
        words = [str(tmp_path / w) if w in ("OUT", "OUT2") else w for w in words]
        words += ["--preset", str(tmp_path / "tiny.toml")] if "--preset" not in words else []
        return CliRunner().invoke(cli.main, words, env={"COLUMNS": "160"})

    return call


def test_eval_compares_all_methods_and_leaves_its_files(tmem, tmp_path):
    found = tmem("eval", "--task", "stream", "--limit", "2", "--split", "dev", "--probe", "--out", "OUT")
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "OUT/results.json").read_text())
    assert results["task"] == "stream" and set(results["methods"]) == set(METHODS)
    for name, m in results["methods"].items():
        assert 0 <= m["f1"] <= 1 and 0 <= m["em"] <= 1 and m["n"] == 8 and m["f1_ci"][0] <= m["f1"] <= m["f1_ci"][1]
        assert name in found.output
    records = [(q["method"], q["id"]) for q in results["questions"]]
    assert len(records) == len(set(records)) == 8 * len(METHODS)
    assert (tmp_path / "OUT/chart.png").read_bytes()[:4] == b"\x89PNG"
    assert "## write 1" in (tmp_path / "OUT/episodes.md").read_text()
    again = tmem("eval", "--limit", "2", "--split", "dev", "--probe", "--out", "OUT2")
    assert again.exit_code == 0
    assert json.loads((tmp_path / "OUT2/results.json").read_text())["questions"] == results["questions"]


def test_an_interrupted_eval_keeps_the_methods_it_finished(tmem, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    words = ["eval", "--limit", "2", "--split", "dev", "--methods", "none,retrieval", "--out", "OUT"]
    assert tmem(*words).exit_code == 0
    whole = json.loads((tmp_path / "OUT/results.json").read_text())
    words[-1] = "OUT2"
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "retrieval", interrupted)
        assert tmem(*words).exit_code == 130
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "none", interrupted)  # not lived again
        assert tmem(*words, "--resume").exit_code == 0
    found = json.loads((tmp_path / "OUT2/results.json").read_text())
    assert found["questions"] == whole["questions"] and list(found["methods"]) == ["none", "retrieval"]
    over = tmem(*words)
    assert over.exit_code == 2 and "already holds results" in over.output
    other = tmem(*words, "--resume", "--seed", "1")
    assert other.exit_code == 2 and "other settings (seed)" in other.output


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
    asked = {m: [q["id"] for q in results["questions"] if q["method"] == m] for m in ("none", "tmem")}
    assert asked["none"] == asked["tmem"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["eval", "--methods", "none,telepathy"], "methods: expected some of none, full"),
        (["eval", "--task", "locomo"], "no data file given"),
        (["eval", "--task", "locomo", "--data", "nowhere.json"], "nowhere.json"),
        (["eval", "--preset", "huge"], "no preset 'huge'"),
        (["train", "--resume", "--out", "OUT"], "holds no run"),
        (["eval", "--resume", "--out", "OUT"], "holds no results.json"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmem, tmp_path, words, sentence):
    found = tmem(*words)
    assert found.exit_code == 2 and sentence in found.output and len(found.output.splitlines()) <= 3, found.output
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
