"""The trainer: its phases, and that nothing is lost: kills, full disks, damaged files, NaN, memory that runs out, ranks."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import tiny_run
import torch
from tiny_agent import TRAIN
from tiny_run import SHORT, lines, start, weights

from tmem.agent import agent as agent_module
from tmem.agent.loop import Clock
from tmem.agent.write import Written
from tmem.episode import Pair
from tmem.files import folders
from tmem.files.objects import write_json
from tmem.rl import checkpoint, grpo, halves, trainer
from tmem.rl.policy import Policy
from tmem.rl.world import ALONE, largest
from tmem.testing import assert_close

SCRIPT, PRESET_OF_RUNS = tiny_run.__file__, tiny_run.PRESET


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
    return out, start(out).run()


def run_until(out, phase, step, **options):
    """A run that is stopped after a step, counted from 0, of a phase."""
    at = []
    seen = trainer.Progress(row=lambda row: at.append((row["phase"], row["step"])))
    with pytest.raises(trainer.Interrupted):
        start(out, **options).run(seen, stop=lambda: at[-1:] == [(phase, step)])


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
    assert all(0 < r["dlogp_worst_segment"] < 1e-4 and r["grad_norm"] > 0 and r["entropy"] > 0 for r in steps)
    assert steps[0]["kl"] < 1e-6 < steps[2]["kl"]  # at first the policy is the reference
    segments = lines(out, "segments")[0]["segments"]
    assert {s[0] for s in segments} == {"write", "answer"} and sum(s[2] for s in segments) == steps[0]["live_tokens"]
    assert {"seconds_write", "seconds_learn", "seconds_answer", "seconds_update"} <= lines(out, "timings")[-6].keys()
    moved = weights(out, "rl")["lm_head.weight"] - weights(out, "warm")["lm_head.weight"]
    assert moved.abs().max() > 1e-4
    assert (out / "episodes/rl-greedy.md").is_file() and json.loads((out / "episodes/rl-greedy.json").read_text())[0]["writes"]
    assert [len(list(f.iterdir())) for f in out.glob("checkpoints/*")] == [1]  # only what resuming a finished run needs
    now = json.loads((out / "episodes/rl-now.json").read_text())
    assert now["step"] == 2 and now["episodes"][0]["id"] == json.loads((out / "episodes/rl-greedy.json").read_text())[0]["id"]
    assert start(out, resume=True).run() == summary


@pytest.mark.parametrize("control_steps, done", [(0, ["base", "warm"]), (1, ["base", "warm", "sft"])])
def test_a_phase_without_steps_is_left_out(tmp_path, undisturbed, control_steps, done):
    """The control takes the seconds of RL where its steps are not said: none after no RL."""
    out, wanted = tmp_path / "run", {"rl_steps": 0, "control_steps": control_steps}
    summary = start(out, **wanted).run()
    assert list(summary["evaluations"]) == done and [p for p in trainer.PHASES if f"reward_{p}" in summary] == done
    assert list(dict.fromkeys(r["phase"] for r in lines(out) if r["phase"].startswith("eval_"))) == [f"eval_{p}" for p in done]
    assert {f.name for f in out.iterdir() if (f / "weights.pt").exists()} == {*done[1:]}
    for phase in done[1:]:
        assert all(torch.equal(v, weights(undisturbed[0], phase)[k]) for k, v in weights(out, phase).items())
    assert [len(list(f.iterdir())) for f in out.glob("checkpoints/*")] == [1]
    assert start(out, resume=True, **wanted).run() == summary


@pytest.mark.parametrize("stopped, done", [("rl", ["base", "warm"]), ("sft", ["base", "warm", "rl"])])
def test_a_run_of_before_that_was_stopped_in_a_phase_without_steps_ends_there(tmp_path, monkeypatch, stopped, done):
    """Such phases were evaluated once; what was measured stays, and what was not is not made up for."""
    out, wanted, at = tmp_path / "run", {"rl_steps": 0, "control_steps": 0}, []
    seen = trainer.Progress(phase=lambda *words: at.append(words[0]))
    with monkeypatch.context() as before, pytest.raises(trainer.Interrupted):
        before.setattr(trainer, "phases_of", lambda *_: list(trainer.PHASES))
        start(out, **wanted).run(seen, stop=lambda: at[-1:] == [f"evaluate {stopped}"])
    again = start(out, resume=True, **wanted)
    assert again.state["phase"] == stopped
    summary = again.run()
    assert list(summary["evaluations"]) == done
    assert list(dict.fromkeys(r["phase"] for r in lines(out) if r["phase"].startswith("eval_"))) == [f"eval_{p}" for p in done]
    assert start(out, resume=True, **wanted).run() == summary


def logged_fields(out):
    """The fields of each kind of row; "seconds_*" stands for all parts of a step's time."""
    found = {}
    for row in lines(out):
        kind = row["phase"] if row["phase"] in ("rl", "warm", "sft") else "eval"
        found.setdefault("warm" if kind == "sft" else kind, set()).update(row)
    found["timings"] = {"seconds_*" if k.startswith("seconds_") else k for row in lines(out, "timings") for k in row}
    return found


