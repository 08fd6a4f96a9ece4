"""`EvalConfig` is the one place that names an option: the command, results.json, resumption and reports read it from there."""

import dataclasses
import json

import pytest
import tiny_eval

from tmem.cli.evaluate import TASKS, evaluate
from tmem.evaluation import runs
from tmem.evaluation.config import PROTOCOL, READ, SCALING, SEARCH, EvalConfig, Extent, Inputs, line, recorded
from tmem.evaluation.evaluate import USUAL, chosen
from tmem.files.objects import write_json
from tmem.methods.methods import METHODS, SEARCHED, methods_of

OF_A_RUN = {"methods", "slots", "out", "resume", "quiet"}
OF_A_RUN |= {f"judge_{of}" for of in ("url", "model", "prices", "tokens", "concurrency")}
INPUTS = Inputs("m", "default", {"learn": {}}, "d.json", "aa", "bb", "cc", None, None, None)
# What results.json holds: runs of before are gone on with, and compared with new ones. What they lack is None.
BEGIN = ["model", "preset", "settings", "data", "data_blake2b", "weights_blake2b", "tokenizer_blake2b", "leave_out",
         "leave_out_blake2b", "adapter", "bits"]  # fmt: skip
KEYS = {
    "stream": [*BEGIN, "limit", "seed", "seeds", "split", "difficulty", "adversarial", "context", "answer_tokens", "known",
               "prompt", "probe", "episodes", "dated", "called"],
    "search": [*BEGIN, "search_by", "objectives", "turns", "limit", "seed", "seeds", "context", "answer_tokens", "known",
               "each", "episodes"],
}  # fmt: skip


def test_the_command_names_the_options_of_the_configuration_and_no_others():
    fields = {f.name: f.default for f in dataclasses.fields(EvalConfig)}
    options = {p.name: p.default for p in evaluate.params}
    assert options.keys() - OF_A_RUN == fields.keys()
    said = {name: options[name] for name in fields if fields[name] not in (None, (), False)}
    assert said == {name: fields[name] for name in said}, "one default, wherever it is said"
    assert set(TASKS) == {*SEARCH, *READ}


@pytest.mark.parametrize("task", TASKS)
def test_a_configuration_is_recorded_with_its_keys_in_their_order(task):
    found = recorded(EvalConfig(task), INPUTS, Extent(3, None, None))
    assert list(found) == KEYS["search" if task == "search" else "stream"] and json.dumps(found)
    assert found["known"] is False and found.get("split") == ("test" if task in ("stream", "passages") else None)
    assert found.get("adversarial") == ("open" if task == "locomo" else None)
    assert found.get("prompt") == (None if task in ("search", "clbench") else "few-shot")
    assert all(found.get(name) is None for name in EvalConfig(task).foreign if name != "known" and name != "probe")


@pytest.mark.parametrize(
    "options", [{"task": "no"}, {"task": "search", "search_by": "no"}, {"seeds": 0}, {"prompt": "no"}, {"each": "no"}]
)
def test_a_configuration_that_cannot_be_is_refused_in_a_sentence(options):
    name = [*options][-1]
    expected = "(one of .*bm25|one of stream, |one of few-shot, |at least 1)"
    with pytest.raises(ValueError, match=f"^eval: {name} is .*; expected {expected}"):
        EvalConfig(**options)


def test_options_of_other_tasks_are_told():
    assert set(EvalConfig("search").foreign) == {"split", "difficulty", "adversarial", "prompt", "probe"}
    search = {"corpus", "search_by", "objectives", "turns", "each"}
    assert set(EvalConfig("stream").foreign) == {*search, "adversarial"}
    assert set(EvalConfig("passages").foreign) == {*search, "adversarial", "difficulty"}
    assert set(EvalConfig("clbench").foreign) == {*search, "adversarial", "split", "difficulty", "prompt"}
    assert set(EvalConfig("squad").foreign) == {*search, "adversarial", "split", "difficulty"}


def test_what_makes_scores_comparable():
    assert set(PROTOCOL) == {
        "data_blake2b", "limit", "seed", "seeds", "split", "difficulty", "known", "adversarial", "episodes", "objectives",
        "turns", "search_by", "context", "answer_tokens", "leave_out_blake2b", "dated", "prompt", "each",
    }  # fmt: skip
    assert set(SCALING) == {"objectives", "turns", "answer_tokens", "episodes", "limit"}
    everything = {"split": "dev", "difficulty": 2, "limit": 3, "adversarial": "choice", "turns": 4, "search_by": "dense",
                  "dated": "day", "context": 5, "answer_tokens": 6, "model": "m", "probe": True,
                  "prompt": "instruction", "each": "few-shot"}  # fmt: skip
    assert line(everything) == [
        "dev split", "difficulty 2", "limit 3", "adversarial choice", "4 turns", "search by dense", "questions dated by day",
        "5 tokens of text in a prompt", "answers of 6 tokens at most", "text asked about by instruction",
        "each question asked by itself, about text by few-shot",
    ]  # fmt: skip
    assert line({"limit": None}) == []


def test_methods_are_named_once():
    reading = "none constant full oracle summary notes retrieval dense pairs gold tmem tmem+retrieval".split()
    searching = "none constant full mem1 oracle summary notes retrieval pairs tmem tmem+retrieval".split()
    assert methods_of("stream") == reading and methods_of("search") == searching == list(SEARCHED)
    assert methods_of("clbench") == [m for m in reading if m not in ("oracle", "gold")]
    assert METHODS.keys() == {*reading, *searching}
    assert chosen("squad", None) == list(USUAL["squad"]) and chosen("search", ["tmem", "none", "tmem"]) == ["tmem", "none"]
    for task, names in (("search", ["dense"]), ("stream", ["mem1"]), ("clbench", ["none", "oracle"]), ("squad", [])):
        got = names[-1] if names else "none"
        with pytest.raises(ValueError, match=f"methods of {task}: expected some of none, .*, got {got}"):
            chosen(task, names)


def test_a_run_of_before_is_gone_on_with_and_says_its_options(tmp_path, monkeypatch):
    """Its record may lack what is recorded since: the processes that took part, the models' sizes."""
    out = tmp_path / "out"
    whole = tiny_eval.run(out, "squad", ["none", "full"], patch=monkeypatch.setattr)
    before = {k: v for k, v in whole.items() if k not in ("runs", "sizes")}
    write_json(out / "results.json", before)
    lines = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join(lines[:5]))
    found = tiny_eval.run(out, "squad", ["none", "full"], patch=monkeypatch.setattr, resume=True)
    assert found["config"] == whole["config"] and len(found["runs"]) == 2 and found["machine"] == whole["machine"]
    assert runs.protocol_line(runs.read(out)).count("answers of 4 tokens at most") == 1
    for options, changed in (
        ({"adversarial": "choice", "answer_tokens": 5}, "context, answer_tokens"),
        ({"known": True, "seed": 1}, "seed, known"),
    ):
        with pytest.raises(ValueError, match=f"made with other settings .{changed}.; use the same flags"):
            tiny_eval.run(out, "squad", ["none"], patch=monkeypatch.setattr, resume=True, **options)
