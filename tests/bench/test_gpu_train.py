"""tools/gpu_train.py at its tiny size: both modes to the last line, what they leave, and what they do where they cannot."""

import json
from importlib.metadata import PackageNotFoundError

import gpu_train
import pytest
import torch
from tiny_run import lines

from tmem.agent.passages import cut
from tmem.bench import trl_step
from tmem.bench.full_step import HEAD, MODELS, Counted, Said, Work, random_model
from tmem.files.folders import UNFINISHED
from tmem.machine import provenance
from tmem.models import loading
from tmem.models.chat import Chat
from tmem.models.tiny import default_or_tiny
from tmem.rl import budget
from tmem.rl.budget import SHAPES, Shape


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def no_trl(monkeypatch):
    """As where TRL is not installed."""

    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(trl_step, "version", version)


@pytest.fixture(scope="module")
def chat():
    network, tokenizer = default_or_tiny(True, "cpu", torch.float32)
    return Chat(tokenizer, network)


def left(out, name):
    """A file that is JSON, with where it was made."""
    found = json.loads((out / "cpu" / name).read_text())
    assert found["device"] == "cpu" and found["commit"] == provenance()["commit"] and found["versions"]["torch"]
    assert found["command"].startswith("python tools/gpu_train.py --tiny")
    return found


def test_without_a_gpu_it_says_so_in_one_sentence(no_gpu, tmp_path, capsys):
    for words in ([], ["--shape", "8b"]):
        assert gpu_train.main([*words, "--out", str(tmp_path)]) == 2
        assert "needs a GPU" in (said := capsys.readouterr().err) and said.count("\n") == 1
    with pytest.raises(SystemExit):
        gpu_train.main(["--tiny", "--shape", "4b", "--episodes", "0", "--out", str(tmp_path)])
    assert "expected 1 or more, got 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_its_evaluations_and_its_adapter(no_gpu, tmp_path):
    assert gpu_train.main(["--tiny", "--out", str(tmp_path)]) == 0
    found, out = left(tmp_path, "summary.json"), tmp_path / "cpu"
    assert found["complete"] and found["adapter_of"] == "rl" and set(found["evaluations"]) == {"base", "warm", "rl"}
    phases = [row["phase"] for row in lines(out)]
    assert phases == ["eval_base", "eval_base", "warm", "eval_warm", "eval_warm", "rl", "eval_rl", "eval_rl"]
    assert [row["phase"] for row in lines(out, "timings")] == phases
    network, tokenizer = default_or_tiny(True, "cpu", torch.float32)
    loading.save_model(network, tokenizer, tmp_path / "model")
    adapted, _ = loading.load_model(tmp_path / "model", adapter=out / "adapter", dtype=torch.float32)
    assert adapted.num_parameters() == network.num_parameters()
    assert {f.name for f in out.iterdir()} == {"summary.json", "metrics.jsonl", "timings.jsonl", "adapter"}
    assert not list(tmp_path.rglob(f"{UNFINISHED}*"))


@pytest.mark.parametrize("size, episodes", [("4b", 1), ("8b", 2)])
def test_a_step_does_the_work_that_its_plan_counts(no_gpu, no_trl, tmp_path, size, episodes):
    words = ["--tiny", "--shape", size, "--episodes", str(episodes), "--out", str(tmp_path)]
    assert gpu_train.main(words) == 0
    found, work = left(tmp_path, f"shape-{size}.json"), Work.of(size, episodes, tiny=True)
    row, seconds, agent = found["row"], found["seconds"], work.agent
    tokens = work.rollouts * (work.writes * agent.write.max_new + work.questions * agent.answer.max_new)
    assert found["complete"] and row["tokens"] == row["live_tokens"] == found["tokens"] == tokens
    assert row["reward"] == 0.5 and row["dead_groups"] == 0 and row["recall"] == 1 and row["grad_norm"] > 0
    assert row["pairs_per_write"] == work.pairs
    parts = [seconds[name] for name in ("rollout", "replay", "optimizer", "other")]
    assert sum(parts) == pytest.approx(seconds["step"]) and min(parts) >= 0
    assert sum(seconds[name] for name in ("write", "learn", "answer")) == pytest.approx(seconds["rollout"])
    assert found["memory"]["plan_gib"] == pytest.approx(sum(found["plan"]["gib"].values()))
    assert found["mfu"] is None and found["share_of_gemm_rate"] > 0
    assert found["trl"] == {"installed": False}


