"""`tmem report DIR`: one page, whatever the run holds, with its verdicts right and nothing from outside."""

import json
import re
from html.parser import HTMLParser

import pytest
import tiny_run
from click.testing import CliRunner

from tmem import cli
from tmem.report import page

SHORT = {"warm_steps": 1, "eval_episodes": 1}
HOSTILE = '<script>alert(1)</script> & "quotes"'
VOID = {"meta", "img", "br", "tr", "td", "th", "li", "p"}  # those whose end may be left out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run, its episodes with hostile text, and what a run of 20 steps may have logged."""
    out = tmp_path_factory.mktemp("page") / "run"
    tiny_run.start(out).run()
    return out


class Found(HTMLParser):
    """Tags that stay open, addresses, and the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text, self.tags = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def reported(folder):
    found = CliRunner().invoke(cli.main, ["report", str(folder)])
    assert found.exit_code == 0, found.output
    return Found((folder / "report.html").read_text()), found.output


def copy_of(run, to, rows=None):
    """The run with its first `rows` lines only."""
    (to / "episodes").mkdir(parents=True)
    for file in run.glob("*.jsonl"):
        (to / file.name).write_text("".join(file.read_text().splitlines(keepends=True)[:rows]))
    (to / "run.json").write_bytes((run / "run.json").read_bytes())
    for file in (run / "episodes").glob("*.json"):
        (to / "episodes" / file.name).write_bytes(file.read_bytes())
    return to


def test_a_finished_run_is_one_page_that_holds_everything(run, tmp_path):
    found, said = reported(copy_of(run, tmp_path / "run"))
    assert found.open == [] and "Finished." in said and "Finished." in found.text
    assert all(a.startswith("data:image/svg+xml;base64,") for a in found.addresses) and len(found.addresses) >= 14
    for words in ("warm start", "control", "T=1", "pair explosion", "Trainer against sampler", "Seconds of a step", "RL wrote"):
        assert words in found.text, words
    episodes = json.loads((run / "episodes/rl-greedy.json").read_text())
    assert episodes[0]["questions"][0]["text"] in found.text


@pytest.mark.parametrize("control_steps", [0, 1])
def test_a_run_without_rl_is_finished_without_it(tmp_path, control_steps):
    tiny_run.start(tmp_path / "run", rl_steps=0, control_steps=control_steps, **SHORT).run()
    found, said = reported(tmp_path / "run")
    assert "Finished." in said and "Unfinished" not in said and ("control 0" in said) == bool(control_steps)
    assert "RL has not begun" not in found.text and "rl_steps = 0" in found.text and "warm start wrote" in found.text
    assert ("the control is supervised training" in found.text) is False


def test_a_run_without_rl_that_is_under_way_is_not_finished(tmp_path):
    tiny_run.start(tmp_path / "whole", rl_steps=0, control_steps=0, **SHORT).run()
    for rows in range(1, 6):
        assert ("Unfinished" in reported(copy_of(tmp_path / "whole", tmp_path / f"{rows}", rows))[1]) == (rows < 5), rows


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6, 7])
def test_a_run_that_is_under_way_is_shown_as_far_as_it_is(run, tmp_path, rows):
    folder = copy_of(run, tmp_path / "run", rows)
    for file in (folder / "episodes").glob("rl-*" if rows else "*"):
        file.unlink()
    found, said = reported(folder)
    assert found.open == [] and ("Unfinished" if rows else "Not begun") in said
    assert ("RL has not begun" in found.text) == (rows < 7) and ("RL wrote" in found.text) is False


def test_while_rl_runs_the_page_shows_what_it_wrote_last_beside_what_it_began_with(run, tmp_path):
    folder = copy_of(run, tmp_path / "run", 7)
    for name in ("rl-greedy", "rl-sampled", "sft-greedy", "sft-sampled"):
        (folder / f"episodes/{name}.json").unlink()
    file = folder / "episodes/rl-now.json"
    now = json.loads(file.read_text())
    assert now["step"] == 2
    now["episodes"][0]["writes"][0]["pairs"] = [["Who is new?", "Nobody"]]
    file.write_text(json.dumps(now))
    found, _ = reported(folder)
    assert "RL, step 2, wrote" in found.text and "Who is new?" in found.text and found.text.count("RL, step 2, answered") == 1
    assert found.text.count("warm start answered") == 3  # of the other episodes there is nothing new yet
    file.write_text("{")
    assert CliRunner().invoke(cli.main, ["report", str(folder)]).exit_code == 2


def test_text_of_models_and_data_stays_text(run, tmp_path):
    folder = copy_of(run, tmp_path / "run")
    file = folder / "episodes/rl-greedy.json"
    episodes = json.loads(file.read_text())
    episodes[0]["writes"][0].update(segment=HOSTILE, pairs=[[HOSTILE, HOSTILE]])
    episodes[0]["questions"][0].update(text=HOSTILE, said=HOSTILE, answers=[HOSTILE])
    file.write_text(json.dumps(episodes))
    settings = json.loads((folder / "run.json").read_text())
    settings["preset"] = HOSTILE
    (folder / "run.json").write_text(json.dumps(settings))
    found, _ = reported(folder)
    assert "script" not in found.tags and found.text.count("<script>alert(1)</script>") >= 4


def test_guards_compare_the_last_steps_with_the_first():
    first = {"copied": 0.0, "norm": 10.0, "empty": 0.0, "entropy": 1.0, "dead_groups": 0, "pairs_per_write": 6.0}
    first["split_half"] = 0.2
    steps = [dict(first) for _ in range(9)]
    rules = page.guards(1e-4, 4)

    def verdicts():
        return {v["field"]: v["verdict"] for v in page.verdicts(steps, rules)}

    assert set(verdicts().values()) == {"fine", "not measured"} and verdicts()["neutral_kl"] == "not measured"
    for step in steps[-3:]:
        step.update(empty=0.6, copied=0.1, norm=16.0, entropy=0.2, dead_groups=3, pairs_per_write=20.0, cut=None)
        step.update(split_half=-0.1)
    broken = {"empty", "copied", "norm", "entropy", "dead_groups", "pairs_per_write", "split_half"}
    assert {f for f, v in verdicts().items() if v == "look"} == broken
    steps += [{"dlogp_worst_segment": 1e-3, "update_skipped": 1}]
    assert {f for f, v in verdicts().items() if v == "look"} >= {"dlogp_worst_segment", "update_skipped"}


def test_a_folder_without_a_run_and_a_broken_line_are_one_sentence(run, tmp_path):
    def said(folder):
        found = CliRunner().invoke(cli.main, ["report", str(folder)])
        assert found.exit_code == 2 and not list(folder.glob("*.html"))
        return found.output

    assert "holds no run of tmem train" in said(tmp_path)
    folder = copy_of(run, tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{")
    assert re.search(r"metrics\.jsonl, line \d+: not a JSON object", said(folder).replace("\n", ""))
    (folder / "metrics.jsonl").write_text("")
    (folder / "episodes/warm-greedy.json").write_text("[")
    assert "warm-greedy.json: not JSON" in said(folder).replace("\n", "")
