"""`tmem report` of evaluations: runs join into tables of one protocol each, with pictures, and nothing from outside."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_page import HOSTILE, Found

from tmem import cli, comparison
from tmem.evaluate import summarise
from tmem.report import write_json


def answer(method, i, f1):
    return {
        "seed": 0, "method": method, "episode": f"e{i % 3}", "read": f"e{i % 3}", "id": f"q{i}", "kind": "ab"[i % 2],
        "question": f"what {i}? {HOSTILE}", "answers": ["it"], "prediction": HOSTILE if f1 == 0 else "it", "f1": f1, "em": f1,
        "intrusion": 0, "sessions": 2 + i % 3, "position": (i % 5) / 4, "prompt_tokens": 20, "generated_tokens": 3,
        "seconds": 0.1,
    }  # fmt: skip


def reading(method, i, state):
    row = {"seed": 0, "method": method, "episode": f"e{i}", "read": f"e{i}", "state_bytes": state, "read_tokens": 100,
           "generated_tokens": 10, "learned_tokens": 5, "peak_tokens": 60, "seconds": 1.0}  # fmt: skip
    dropped = dict.fromkeys(("malformed", "empty", "duplicates", "conflicts"), 0)
    writes = [{"pairs": [["q", "a"]], "dropped": dropped, "undone": "",
               "stuck": [{"recalled": i > 0, "other": "o", "leaked": False}]}]  # fmt: skip
    return row | ({"log": {"writes": writes}} if method == "tmem" else {})


@pytest.fixture
def run(tmp_path):
    def made(name, model="small", **config):
        answers = [answer(m, i, float(i % k == 0)) for m, k in (("none", 4), ("tmem", 2)) for i in range(30)]
        readings = [reading(m, i, s) for m, s in (("none", 0), ("tmem", 4096)) for i in range(3)]
        known = {"model": model, "preset": "default", "data": None, "data_blake2b": None, "limit": None, "seed": 0, "seeds": 1,
                 "split": "test", "difficulty": 1, "known": False, "episodes": 3, **config}  # fmt: skip
        write_json(tmp_path / name / "results.json", {"task": "stream", "config": known, **summarise(answers, readings)})
        (tmp_path / name / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in answers))
        return str(tmp_path / name)

    return made


def test_runs_of_one_protocol_share_a_table_and_others_do_not(run, tmp_path):
    folders = [run("a"), run("b", "trained"), run("c", known=True)]
    out = tmp_path / "page.html"
    found = CliRunner().invoke(cli.main, ["report", *folders, "--out", str(out)])
    assert found.exit_code == 0, found.output
    tables = comparison.joined([comparison.read(tmp_path / n) for n in "abc"])
    assert [[(r["model"], r["method"]) for r in t["rows"]] for t in tables] == [
        [("small", "none"), ("small", "tmem"), ("trained", "none"), ("trained", "tmem")],
        [("small", "none"), ("small", "tmem")],
    ]  # fmt: skip
    assert tables[0]["rows"][1]["scores"]["f1"].startswith("0.500 [") and "questions known beforehand" in tables[1]["title"]
    text = out.read_text()
    seen = Found(text)
    assert not seen.open and "script" not in seen.tags and HOSTILE in seen.text
    assert all(a.startswith("data:") for a in seen.addresses)
    assert len(seen.addresses) == 10  # two tables: tokens, bytes, place, length, stuck
    written = out.with_suffix(".md").read_text()
    assert written.count("| small | tmem | 0.500 [") == 2 and "script" not in written


def test_bins_are_closed_at_both_ends_and_hold_every_value_once():
    assert comparison.bins_of([0, 0.19, 0.2, 0.99, 1.0], [0, 0.2, 0.4, 0.6, 0.8, 1.0]) == [0, 0, 1, 4, 4]
    assert comparison.bins_of([2, 3, 4], [2, 3, 4]) == [0, 1, 1]


def test_published_figures_carry_source_and_protocol():
    published = comparison.tomllib.loads((Path(comparison.__file__).parent / "published.toml").read_text())
    assert published
    for entries in published.values():
        for entry in entries:
            assert tuple(entry) == comparison.PUBLISHED and all(entry.values())


def test_what_cannot_be_reported_is_one_sentence(run, tmp_path):
    folder = tmp_path / run("a")
    for broken, sentence in (('{"task": "stream", "config": {}}', "holds no answers yet"), ("{", "not JSON")):
        (folder / "results.json").write_text(broken)
        found = CliRunner().invoke(cli.main, ["report", str(folder)])
        assert found.exit_code == 2 and sentence in found.output and not (folder / "report.html").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    assert "give one" in CliRunner().invoke(cli.main, ["report", str(tmp_path / "x"), str(tmp_path / "y")]).output