def documented_fields():
    """The backticked names in the first column of each table under "What is logged", in the order of the kinds of row."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text().split("## What is logged")[1].split("\n## ")[0]
    tables = [part.splitlines() for part in text.split("| field |")[1:]]
    names = [{n for line in t if line.startswith("| `") for n in re.findall(r"`([^`]+)`", line.split("|")[1])} for t in tables]
    return dict(zip(("rl", "warm", "eval", "timings"), names, strict=True))


def test_what_is_logged_is_documented_and_what_is_documented_is_logged(tmp_path, undisturbed, monkeypatch):
    """Two runs: one whose writes have no pairs, and a short one whose writes have some, with scored answers."""
    monkeypatch.setattr(agent_module, "parse", lambda text, **_: Written([Pair("What does Zoe like?", "figs")]))
    start(tmp_path / "scored", rl_answers="scored", **SHORT).run()
    mine = {"shout"}  # a score of this task
    found = {k: v | logged_fields(tmp_path / "scored")[k] for k, v in logged_fields(undisturbed[0]).items()}
    for kind, names in documented_fields().items():
        assert found[kind] - mine == names, kind


@pytest.mark.parametrize("where, count", [("checkpoint", 9), ("rollout", 2), ("update", 4)])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, undisturbed, where, count):
    """While a checkpoint is written, between two writes of a batch of rollouts, and when only the optimizer has θ0's step."""
    out = tmp_path / "undisturbed"
    started = forked.run(SCRIPT, out, "--kill", where, count)
    assert started.returncode == -signal.SIGKILL, started.stderr
    assert lines(out) != lines(undisturbed[0])
    start(out, resume=True).run()
    assert_same_run(out, undisturbed)


def test_ctrl_c_stops_between_steps_and_resumes(tmp_path, undisturbed):
    out = tmp_path / "undisturbed"
    run_until(out, "rl", 1)
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


def test_a_run_whose_settings_have_the_names_of_before_is_gone_on_with(tmp_path):
    """[adapter] was called memory, [write] under_delta memory."""
    out = tmp_path / "run"
    first = start(out)
    recorded = first._settings()
    first._let_go()
    agent = recorded["AgentConfig"]
    agent["memory"] = agent.pop("adapter")
    agent["write"]["memory"] = agent["write"].pop("under_delta")
    out.mkdir(exist_ok=True)
    write_json(out / "run.json", recorded)
    start(out, resume=True)._let_go()
    agent["memory"]["rank"] += 1
    write_json(out / "run.json", recorded)
    with pytest.raises(ValueError, match=r"other settings \(AgentConfig.adapter.rank\)"):
        start(out, resume=True)


@pytest.mark.parametrize("name, other", [
    ("rl_decay", 0.5), ("rl_credit", "action"), ("rl_average", "actions"), ("rl_updates", 2), ("rl_ratio", "sequence"),
    ("rl_clip_high", 0.3), ("rl_truncate", 2.0), ("rl_dead", "dropped"),
])  # fmt: skip
def test_a_run_of_before_there_was_a_setting_of_rl_goes_on_as_it_was(tmp_path, name, other):
    out = tmp_path / "run"
    first = start(out)
    recorded = first._settings()
    first._let_go()
    del recorded["TrainConfig"][name]
    out.mkdir(exist_ok=True)
    write_json(out / "run.json", recorded)
    start(out, resume=True)._let_go()
    with pytest.raises(ValueError, match=rf"other settings \(TrainConfig.{name}\)"):
        start(out, resume=True, **{name: other})