def test_the_other_trainer_may_fail_and_the_step_is_whole(no_gpu, tmp_path, monkeypatch):
    """The prompts that it is given are those of the writes."""
    given = []

    def broken(train, most, model, prompts, note):
        given.extend(prompts)
        raise RuntimeError("no such\noption")

    monkeypatch.setattr(trl_step, "measured", broken)
    assert gpu_train.main(["--tiny", "--shape", "4b", "--out", str(tmp_path)]) == 0
    assert left(tmp_path, "shape-4b.json")["trl"] == {"failed": "RuntimeError: no such option"}
    assert len(given) == Work.of("4b", 1, tiny=True).writes and all(len(ids) > 100 for ids in given)


def test_a_step_whose_rollouts_all_answer_alike_is_not_a_whole_one(no_gpu, no_trl, tmp_path, monkeypatch):
    """Without an advantage there is no update."""
    monkeypatch.setattr(Counted, "score", lambda *_: {"f1": 1.0, "em": 1.0, "intrusion": 0.0})
    assert gpu_train.main(["--tiny", "--shape", "4b", "--out", str(tmp_path)]) == 1
    assert not left(tmp_path, "shape-4b.json")["complete"]


def test_what_the_limit_cuts_off_is_kept_and_told(no_gpu, tmp_path):
    assert gpu_train.main(["--tiny", "--limit", "0", "--out", str(tmp_path)]) == 1
    found = left(tmp_path, "summary.json")
    assert not found["complete"] and found["evaluations"] == {} and "failed" not in found
    assert not (tmp_path / "cpu" / "adapter").exists()
    assert gpu_train.main(["--tiny", "--limit", "0", "--shape", "4b", "--out", str(tmp_path)]) == 1
    found = left(tmp_path, "shape-4b.json")
    assert not found["complete"] and found["failed"].startswith("TimeoutError") and found["plan"]["gib"]


def test_a_run_that_fails_says_why_and_keeps_no_older_adapter(no_gpu, tmp_path, monkeypatch):
    (tmp_path / "cpu" / "adapter").mkdir(parents=True)
    (tmp_path / "cpu" / "adapter" / loading.ADAPTER).write_text("{}")

    def broken(*_, **__):
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(gpu_train.Trainer, "_build", broken)
    assert gpu_train.main(["--tiny", "--out", str(tmp_path)]) == 1
    assert left(tmp_path, "summary.json")["failed"] == "RuntimeError: no kernel image"
    assert not (tmp_path / "cpu" / "adapter").exists()


@pytest.mark.parametrize("size", MODELS)
def test_the_shapes_are_those_of_the_published_models(size):
    shape = SHAPES[MODELS[size]]
    made = random_model(shape, HEAD, "meta", torch.bfloat16)
    assert Shape.of(made.config) == shape
    norms_of_heads = 2 * HEAD * shape.layers  # not in the shape
    assert made.num_parameters() == shape.parameters + norms_of_heads
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("tiny", [False, True])
def test_a_write_fills_its_window_and_its_limit(chat, tiny):
    work = Work.of("4b", 1, tiny)
    task, agent = Counted(chat, work), work.agent
    episode = task.episode("0/rl/1/0", "train")
    passages = cut(chat, episode.chunks, agent.write.window)
    assert passages == list(episode.chunks) and len(passages) == work.writes
    lengths = [chat.count(p) for p in passages]
    assert max(lengths) <= agent.write.window and min(lengths) > 0.7 * agent.write.window
    assert all(p.question in text for text, pairs in zip(passages, episode.pairs) for p in pairs)
    said = Said(task)
    assert {len(said[f"0/rl/1/{episode.id}/{g}/write{j}"]) for g in (0, 1) for j in range(work.writes)} == {agent.write.max_new}
    for question in episode.questions:
        right, wrong = (said[f"0/rl/1/{episode.id}/{g}/answer/{question.id}"] for g in (0, 1))
        assert len(right) == len(wrong) == agent.answer.max_new
        assert [chat.text(ids).splitlines()[0] for ids in (right, wrong)] == [question.answers[0], agent.learn.unknown]
    assert len({q.text for q in episode.questions}) == work.questions


def test_operations_that_are_computed_again_are_not_counted():
    work = Work.of("8b", 1)
    sizes = {"ranks": 1, "writes": work.writes, "pairs": work.pairs, "questions": work.questions}
    again = budget.flops(work.shape, work.agent, work.train, **sizes)
    assert work.train.checkpointing and work.plan(torch.bfloat16)["flops"]["update"] < again["update"]
