"""The trainer: its phases, and that nothing is lost: kills, full disks, damaged files, NaN, memory that runs out, ranks."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import lines, start, weights

from tmem import models
from tmem.rl import checkpoint, grpo, trainer
from tmem.rl.policy import Policy
from tmem.testing import assert_close

SCRIPT = str(Path(__file__).with_name("tiny_run.py"))


@pytest.fixture(autouse=True)
def real_models_again(monkeypatch):
    """tiny_run replaces them."""
    for name in ("load", "save", "default_dtype"):
        monkeypatch.setattr(models, name, getattr(models, name))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder, summary) of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    before = models.load, models.save, models.default_dtype
    summary = start(out).run()
    models.load, models.save, models.default_dtype = before
    return out, summary


def assert_same_run(out, undisturbed):
    """The same metrics and the same final weights, bit for bit."""
    whole, _ = undisturbed
    assert (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert (out / "segments.jsonl").read_text() == (whole / "segments.jsonl").read_text()
    assert len(lines(out, "timings")) == len(lines(out))
    for phase in ("warm", "rl", "sft"):
        mine, theirs = weights(out, phase), weights(whole, phase)
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


def test_a_run_does_its_phases_and_says_what_happened(undisturbed):
    out, summary = undisturbed
    assert all(summary[f"reward_{p}"] is not None for p in trainer.PHASES)
    rows = lines(out)
    steps = [r for r in rows if r["phase"] == "rl"]
    assert [r["step"] for r in steps] == [0, 1, 2] and [r["step"] for r in rows if r["phase"] == "sft"] == [0]
    documented = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    assert not [k for k in steps[0] if f"`{k}`" not in documented and k not in ("f1", "em", "intrusion", "shout")]
    assert all(0 < r["dlogp_worst_segment"] < 1e-4 and r["grad_norm"] > 0 and r["entropy"] > 0 for r in steps)
    assert steps[0]["kl"] < 1e-6 < steps[2]["kl"]  # at first the policy is the reference
    segments = lines(out, "segments")[0]["segments"]
    assert {s[0] for s in segments} == {"write", "answer"} and sum(s[2] for s in segments) == steps[0]["live_tokens"]
    assert {"seconds_write", "seconds_learn", "seconds_answer", "seconds_update"} <= lines(out, "timings")[-6].keys()
    moved = weights(out, "rl")["lm_head.weight"] - weights(out, "warm")["lm_head.weight"]
    assert moved.abs().max() > 1e-4
    assert (out / "episodes/rl-greedy.md").is_file() and json.loads((out / "episodes/rl-greedy.json").read_text())[0]["writes"]
    assert [len(list(f.iterdir())) for f in out.glob("checkpoints/*")] == [1]  # only what resuming a finished run needs
    assert start(out, resume=True).run() == summary


@pytest.mark.parametrize("where, count", [("checkpoint", 9), ("rollout", 2), ("update", 4)])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, undisturbed, where, count):
    """While a checkpoint is written, inside a rollout, and before θ0's step."""
    out = tmp_path / "undisturbed"
    started = subprocess.run([sys.executable, SCRIPT, str(out), "--kill", where, str(count)], capture_output=True, text=True)
    assert started.returncode == -signal.SIGKILL, started.stderr
    assert lines(out) != lines(undisturbed[0])
    start(out, resume=True).run()
    assert_same_run(out, undisturbed)


def test_ctrl_c_stops_between_steps_and_resumes(tmp_path, undisturbed):
    out, calls = tmp_path / "undisturbed", []

    def stop():
        calls.append(1)
        return len(calls) == 5  # inside the RL phase

    with pytest.raises(trainer.Interrupted):
        start(out).run(stop=stop)
    with pytest.raises(FileExistsError, match="--resume"):
        start(out)
    with pytest.raises(ValueError, match=r"other settings \(TrainConfig.seed\)"):
        start(out, resume=True, seed=9)
    again = start(out, resume=True, save_every=1e9)  # how often to save may change
    assert again.state["phase"] == "rl" and again.state["step"] == 2
    again.run()
    assert_same_run(out, undisturbed)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        start(tmp_path / "nothing", resume=True)