def test_a_run_of_before_presets_said_how_pairs_are_taught_goes_on_bare_and_in_no_other_words(tmp_path, undisturbed):
    """It was taught and asked the questions as they are: a preset that says so goes on to the same bits."""
    out, words = tmp_path / "run", '[learn]\nrenderings = ["{question}", "Say: {question}"]\n'
    run_until(out, "rl", 1)
    recorded = json.loads((out / "run.json").read_text())
    del recorded["AgentConfig"]["learn"]["renderings"], recorded["AgentConfig"]["answer"]["asked"]
    write_json(out / "run.json", recorded)
    held = PRESET_OF_RUNS.replace("[learn]\n", words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "PRESET", held)
        with pytest.raises(ValueError, match=r"other settings \(AgentConfig.learn.renderings\)"):
            start(out, resume=True)
    start(out, resume=True).run()
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("phase, goes_on", [("warm", False), ("rl", True), ("sft", False)])
def test_a_run_of_before_is_not_gone_on_with_amid_its_supervised_steps(tmp_path, phase, goes_on):
    """They may have been taught other pairs than those that follow."""
    out, at = tmp_path / "run", []
    seen = trainer.Progress(row=lambda row: at.append(row["phase"]))
    with pytest.raises(trainer.Interrupted):
        start(out, control_steps=2).run(seen, stop=lambda: at[-1:] == [phase])
    file = out / "run.json"
    recorded = json.loads(file.read_text())
    recorded["AgentConfig"]["memory"] = recorded["AgentConfig"].pop("adapter")
    file.write_text(json.dumps(recorded))
    if goes_on:
        start(out, control_steps=2, resume=True)._let_go()
    else:
        with pytest.raises(ValueError, match="amid supervised steps of an older version"):
            start(out, control_steps=2, resume=True)


def test_a_stop_within_an_evaluation_is_not_waited_for_and_the_run_goes_on_the_same(tmp_path, undisturbed):
    out, at = tmp_path / "run", []
    seen = trainer.Progress(phase=lambda *words: at.append(words))
    with pytest.raises(trainer.Interrupted):
        start(out).run(seen, stop=lambda: "evaluate warm" in [name for name, *_ in at] and "sampled learn" in at[-1])
    assert at[-1] == ("evaluate warm", 1, 2, "sampled learn")
    start(out, resume=True).run()
    assert_same_run(out, undisturbed)


OTHER_LOSS = {
    "rl_average": "actions", "rl_updates": 2, "rl_ratio": "sequence", "rl_clip": 0.01, "rl_clip_high": 0.02, "rl_truncate": 2.0,
    "rl_dead": "dropped", "normalise": False,
}  # fmt: skip


def test_a_run_of_several_updates_a_batch_and_another_loss_resumes_to_the_same_bits(tmp_path):
    for name in ("whole", "stopped"):
        out = tmp_path / name
        if name == "stopped":
            run_until(out, "rl", 0, **OTHER_LOSS)
        start(out, resume=name == "stopped", **OTHER_LOSS).run()
    assert_same_run(tmp_path / "stopped", (tmp_path / "whole", None))
    rows = [r for r in lines(tmp_path / "whole") if r["phase"] == "rl"]
    assert all(0 < r["dlogp_worst_segment"] < 1e-4 for r in rows) and any(r["clipped"] > 0 for r in rows)
    assert any(abs(r["ratio"] - 1) > 1e-4 for r in rows)


def test_recomputing_delta_from_the_log_trains_the_same(tmp_path, undisturbed):
    out = tmp_path / "undisturbed"
    start(out, replay="log").run()
    mine, theirs = weights(out), weights(undisturbed[0])
    assert max(float((mine[k] - theirs[k]).norm() / theirs[k].norm()) for k in theirs) < 1e-4


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path, undisturbed):
    out, said = tmp_path / "undisturbed", []
    run_until(out, "rl", 1)
    *_, last = sorted(out.glob("checkpoints/step-*"))
    file = next(last.glob("*.safetensors"))
    file.write_bytes(flipped(file.read_bytes()))  # the header is as it was
    shutil.copytree(out, tmp_path / "copy")
    summary = start(out, resume=True).run(trainer.Progress(warn=said.append))
    assert len(said) == 1 and re.search(r"step-\d+ cannot be read: .* is not what was written; .* the one before", said[0])
    assert summary["damaged_checkpoints"] == 1 and undisturbed[1]["damaged_checkpoints"] == 0
    assert_same_run(out, undisturbed)
    for folder in (tmp_path / "copy").glob("checkpoints/step-*"):
        (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="no checkpoint of .* can be read"):
        trainer.Trainer(str(tmp_path / "undisturbed.toml"), tmp_path / "copy", resume=True)


