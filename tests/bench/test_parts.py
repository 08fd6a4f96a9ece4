"""A long run in parts: what a limit leaves, how a later call goes on, what is on disk when one is cut off. And `make gpu`
without a GPU."""

import json

import gpu
import pytest
import torch

from tmem.bench.parts import Part, go_on, plan

ABOUT = {"command": "make it", "device": "a card", "commit": "abc", "versions": {"torch": "1"}}


class World:
    """Parts that take as long as they are told, on a clock of their own, and what ran."""

    def __init__(self, **seconds):
        self.time, self.ran, self.seconds = 0.0, [], seconds
        self.broken: dict[str, BaseException] = {}

    def parts(self):
        return [Part(name, f"does {name}", expected, self.running(name, expected)) for name, expected in self.seconds.items()]

    def running(self, name, seconds):
        def run(record):
            self.ran.append(name)
            self.time += seconds
            if name in self.broken:
                raise self.broken[name]
            record[name] = f"found by {name}"

        return run

    def go(self, path, limit=100.0, about=ABOUT, **options):
        self.ran = []
        return go_on(self.parts(), path, about, limit=limit, clock=lambda: self.time, say=lambda _: None, **options)


def test_what_does_not_fit_is_left_for_the_next_call(tmp_path):
    world, path = World(a=40, b=50, c=30, d=10), tmp_path / "new" / "card.json"
    record, left = world.go(path)
    assert world.ran == ["a", "b", "d"] and left == ["c"]  # c would end after the limit, d does not
    assert json.loads(path.read_text()) == record == {
        **ABOUT, "parts": {"a": 40, "b": 50, "d": 10}, "failed": {}, **{n: f"found by {n}" for n in "abd"},
    }  # fmt: skip
    record, left = world.go(path)
    assert world.ran == ["c"] and left == [] and set(record["parts"]) == set("abcd")
    assert world.go(path) == (record, []) and world.ran == []
    assert world.go(path, again=True)[1] == ["c"] and world.ran == ["a", "b", "d"]


def test_the_first_part_of_a_call_always_starts(tmp_path):
    world = World(a=1000, b=1)
    assert world.go(tmp_path / "x.json")[1] == ["b"] and world.ran == ["a"]


def test_a_part_that_fails_is_named_and_tried_again(tmp_path, capsys):
    world, path = World(a=1, b=1, c=1), tmp_path / "x.json"
    world.broken["b"] = ValueError("no")
    record, left = world.go(path)
    assert world.ran == ["a", "b", "c"] and record["failed"] == {"b": "ValueError: no"} and left == []
    assert set(record["parts"]) == {"a", "c"} and "ValueError: no" in capsys.readouterr().err
    world.broken.clear()
    record, _ = world.go(path)
    assert world.ran == ["b"] and record["failed"] == {} and set(record["parts"]) == set("abc")


def test_a_call_that_is_cut_off_leaves_the_parts_before(tmp_path):
    world, path = World(a=1, b=1, c=1), tmp_path / "x.json"
    world.broken["b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.go(path)
    assert json.loads(path.read_text())["parts"] == {"a": 1}
    world.broken.clear()
    world.go(path)
    assert world.ran == ["b", "c"] and [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("change", [{"commit": "def"}, {"versions": {"torch": "2"}}, {"device": "another card"}])
def test_a_record_of_another_commit_version_or_card_is_begun_anew(change, tmp_path):
    world, path = World(a=1), tmp_path / "x.json"
    world.go(path)
    record, _ = world.go(path, about=ABOUT | change)
    assert world.ran == ["a"] and record.items() >= (ABOUT | change).items()


def test_what_a_run_writes_into_the_checkout_does_not_end_it(tmp_path):
    world, path = World(a=1, b=1), tmp_path / "x.json"
    world.go(path, limit=0)
    world.go(path, about=ABOUT | {"commit": "abc-dirty"})
    assert world.ran == ["b"]


def test_an_older_or_a_damaged_record(tmp_path):
    world, path = World(a=1), tmp_path / "x.json"
    path.write_text(json.dumps({**ABOUT, "rows": []}))  # without parts
    assert "rows" not in world.go(path)[0] and world.ran == ["a"]
    path.write_text("{")
    with pytest.raises(ValueError, match="x.json is damaged"):
        world.go(path)
    assert path.read_text() == "{"


def test_the_plan_names_every_part_and_the_whole():
    assert plan(World(a=40, b=5).parts()) == "   40 s  a: does a\n    5 s  b: does b\n   45 s  in 2 parts"


def test_make_gpu_without_a_gpu_says_what_it_would_run(capsys, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 2
    said = capsys.readouterr()
    assert said.err.startswith("NOTHING WAS MEASURED") and len(said.err.splitlines()) == 1
    for what in (
        "kernels: each kernel alone",
        "256, 1024, 4096, 8192 rows in 16, 128, ragged; ranks 8, 16, 64",
        "contest backward 16 16 64: ",
        " candidates; rows in segments: 1024 in 16",
        "bench forward: adapters forward alone, beside serving engines: vllm ",
        "captured: an online update, captured and launched: 1x16x45 tokens, 5 epochs",
    ):
        assert what in said.out
    names = [line.split("  ")[-1].split(":")[0] for line in said.out.splitlines() if " s  " in line]
    assert names.index("kernels") < names.index("contest shrink 16 16 16") < names.index("bench lora") < names.index("tests")
    seconds = [float(line.split(" s  ")[0]) for line in said.out.splitlines() if " s  " in line]
    assert seconds[-1] <= 2 * gpu.LIMIT and seconds[-1] == pytest.approx(sum(seconds[:-1]), abs=len(seconds))


def test_exit_statuses():
    well = {"failed": {}, "tests": {"status": 0}, "sanitizer": {"status": "no compute-sanitizer on PATH"}}
    assert gpu.status(well, []) == 0 and gpu.status(well, ["rsvd"]) == 3
    assert gpu.status({**well, "failed": {"rsvd": "ValueError"}}, []) == 1 == gpu.status({**well, "tests": {"status": 1}}, [])