def test_recomputing_delta_from_the_log_trains_the_same(tmp_path, undisturbed):
    out = tmp_path / "undisturbed"
    start(out, replay="log").run()
    mine, theirs = weights(out), weights(undisturbed[0])
    assert max(float((mine[k] - theirs[k]).norm() / theirs[k].norm()) for k in theirs) < 1e-4


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path, undisturbed):
    out, calls, said = tmp_path / "undisturbed", [], []
    with pytest.raises(trainer.Interrupted):
        start(out).run(stop=lambda: calls.append(1) or len(calls) == 5)
    *_, last = sorted(out.glob("checkpoints/step-*"))
    file = next(last.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    shutil.copytree(out, tmp_path / "copy")
    start(out, resume=True).run(trainer.Progress(warn=said.append))
    assert "step-" in said[0] and "cannot be read" in said[0] and "the one before" in said[0]
    assert_same_run(out, undisturbed)
    for folder in (tmp_path / "copy").glob("checkpoints/step-*"):
        (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="no checkpoint of .* can be read"):
        trainer.Trainer(str(tmp_path / "undisturbed.toml"), tmp_path / "copy", resume=True)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch, undisturbed):
    out = tmp_path / "undisturbed"
    real = checkpoint.dcp.save

    def full(*args, **options):
        if sorted(out.glob("checkpoints/step-*"))[-1:] == [out / "checkpoints/step-000005"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args, **options)

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(OSError, match="no space left on device; this checkpoint was not written, the one before it stays"):
        start(out).run()
    assert not list(out.glob("checkpoints/.*"))
    monkeypatch.setattr(checkpoint.dcp, "save", real)
    start(out, resume=True).run()
    assert_same_run(out, undisturbed)


def test_steps_without_a_finite_gradient_are_skipped_counted_and_end_the_run_if_they_do_not_stop(tmp_path, monkeypatch):
    said, real = [], Policy.step

    def broken(policy, *args):
        policy.params[0].grad = torch.full_like(policy.params[0], float("nan"))
        return real(policy, *args)

    monkeypatch.setattr(Policy, "step", broken)
    with pytest.raises(ArithmeticError, match="5 steps in a row of phase rl had no finite gradient"):
        start(tmp_path / "nan", rl_steps=9).run(trainer.Progress(warn=said.append))
    assert len(said) == 5 and "was skipped" in said[0]
    rows = lines(tmp_path / "nan")
    assert all(r["grad_norm"] is None for r in rows if "grad_norm" in r)
    assert sorted((tmp_path / "nan").glob("checkpoints/step-*"))


def test_a_rollout_without_memory_is_tried_in_halves_then_left_out(tmp_path, monkeypatch):
    real, sizes = grpo.sample, []

    def sample(agent, episodes, *args, **options):
        sizes.append(len(episodes))
        if len(episodes) > 1 or episodes[0].id.endswith("/rl/1/0"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(agent, episodes, *args, **options)

    monkeypatch.setattr(grpo, "sample", sample)
    start(tmp_path / "oom").run()
    rows = [r for r in lines(tmp_path / "oom") if r["phase"] == "rl"]
    assert [r["skipped_groups"] for r in rows] == [0, 1, 0] and sizes == [2, 1, 1] * 3
    monkeypatch.setattr(grpo, "sample", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("another fault")))
    with pytest.raises(RuntimeError, match="another fault"):
        start(tmp_path / "fault").run()


def test_groups_without_variance_are_drawn_again_and_counted(tmp_path, monkeypatch):
    drawn = []

    def sample(agent, episodes, *args, **options):
        drawn.append([e.id for e in episodes])
        return grpo_sample(agent, episodes, *args, **options)

    grpo_sample, real = grpo.sample, grpo.reward
    monkeypatch.setattr(grpo, "sample", sample)
    monkeypatch.setattr(grpo, "reward", lambda found, config: real(found, config) if len(drawn) % 2 == 0 else 0.5)
    start(tmp_path / "dead", rl_resample=1).run()
    rows = [r for r in lines(tmp_path / "dead") if r["phase"] == "rl"]
    assert [r["resampled"] for r in rows] == [2, 2, 2] and drawn[1][0].endswith("/rl/0/0/again1")
    monkeypatch.setattr(grpo, "reward", lambda found, config: 0.5)
    start(tmp_path / "all", rl_resample=1).run()
    rows = [r for r in lines(tmp_path / "all") if r["phase"] == "rl"]
    assert all(r["dead_groups"] == 2 and r["live_tokens"] == 0 and r["grad_norm"] == 0.0 for r in rows)