def flipped(data):
    """The bytes with one bit of the last one another."""
    return data[:-1] + bytes([data[-1] ^ 1])


def saved(folder, value):
    """A checkpoint whose one tensor is `value`."""
    checkpoint.save_checkpoint(folder, {"value": value}, {"x": torch.full((3,), float(value))}, ALONE)


@pytest.mark.parametrize("end", [SystemExit(129), KeyboardInterrupt()], ids=["hung up", "ctrl-c"])
def test_what_ends_the_process_ends_it_within_a_checkpoint_too(tmp_path, monkeypatch, end):
    """torch puts what a rank raises into an error of its own, which nothing above would know."""

    def write_data(*_):
        raise end

    monkeypatch.setattr(checkpoint.HuggingFaceStorageWriter, "write_data", write_data)
    with pytest.raises(type(end)):
        checkpoint.save_checkpoint(tmp_path / "step-1", {}, {"x": torch.ones(3)}, ALONE)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name, damage", [
    ("shard", flipped), ("shard", lambda data: data[:100]), ("shard", None),
    ("state", lambda data: data.replace(b"value", b"other")), ("state", lambda data: b"{"), ("state", None),
])  # fmt: skip
def test_any_damage_to_a_checkpoint_is_noticed(tmp_path, name, damage):
    folders = [tmp_path / "step-1", tmp_path / "step-2"]
    for value, folder in enumerate(folders):
        saved(folder, value)
    assert checkpoint.newest(folders, ALONE) == (folders[1], [])
    (file,) = folders[1].glob(f"{name}*")
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    found, bad = checkpoint.newest(folders, ALONE)
    assert found == folders[0] and len(bad) == 1 and "step-2 cannot be read" in bad[0]


def test_a_checkpoint_that_is_replaced_is_whole_or_as_it_was_at_every_moment(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    folder, rename = tmp_path / "step-1", os.rename
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)  # where the system cannot
    for survived in range(3):  # dead before a rename: the one that finds the place taken, the one aside, the last
        saved(folder, 1)
        left = [survived]

        def dying(source, target, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", dying)
            with pytest.raises(Killed):
                saved(folder, 2)
        x = {"x": torch.zeros(3)}
        assert checkpoint.numbered(tmp_path) == [folder] and checkpoint.newest([folder], ALONE) == (folder, [])
        checkpoint.load_checkpoint(folder, x, ALONE)
        assert checkpoint.state_of(folder)["value"] == x["x"][0] == 1
    saved(folder, 3)
    assert checkpoint.state_of(folder)["value"] == 3 and [f.name for f in tmp_path.iterdir()] == ["step-1"]
    rename(folder, tmp_path / f".step-1{folders.ASIDE}")
    checkpoint.remove(folder)
    assert not list(tmp_path.iterdir())


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from tiny import model
from tmem.models import loading
from tmem.rl import checkpoint
from tmem.rl.world import ALONE

class Tokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")

folder, network = Path(sys.argv[1]), model(hidden_size=256)
def save(name):
    checkpoint.save_checkpoint(folder / name, {}, {"x": torch.zeros(1 << 16)}, ALONE)
save("step-1")
loading.save_model(network, Tokenizer(), folder / "model")
before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write, name in ((save, "step-2"), (lambda name: loading.save_model(network, Tokenizer(), folder / name), "model")):
    try:
        write(name)
    except OSError as error:
        print(f"{name}|{error.filename}|{error.strerror}|{isinstance(error.__cause__, OSError)}")
assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
"""


def test_what_the_writing_libraries_raise_on_a_full_disk_is_one_sentence(tmp_path):
    """A file size limit, reported as a full disk is: torch and safetensors each wrap it in an error of their own."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, cwd=Path(tiny_run.__file__).parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"step-2|{tmp_path}/step-2|file too large; this was not written|False",
        f"model|{tmp_path}/model|file too large; this was not written|False",
    ]


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch, undisturbed):
    out = tmp_path / "undisturbed"
    real = checkpoint.dcp.save

    def full(*args, **options):
        if sorted(out.glob("checkpoints/step-*"))[-1:] == [out / "checkpoints/step-000005"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args, **options)

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(OSError, match="no space left on device; this was not written"):
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


