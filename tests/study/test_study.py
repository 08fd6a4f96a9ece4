"""The study: crossing writers and answerers, strict facts, what changes, and the intervals."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from rich.console import Console
from tiny_agent import agent_of

from tmem.agent.learn import learn
from tmem.episode import Pair
from tmem.report import charts
from tmem.report.study_tables import study_tables
from tmem.rl import record
from tmem.study import dissect, study
from tmem.tasks import stream


def episodes(count=3, difficulty=2):
    return [stream.episode(f"study/{i}", "dev", difficulty) for i in range(count)]


def test_after_a_change_answers_are_new_stale_or_mixed():
    for episode in episodes(6):
        for index, (question, old) in enumerate(zip(episode.questions, stream.outdated(episode))):
            assert bool(old) == (question.kind == "change") and set(old) <= set(question.intrusions)
            if not old:
                continue
            said = ["nothing"] * len(episode.questions)
            for text, key in ((question.answers[0], "new"), (old[0], "stale"), (f"{old[0]}, {question.answers[0]}", "mixed")):
                said[index] = text
                changes = sum(map(bool, stream.outdated(episode)))
                found = dissect._scored(episode, said)
                assert {k: found[k] for k in ("new", "stale", "mixed")} == {
                    k: (1 / changes if k == key else 0.0) for k in ("new", "stale", "mixed")
                }


def test_a_life_learns_write_after_write_as_a_rollout_does():
    agent = agent_of(slots=2)
    writes = [[[Pair("who?", "me")], [Pair("where?", "here")]], [[Pair("what?", "it")], []], [[], [Pair("when?", "now")]]]
    seen = {}
    for group in dissect.taught(agent, writes):
        for index, slot in zip(group.indices, group.slots):
            seen[index] = agent.bank.param[slot].clone()
    assert sorted(seen) == [0, 1, 2] and not any(agent.bank.used)
    slot = agent.bank.alloc()
    for write in writes[0]:
        learn(agent.model, agent.bank, [(slot, write)], agent.chat, agent.config.learn)
    assert (agent.bank.param[slot] == seen[0]).all()
    agent.bank.free(slot)
    rounds = [group.writes for group in dissect.taught(agent, writes, each=True)]
    assert rounds == [1, 2, 1, 2]


def test_a_dissection_has_every_condition_and_its_parts_fit_together(monkeypatch):
    agent = agent_of(slots=4)
    made = dissect.dissect(("warm", "rl"), lambda name: agent, episodes(3, 1))
    for answerer in ("warm", "rl"):
        rows = made["crossing"][answerer]
        assert set(rows) == {"warm", "rl", "gold", "rebuilt", "foreign", "off", "prompt"}
        assert all(len(r) == 3 for r in rows.values())
        assert rows["warm"] == rows["rl"]  # it is the same model
    assert made["ability"]["warm"] == made["ability"]["rl"] and made["ability"]["rl"]["nll"] > 0
    json.dumps(made, allow_nan=False)
    summary = study.joined([made, made])
    assert summary["crossing"]["rl"]["gold"]["f1"]["low"] == summary["crossing"]["rl"]["gold"]["f1"]["mean"]


def test_a_memory_rebuilt_from_its_log_learns_all_that_was_written(monkeypatch):
    """In one write, in the order in which it was written."""
    agent, taught = agent_of(slots=3), []
    wrote = [[[Pair("a?", "1"), Pair("b?", "2")], [Pair("A", "3")]] for _ in range(3)]
    monkeypatch.setattr(dissect, "written", lambda rollouts: wrote)
    monkeypatch.setattr(dissect, "_answered", lambda agent, episodes, writes, shift=0: taught.append(writes) or [{}] * 3)
    dissect.dissect(["warm"], lambda name: agent, episodes(3, 1))
    assert [[[Pair("a?", "1"), Pair("b?", "2"), Pair("A", "3")]]] * 3 in taught


def test_a_recall_matrix_shows_what_later_writes_destroy(monkeypatch):
    agent = agent_of(slots=2)
    writes = [[[Pair("q a?", "a")], [Pair("q b?", "b")], [Pair("q a?", "c")]]]
    asked = []

    def answer(questions, slots):
        asked.append(questions)
        return ["b" for _ in questions]

    monkeypatch.setattr(agent, "answer", answer)
    matrix = dissect.recall_matrix(agent, writes)
    assert matrix == [[0.0], [0.0, 1.0], [None, 1.0, 0.0]]  # the first pair is asked anew by the third write: left out


def test_intervals_over_seeds_are_students():
    found = study.over_seeds([0.1, 0.2, 0.3, 0.4, 0.5])
    half = 2.776445 * np.std([0.1, 0.2, 0.3, 0.4, 0.5], ddof=1) / np.sqrt(5)
    assert found["mean"] == pytest.approx(0.3) and found["high"] - 0.3 == pytest.approx(half, rel=1e-5)
    assert study.over_seeds([0.5])["low"] is None


def test_differences_are_paired_by_episode_and_a_gain_shows():
    def run(seed):
        base = np.random.default_rng(seed).random(20)
        phases = {"base": 0.0, "warm": 0.2, "rl": 0.3, "sft": 0.2}
        row = {p: {m: [{"f1": float(b + gain)} for b in base] for m in ("greedy", "sampled")} for p, gain in phases.items()}
        return {"per_episode": row}

    found = study.differences([run(0), run(1), run(2)])["rl - warm"]["greedy"]
    assert found["episodes"]["low"] == pytest.approx(0.1) == found["seeds"]["low"]


def dissection(gain, models=("warm", "rl")):
    """One seed's, in which rl's pairs serve every answerer `gain` better, and the second write destroys half of the first."""
    rows = [{"f1": 0.25}, {"f1": 0.5}]
    better = [{"f1": r["f1"] + gain} for r in rows]
    written = [{k: 0.5 for k in ("facts", "person", "attribute", "precise", "pairs")}]
    return {
        "crossing": {a: {"warm": rows, "rl": better} for a in ("warm", "rl")}, "writing": {"warm": written, "rl": written},
        "ability": {m: {"nll": 4.0, "plain": 0.5} for m in models}, "recall": {"warm": [[1.0]], "rl": [[1.0], [0.5, None]]},
    }  # fmt: skip


def shown(summary):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    for grid in study_tables(summary):
        console.print(grid)
    return console.export_text()


def test_the_gain_of_a_writer_is_paired_and_the_recall_matrix_is_shown():
    joined = study.joined([dissection(0.1, ("base", "warm", "rl")), dissection(0.3)])
    assert joined["writers"]["warm"]["seeds"]["values"] == pytest.approx([0.1, 0.3])
    assert set(joined["ability"]) == {"warm", "rl"}
    text = " ".join(shown({"seeds": 2, "scores": {}, "differences": {}, "dissection": [joined]}).split())
    assert "F1 with rl's pairs less F1 with warm's" in text and "0.20 [" in text
    assert "rl's own pairs recalled" in text and "write 2 0.50" in text and "warm's own pairs" not in text


def test_the_committed_study_is_still_readable():
    folder = Path(__file__).parents[2] / "results/study"
    text = shown(json.loads((folder / "study.json").read_text()))
    assert "rl - warm greedy" in text and "general ability" in text
    made = study.joined([json.loads((folder / f"seed-{n}/dissection-1.json").read_text()) for n in range(5)])
    assert set(made["writers"]) == {"warm", "rl"} and len(made["writers"]["rl"]["seeds"]["values"]) == 5


def test_a_study_of_two_tiny_seeds_runs_prints_and_goes_on_where_it_was(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from tmem.models import loading

    preset = tiny_run.prepare(tmp_path / "run", "probe = 0\n")

    def save(network, tokenizer, path, weights=None):
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.clone() for k, v in network.state_dict().items() if k != "lm_head.weight"}, path / "model.safetensors")

    loading.save_model = save
    alone = study.one(str(preset), tmp_path / "out/seed-1", 1, episodes=3)
    first = study.run_seeds(str(preset), tmp_path / "out", seeds=2, episodes=3)
    assert set(first["differences"]) == {"rl - warm", "rl - sft", "warm - base"} and len(first["dissection"]) == 2
    assert first["scores"]["rl"]["greedy"]["f1"]["seeds"]["values"][1] == alone[0]["evaluations"]["rl"]["greedy"]["f1"]["mean"]
    monkeypatch.setattr(study.Trainer, "run", lambda *_: pytest.fail("it was done before"))
    again = study.run_seeds(str(preset), tmp_path / "out", seeds=2, episodes=3)
    assert again == first
    assert [set(d["ability"]) for d in first["dissection"]] == [{"base", "warm", "rl"}] * 2
    text = shown(again)
    assert "F1 with rl's pairs less F1 with warm's" in text
    assert "rl - warm greedy" in text and "foreign" in text and max(map(len, text.splitlines())) <= 80
    charts.study_chart(tmp_path / "study.png", again, [record.read_run(tmp_path / f"out/seed-{n}") for n in range(2)])
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_without_rl_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"study: .* rl_steps is 0"):
        study.run_seeds(str(tiny_run.prepare(tmp_path / "run")), tmp_path / "out", seeds=1, rl_steps=0)
    assert not (tmp_path / "out/seed-0/run.json").exists()