@pytest.mark.parametrize("answers", ["greedy", "scored"])
def test_with_answers_that_are_not_sampled_only_writing_is_trained(tmp_path, answers):
    start(tmp_path / answers, rl_answers=answers, rl_steps=1).run()
    (row,) = (r for r in lines(tmp_path / answers) if r["phase"] == "rl")
    segments = lines(tmp_path / answers, "segments")[0]["segments"]
    assert {s[0] for s in segments} <= {"write"} and row["dlogp_worst_segment"] < 1e-4
    assert ("f1" in row, "right" in row) == ((True, False) if answers == "greedy" else (False, True))


def test_a_drift_between_sampler_and_trainer_is_warned_of(tmp_path):
    said = []
    start(tmp_path / "drift", drift=1e-9).run(trainer.Progress(warn=said.append))
    assert len(said) == 3 and "off the sampler's" in said[0]


def test_a_refreshed_subspace_survives_a_resume(tmp_path):
    whole, part, calls = tmp_path / "whole" / "run", tmp_path / "part" / "run", []
    start(whole, refresh_a=1).run()
    with pytest.raises(trainer.Interrupted):
        start(part, refresh_a=1).run(stop=lambda: calls.append(1) or len(calls) == 5)
    start(part, refresh_a=1, resume=True).run()
    assert (whole / "metrics.jsonl").read_text() == (part / "metrics.jsonl").read_text()


# several processes -------------------------------------------------------------------------------------------------------


def torchrun(out, *options, ranks=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", SCRIPT, str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def assert_close_run(out, undisturbed):
    """The same losses and rewards as one process with the same global batch, to 1e-5, and the same weights."""
    for mine, theirs in zip(lines(out), lines(undisturbed[0]), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if key not in ("dlogp", "dlogp_worst_segment", "dlogp_worst_token", "kl"):  # these are rounding itself
                assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-5), (key, mine["phase"], mine["step"])
    for phase in ("rl", "sft"):
        mine, theirs = weights(out, phase), weights(undisturbed[0], phase)
        for name in theirs:
            assert_close(name, mine[name], theirs[name], 1e-4)


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_train_as_one(tmp_path, undisturbed, layout):
    out = tmp_path / "undisturbed"
    done = torchrun(out, "--extra", f'layout = "{layout}"')
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close_run(out, undisturbed)


def test_a_run_resumes_on_another_number_of_processes_and_in_another_layout(tmp_path, undisturbed):
    out, calls = tmp_path / "undisturbed", []
    with pytest.raises(trainer.Interrupted):
        start(out).run(stop=lambda: calls.append(1) or len(calls) == 4)  # alone, until inside RL
    done = torchrun(out, "--resume", "--extra", 'layout = "fsdp"')
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close_run(out, undisturbed)


def test_tasks_of_ones_own_train(tmp_path):
    """The one of examples/, and the one that docs/training.md shows."""
    root = Path(__file__).parents[1]
    shown = (root / "docs" / "training.md").read_text().split("```python\n# mine.py\n")[1].split("```")[0]
    (tmp_path / "mine.py").write_text(shown)
    for name, file in (("example", root / "examples" / "own_task.py"), ("shown", tmp_path / "mine.py")):
        run = start(tmp_path / name, task=f"{file}:Colours", reward="f1", rl_steps=1, eval_episodes=2)
        assert run.run()["reward_rl"] is not None


def test_memory_that_was_kept_is_given_back():
    script = """
import os, torch
from pathlib import Path
from tmem.machine import give_memory_back, keep_memory
held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
keep_memory()
some = [torch.ones(1 << 22) for _ in range(16)]  # 16 MB each
full = held()
del some[:-1]  # the last one holds what lies below it
kept = held()
assert full - kept < 50, (full, kept)
assert not give_memory_back(share=0.99) and held() == kept
assert give_memory_back(share=0.0) and kept - held() > 200, (kept, held())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