def test_the_memory_of_a_failed_rollout_is_free_when_it_is_tried_again(monkeypatch):
    class Big:
        pass

    alive, held = [], []

    def sample(agent, episodes, *args, **options):
        held.append(sum(found() is not None for found in alive))
        big = Big()
        big.itself = big  # reference counts do not free it
        alive.append(weakref.ref(big))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(grpo, "sample", sample)
    task = SimpleNamespace(episode=lambda key, split: None)
    groups = grpo._sampled(None, task, TRAIN, 0, dict(enumerate("abcd")), lambda *_: None, Clock())
    assert [g.rollouts for g in groups] == [[]] * 4 and held == [0] * 7


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


@pytest.mark.parametrize("answers", ["greedy", "scored", "logp"])
def test_with_answers_that_are_not_sampled_only_writing_is_trained(tmp_path, answers):
    start(tmp_path / answers, rl_answers=answers, rl_steps=1).run()
    (row,) = (r for r in lines(tmp_path / answers) if r["phase"] == "rl")
    segments = lines(tmp_path / answers, "segments")[0]["segments"]
    assert {s[0] for s in segments} <= {"write"} and row["dlogp_worst_segment"] < 1e-4
    assert ("f1" in row, "right" in row, "logp" in row) == {"greedy": (True, False, False)}.get(answers, (False, True, True))
    assert row["reward"] == {"greedy": row.get("shout"), "scored": row.get("right"), "logp": row.get("logp")}[answers]


def test_a_drift_between_sampler_and_trainer_is_warned_of_and_so_is_one_that_is_no_number(tmp_path, monkeypatch):
    said, real, worst = [], grpo.step, [None, float("nan"), 0.0]

    def step(agent, policy, task, config, number, **options):
        row, segments = real(agent, policy, task, config, number, **options)
        return row | ({} if worst[number] is None else {"dlogp_worst_segment": worst[number]}), segments

    monkeypatch.setattr(grpo, "step", step)
    start(tmp_path / "drift", drift=1e-9).run(trainer.Progress(warn=said.append))
    assert len(said) == 2 and all("off the sampler's" in s for s in said) and "are nan off" in said[1]


def test_a_reward_that_is_noise_is_warned_of_also_across_a_resume(tmp_path, monkeypatch):
    """Judged by the mean of so many steps, here two, wherever the run was stopped between them."""
    said, real, out = [], grpo.step, tmp_path / "noise"

    def step(*args, **options):
        row, segments = real(*args, **options)
        assert row["split_half"] is None or -1.001 < row["split_half"] < 1.001
        return row | {"split_half": -0.5}, segments

    monkeypatch.setattr(grpo, "step", step)
    monkeypatch.setattr(halves, "NOISY", 2)
    run_until(out, "rl", 0)
    again = start(out, resume=True)
    assert again.state["split_half"] == [-0.5]
    again.run(trainer.Progress(warn=said.append))
    assert [s[:7] for s in said if "follows noise" in s] == ["step 1:"]
    assert [r["split_half"] for r in lines(out) if r["phase"] == "rl"] == [-0.5] * 3


def test_the_largest_of_numbers_with_nan_is_nan_wherever_it_stands():
    nan = float("nan")
    for values in ((nan, 1.0, 2.0), (1.0, nan, 2.0), (1.0, 2.0, nan), (nan, nan)):
        assert largest(values) != largest(values)
    assert largest((1.0, 2.0)) == 2.0 and largest(()) == 0.0 and ALONE.most(2, True) == [2, True]


def test_a_refreshed_subspace_survives_a_resume(tmp_path):
    whole, part = tmp_path / "whole" / "run", tmp_path / "part" / "run"
    start(whole, refresh_a=1).run()
    run_until(part, "rl", 1, refresh_a=1)
    start(part, refresh_a=1, resume=True).run()
    assert (whole / "metrics.jsonl").read_text() == (part / "metrics.jsonl").read_text()


# several processes -------------------------------------------------------------------------------------------------------


def together(out, *options):
    """A run of two ranks, to its end."""
    done = forked.ranks(2, SCRIPT, out, *options)
    assert not any(rank.returncode for rank in done), "\n".join(rank.stderr[-3000:] for rank in done)


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
    together(out, "--extra", f'layout = "{layout}"')
    assert_close_run(out, undisturbed)


