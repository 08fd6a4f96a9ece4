"""Trackers: every line of metrics.jsonl once, across stops and kills, and a training that does not depend on them."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tiny_cli import rows

from tmem.rl import track
from tmem.rl.track import FILE, TRACKERS, numbers, texts, tracked

STEP = {"phase": "rl", "step": 3, "reward": 0.5, "kl": float("nan"), "split_half": None, "seconds": 2.0, "trained": 9.0,
        "seconds_write": 1.0}  # fmt: skip
HELD_OUT = {"phase": "eval_rl", "step": 1, "mode": "sampled", "f1": 0.25}


class Fake:
    """The three libraries at once: what they were begun with, and what came to which step."""

    def __init__(self):
        self.begun, self.got, self.ended, self.broken = [], [], 0, False

    def begin(self, **options):
        self.begun.append(options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values, step, **_):
        if self.broken:
            raise ConnectionError("no\nnetwork")
        self.got.append((step, values))

    def finish(self):
        self.ended += 1

    @property
    def steps(self):
        return [step for step, _ in self.got]


class Writer:
    """What torch.utils.tensorboard.SummaryWriter is asked for, of which a reader shows no step from `purge_step` on."""

    fake = None

    def __init__(self, folder, purge_step):
        self.fake.begun.append({"dir": folder})
        self.fake.got = [(step, values) for step, values in self.fake.got if step < purge_step]

    def add_scalar(self, name, value, step):
        self.add_text(name, value, step)

    def add_text(self, name, value, step):
        if step not in self.fake.steps:
            self.fake.log({}, step)
        self.fake.got[-1][1][name] = value

    def flush(self):
        pass

    def close(self):
        self.fake.finish()


@pytest.fixture
def fake(monkeypatch):
    """In the place of all three libraries, whichever is installed."""
    found = Writer.fake = Fake()

    def put(name, **members):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    shared = {"init": found.begin, "log": found.log, "finish": found.finish}
    put("wandb", Settings=lambda **options: options, Html=lambda text: text, **shared)
    put("trackio", Markdown=lambda text: text, **shared)
    put("torch.utils.tensorboard", SummaryWriter=Writer)
    return found


def followed(name, out, lines, said=None):
    with tracked(name, out, {"preset": "tiny"}, (said if said is not None else []).append) as take:
        for line in lines:
            take({**STEP, "step": line})


def test_the_fields_of_a_line_are_its_finite_numbers():
    assert numbers(STEP) == {"rl/step": 3, "rl/reward": 0.5}
    assert numbers(HELD_OUT) == {"eval_rl/sampled/step": 1, "eval_rl/sampled/f1": 0.25}


def test_an_evaluation_has_its_first_episode_as_text(tmp_path):
    assert texts(HELD_OUT, tmp_path) == texts(STEP, tmp_path) == {}
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes/rl-sampled.md").write_text("# one\n\n## write 1\n<b>\n\n# two\n")
    assert texts(HELD_OUT, tmp_path) == {"eval_rl/sampled/episode": "# one\n\n## write 1\n<b>"}
    assert texts(STEP, tmp_path) == {}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_goes_on_in_the_same_tracked_run_and_sends_no_line_twice(tmp_path, fake, name):
    followed(name, tmp_path, range(6))
    followed(name, tmp_path, range(8))  # lines 4 and 5 were of no checkpoint and are taken again
    assert fake.steps == list(range(8)) and fake.ended == 2
    assert [values["rl/step"] for _, values in fake.got] == fake.steps
    begun = [{k: v for k, v in options.items() if k in ("id", "name", "dir", "project")} for options in fake.begun]
    assert begun[0] == begun[1] and all(options.get("resume", "allow") == "allow" for options in fake.begun)
    held = json.loads((tmp_path / FILE).read_text())
    assert held[name]["lines"] == 8
    followed("trackio" if name == "wandb" else "wandb", tmp_path, range(8))  # another one is told everything
    assert len(fake.steps) == 16 and json.loads((tmp_path / FILE).read_text())[name] == held[name]


def test_steps_that_are_taken_again_by_the_clock_are_sent_again_and_what_follows_them_too(tmp_path, fake):
    """A control that ends by its seconds may have fewer steps after a kill: the lines behind the checkpoint are other ones."""
    followed("tensorboard", tmp_path, range(6))
    with tracked("tensorboard", tmp_path, {}, [].append, lines=4) as take:
        for line in (0, 1, 2, 3, 40, 50):
            take({**STEP, "step": line})
    assert fake.steps == list(range(6)) and [values["rl/step"] for _, values in fake.got][-2:] == [40, 50]


def test_a_step_that_was_sent_and_not_written_down_is_purged_by_tensorboard(tmp_path, fake, monkeypatch):
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(track, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        followed("tensorboard", tmp_path, range(1))
    followed("tensorboard", tmp_path, range(3))
    assert fake.steps == [0, 1, 2]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_fails_is_told_of_once_and_a_resume_sends_what_is_missing(tmp_path, fake, name):
    said = []
    followed(name, tmp_path, range(2))
    fake.broken = True
    followed(name, tmp_path, range(5), said)
    assert said == [f"--track {name} failed (no network); training goes on without it, and --resume sends what is missing"]
    fake.broken = False
    followed(name, tmp_path, range(6))
    assert fake.steps == list(range(6))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch, name, tmem):
    monkeypatch.setitem(sys.modules, TRACKERS[name][0], None)
    found = tmem("train", "--out", "OUT", "--track", name)
    assert found.exit_code == 2 and not (tmp_path / "OUT").exists()
    said = f"train: --track {name} needs {name}, which is not installed: pip install 'tmem[{name}]'."
    assert said in " ".join(found.output.split())


def test_a_tracker_that_cannot_begin_is_one_sentence(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: (_ for _ in ()).throw(RuntimeError("not\nlogged in")))
    with pytest.raises(ValueError, match=r"--track wandb cannot begin \(not logged in\); without a network set WANDB_MODE=off"):
        followed("wandb", tmp_path, [])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracked_training_writes_what_an_untracked_one_does(tmp_path, fake, tmem, name):
    words = ("train", "--rl-steps", "1", "--out")
    plain, found = tmem(*words, "OUT2"), tmem(*words, "OUT", "--track", name)
    assert plain.exit_code == found.exit_code == 0, found.output
    file = tmp_path / "OUT/metrics.jsonl"
    assert file.read_bytes() == (tmp_path / "OUT2/metrics.jsonl").read_bytes()
    wanted = rows(tmp_path / "OUT", "metrics")
    assert fake.steps == list(range(len(wanted)))
    for (_, values), row in zip(fake.got, wanted):
        where = f"{row['phase']}/{row['mode']}" if "mode" in row else row["phase"]
        fields = {f"{where}/{k}" for k, v in row.items() if k not in ("phase", "mode") and v is not None}
        assert values.keys() == fields | ({f"{where}/episode"} if "mode" in row else set())
        assert all(values[f"{where}/{k}"] == v for k, v in row.items() if f"{where}/{k}" in fields)
    assert tmem(*words, "OUT", "--track", name, "--resume").exit_code == 0
    assert fake.steps == list(range(len(wanted)))


def test_tensorboard_shows_each_step_once(tmp_path):
    """The library itself, where it is installed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    followed("tensorboard", tmp_path, range(4))
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace('"lines": 4', '"lines": 3'))  # killed between the two
    followed("tensorboard", tmp_path, range(6))
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("rl/step")] == [(i, float(i)) for i in range(6)]