def test_two_processes_train_as_one_in_bf16_where_one_has_nothing_to_evaluate(tmp_path):
    """A short run: ranks that lived different numbers of episodes must still gather and reduce in step."""
    dtype, tolerance = torch.bfloat16, 1e-2  # 8 bits a number
    start(tmp_path / "one", dtype=dtype, **SHORT).run()
    together(tmp_path / "two", "--short", "--dtype", "bfloat16", "--extra", 'layout = "fsdp"')
    mine, theirs = ([r for r in lines(tmp_path / name) if r["phase"] == "warm"] for name in ("two", "one"))
    for row, other in zip(mine, theirs, strict=True):
        for key in ("loss", "recall_loss", "grad_norm"):  # of the second step too, so after an update
            assert row[key] == pytest.approx(other[key], rel=tolerance, abs=tolerance), (key, row["step"])
    (row,) = (r for r in lines(tmp_path / "two") if r["phase"] == "rl")
    assert 0 < row["dlogp_worst_segment"] < 0.1 and row["grad_norm"] > 0 and weights(tmp_path / "two", "sft")


def test_a_rank_that_is_killed_ends_the_run_and_it_resumes(tmp_path, undisturbed):
    """Started by torchrun itself, as users do."""
    out = tmp_path / "undisturbed"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", SCRIPT, str(out), "--kill", "update", "4"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0 and "SIGKILL" in done.stderr
    assert [r["phase"] for r in lines(out)][-1] == "rl"
    start(out, resume=True).run()
    assert_close_run(out, undisturbed)


def test_a_run_resumes_on_another_number_of_processes_and_in_another_layout(tmp_path, undisturbed):
    out = tmp_path / "undisturbed"
    run_until(out, "rl", 0)  # alone
    together(out, "--resume", "--extra", 'layout = "fsdp"')
    assert_close_run(out, undisturbed)


def test_tasks_of_ones_own_train(tmp_path):
    """The one of examples/, and the one that docs/training.md shows."""
    root = Path(__file__).parents[2]
    shown = (root / "docs" / "training.md").read_text().split("```python\n# mine.py\n")[1].split("```")[0]
    (tmp_path / "mine.py").write_text(shown)
    for name, file in (("example", root / "examples" / "own_task.py"), ("shown", tmp_path / "mine.py")):
        run = start(tmp_path / name, task=f"{file}:Colours", reward="f1", rl_steps=1, eval_episodes=2)
        assert run.run()["reward_rl"] is not None


OWN = """
from tmem.tasks import Task, stream

class Own(Task):
    def episode(self, key, split):
        return stream.episode(key, split, 1)

    def score(self, question, answer):
        return {"f1": float(%r)}
"""


def test_a_task_of_ones_own_that_changed_is_not_gone_on_with(tmp_path):
    mine = tmp_path / "own.py"
    mine.write_text(OWN % 1)
    own = {"task": f"{mine}:Own", "reward": "f1"}
    run_until(tmp_path / "run", "warm", 0, **own)
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    mine.write_text(OWN % 0)
    with pytest.raises(ValueError, match=r"with other settings \(data_blake2b.*another --out"):
        start(tmp_path / "run", resume=True, **own)
    del held["data_blake2b"]  # as a run of before has it
    (tmp_path / "run" / "run.json").write_text(json.dumps(held))
    start(tmp_path / "run", resume=True, **own)


@pytest.mark.parametrize("score, said", [("nan", "score 'f1' of episode '.*' is nan; expected a finite number"),
                                         ("inf", "is inf; expected a finite number")])  # fmt: skip
def test_a_score_that_is_no_number_is_one_sentence(tmp_path, score, said):
    (tmp_path / "own.py").write_text(OWN % score)
    with pytest.raises(ValueError, match=said):
        start(tmp_path / "run", task=f"{tmp_path / 'own.py'}:Own").run()


def test_a_reward_that_is_no_score_of_the_task_is_one_sentence(tmp_path):
    (tmp_path / "own.py").write_text(OWN % 1)
    with pytest.raises(ValueError, match=r"has no score 'f2', which is the reward; its scores: f1\."):
        start(tmp_path / "run", task=f"{tmp_path / 'own.py'}:Own", reward="f2").run()


def test_there_are_slots_for_the_episodes_of_a_supervised_step(tmp_path):
    """More than rollouts take: they were missed by the control, after all of RL."""
    summary = start(tmp_path / "run", warm_episodes=9, warm_plain=1, warm_steps=1, control_steps=1, eval_episodes=1).run()
    assert summary["reward_sft"] is not None


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
