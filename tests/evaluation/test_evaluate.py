"""`tmem eval` on every task with every method: what is kept, counted and computed; kills, resumption, seeds, provenance."""

import json
import signal
import subprocess
import sys
from collections import Counter

import forked
import pytest
import tiny_eval
from click.testing import CliRunner
from tiny import Letters, model

from tmem import cli, machine
from tmem.agent.agent import Agent
from tmem.agent.config import agent_config
from tmem.agent.learn import Learned
from tmem.cli import scores
from tmem.evaluation import reading, record, runs
from tmem.evaluation.compute import Sizes
from tmem.evaluation.config import EvalConfig
from tmem.evaluation.inputs import inputs_of
from tmem.files.journal import read_jsonl
from tmem.methods.methods import methods_of
from tmem.models import loading
from tmem.report import tables
from tmem.report.strip import strip
from tmem.tasks import longmemeval


@pytest.fixture
def run(tmp_path, monkeypatch):
    return lambda *words, out="out", **options: tiny_eval.run(tmp_path / out, *words, patch=monkeypatch.setattr, **options)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def settled(folder):
    """What must be the same however the work was cut up: all but seconds, in no order."""
    found = read_jsonl(folder / "answers.jsonl") + read_jsonl(folder / "readings.jsonl")
    return sorted(json.dumps({k: v for k, v in r.items() if k != "seconds"}) for r in found)


@pytest.mark.parametrize("task", tiny_eval.QUESTIONS)
def test_every_task_runs_with_every_method(run, tmp_path, task):
    found, methods = run(task), methods_of(task)
    assert json.loads(json.dumps(found)) == results(tmp_path / "out") and list(found["methods"]) == methods
    assert len(methods) == 12 - 2 * (task == "clbench")
    answers, readings = (read_jsonl(tmp_path / f"out/{name}.jsonl") for name in ("answers", "readings"))
    assert len({(r["method"], r["id"]) for r in answers}) == len(answers) == tiny_eval.QUESTIONS[task] * len(methods)
    assert {r["method"] for r in readings} == set(methods)
    for name, m in found["methods"].items():
        assert m["n"] == tiny_eval.QUESTIONS[task] and "judged" not in m
        assert bool(tables.metrics_of({name: m})) == (task != "clbench")
        assert (m["flops"] > 0) == (name != "constant")
        assert (m["learned_tokens"] > 0) <= ("tmem" in name or name in ("pairs", "gold"))
        assert (m["embedded_tokens"] > 0) == (name == "dense")
        assert (m["state_bytes"] == 0) <= (name in ("none", "constant", "notes", "summary", "pairs"))
    assert found["methods"]["dense"]["state_bytes"] > found["methods"]["retrieval"]["state_bytes"]
    if task == "clbench":
        assert found["differences"] == {} and all(r["answers"] == [] for r in answers)
    assert (tmp_path / "out/episodes.md").read_text()


def test_what_is_to_be_known_of_the_data_is_told(run, tmp_path, monkeypatch):
    """Questions left out, conversations that are not LoCoMo's, and sessions in an order that nobody could check."""
    chats = [record | {"sample_id": f"realtalk-{i}"} for i, record in enumerate(tiny_eval.FILES["locomo"]())]
    monkeypatch.setitem(tiny_eval.FILES, "locomo", lambda: chats)
    wrong = [{"question_id": "realtalk-0/1", "label_error": {"type": "HALLUCINATION"}},
             {"question_id": "realtalk-1/0", "label_error": {"type": "WRONG_CITATION"}}]  # fmt: skip
    (tmp_path / "errors.json").write_text(json.dumps(wrong))
    found = run("locomo", ["none"], leave_out=str(tmp_path / "errors.json"))
    assert found["methods"]["none"]["n"] == tiny_eval.QUESTIONS["locomo"] - 1
    assert (found["config"]["leave_out"], found["config"]["called"]) == (1, "REALTALK (LoCoMo's format)")
    assert found["notes"] == ["1 question left out by errors.json; 1 that it names for a wrong citation alone stays"]
    assert "realtalk-0/1" not in {r["id"] for r in read_jsonl(tmp_path / "out/answers.jsonl")}
    title = scores.title_of(found)
    assert title.startswith("REALTALK (LoCoMo's format), 7 questions") and runs.title(runs.read(tmp_path / "out")) in title
    questions, dates = tiny_eval.FILES["longmemeval"](), ("?", "??", "2023-05-20")
    dated = [record | {"haystack_dates": [date]} for record, date in zip(questions, dates)]
    monkeypatch.setitem(tiny_eval.FILES, "longmemeval", lambda: dated)
    found = run("longmemeval", ["none"], out="dates")
    assert found["notes"] == [f"2 of 3 episodes: {longmemeval.UNSORTED}"] and found["config"]["leave_out"] is None
    line = runs.protocol_line(runs.read(tmp_path / "dates"))
    assert found["notes"][0] in line and "questions dated by day, weekday and time" in line
    (tmp_path / "errors.json").write_text('["q7"]')
    with pytest.raises(ValueError, match="errors.json names 'q7', and the data hold no question with that id"):
        run("longmemeval", ["none"], out="unknown", leave_out=str(tmp_path / "errors.json"))
    assert not (tmp_path / "unknown").exists()


def test_writes_that_were_rolled_back_are_told_of(run, tmp_path, monkeypatch, capsys):
    """What a score leaves out must not have to be looked for."""
    monkeypatch.setattr("tmem.agent.agent.learn", lambda *_: [Learned(1.0, 2.0, 3.0, False, "the loss rose")] * len(_[2]))
    found = run("stream", ["constant", "tmem"])
    undone = found["methods"]["tmem"]["rolled_back"]
    assert undone == found["methods"]["tmem"]["writes"] > 0
    scores.show(found, tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    assert f"tmem: {undone} of {undone} writes were rolled back, so nothing of them was learned" in said


@pytest.mark.parametrize("task", tiny_eval.FILES)
def test_names_that_look_like_formats_or_markup_are_names(tmp_path, monkeypatch, task):
    folder = tmp_path / "{0.x} %s [" / "b] :smile: $x_$"
    folder.mkdir(parents=True)
    preset = tiny_eval.prepare(folder / "{}", monkeypatch.setattr)
    words = ["eval", "--task", task, "--data", tiny_eval.data(task, folder), "--preset", str(preset), "--answer-tokens", "4",
             "--methods", "none,retrieval,pairs", "--out", str(folder / "{out}"), "--model", "[/x] {m} $_$"]  # fmt: skip
    found = CliRunner().invoke(cli.main, words, env={"COLUMNS": "300"})
    said = " ".join(found.output.split())  # a title is as wide as its table
    assert found.exit_code == 0 and "[/b] :smile: $x_$/{out}" in said and "[/x] {m} $_$" in said, found.output
    page = CliRunner().invoke(cli.main, ["report", str(folder / "{out}")])
    assert page.exit_code == 0, page.output


def test_operations_are_counted_by_the_formula():
    config = agent_config("default")
    agent = Agent.build(model(), Letters(), config, 1)
    sizes = Sizes.of(agent, embedder=7)
    # Hidden 64, 4 heads of 16 of which 2 for keys, feed-forward 80, 4 layers, vocabulary 160; rank 16 on all 4 layers' MLP.
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 80 + 2 * 64
    adapters = 4 * 16 * (2 * (4 * (64 + 80) + 2 * 80) + 4 * (80 + 64) + 2 * 64)
    assert (sizes.body, sizes.top, sizes.head, sizes.adapters) == (4 * layer, 4 * layer, 160 * 64, adapters)
    tokens = {"read": 100, "generated": 10, "learned": 50, "embedded": 3}
    learn = 4 * sizes.top + adapters + 2 * sizes.body / config.learn.epochs
    assert sizes.flops(tokens) == 2 * sizes.body * 110 + 2 * sizes.head * 10 + learn * 50 + 2 * 7 * 3
    deep = Sizes.of(Agent.build(model(num_hidden_layers=16), Letters(), config, 1))
    assert (deep.body, deep.top) == (16 * layer, config.adapter.last_layers * layer) and deep.top < deep.body


def test_a_method_computes_what_its_rows_say(run, tmp_path):
    found = run(names=["none", "full", "tmem"])
    sizes = Sizes(**found["sizes"])
    answers, readings = (read_jsonl(tmp_path / f"out/{name}.jsonl") for name in ("answers", "readings"))
    for name in ("none", "full", "tmem"):
        mine, reading = ([r for r in rows if r["method"] == name] for rows in (answers, readings))
        read = sum(r["read_tokens"] for r in mine + reading)
        asked = {e: [r for r in mine if r["episode"] == e] for e in {r["episode"] for r in mine}}
        assert all(len(rs) > 1 for rs in asked.values())
        for rs in asked.values():
            texts = [r["prompt_tokens"] - r["read_tokens"] for r in rs]  # the history is read for the first of them
            examples = texts[0]  # of few-shot, which no question counts
            assert (examples == 0) == (name == "tmem") and (not examples or examples > 100)
            if name == "full":
                assert min(texts[1:]) > examples + 50
            else:
                assert set(texts[1:]) == {examples}, (name, texts)
        generated = sum(r["generated_tokens"] for r in mine + reading)
        learned = sum(r["learned_tokens"] for r in reading)
        assert found["methods"][name]["flops"] == sizes.flops({"read": read, "generated": generated, "learned": learned})


def test_seeds_are_replicates_of_the_subspace_and_leak_no_slot(run, tmp_path, monkeypatch):
    built, lived = [], []
    build, live = Agent.build, reading._run

    def building(*words, **options):
        built.append(build(*words, **options))
        return built[-1]

    def living(task, method, form, reader, *rest):
        lived.append((reader.agent.bank.seed, reader.agent.bank.subspace))
        assert not any(reader.agent.bank.used)
        return live(task, method, form, reader, *rest)

    monkeypatch.setattr(Agent, "build", building)
    monkeypatch.setattr(reading, "_run", living)
    run("squad", ["none", "tmem"], seed=3, seeds=2, slots=1)
    (agent,) = built
    assert not any(agent.bank.used) and [s for s, _ in lived] == [3] * 4 + [4] * 4
    assert len({subspace for _, subspace in lived[:4]}) == len({subspace for _, subspace in lived[4:]}) == 1
    assert lived[0][1] != lived[4][1]
    answers, readings = (read_jsonl(tmp_path / f"out/{name}.jsonl") for name in ("answers", "readings"))
    said = {s: [r["prediction"] for r in answers if (r["method"], r["seed"]) == ("none", s)] for s in (3, 4)}
    assert said[3] == said[4]
    losses = {s: [w["loss"] for r in readings if r["seed"] == s and "log" in r for w in r["log"]["writes"]] for s in (3, 4)}
    assert len(losses[3]) == len(losses[4]) > 0
    # The second seed alone is what it was after the first.
    alone = run("squad", ["none", "tmem"], seed=4, slots=2, out="alone")
    assert alone["config"]["seed"] == 4
    of_four = [r for r in settled(tmp_path / "out") if json.loads(r)["seed"] == 4]
    assert of_four == settled(tmp_path / "alone")


def test_a_run_says_which_files_made_its_model_answer(run, tmp_path, monkeypatch):
    before = run(names=["none"])["config"]
    folder = tmp_path / "tiny"
    for name, key in (("tokenizer.json", "tokenizer"), ("config.json", "tokenizer"), ("chat_template.jinja", "tokenizer"),
                      ("tokenizer_config.json", "tokenizer"), ("model.safetensors", "weights")):  # fmt: skip
        was = (folder / name).read_text() if (folder / name).exists() else None
        (folder / name).write_text("other")
        now = inputs_of(EvalConfig(), agent_config("default"))
        changed = {k for k in ("weights_blake2b", "tokenizer_blake2b") if getattr(now, k) != before[k]}
        assert changed == {f"{key}_blake2b"}, name
        (folder / name).unlink() if was is None else (folder / name).write_text(was)
    (folder / "tokenizer.json").write_text("other")
    monkeypatch.setattr(tiny_eval, "prepare", lambda *_: folder / "tiny.toml")  # leaves the files as they are now
    with pytest.raises(ValueError, match="other settings .tokenizer_blake2b"):
        run(names=["none"], resume=True)


def test_a_run_says_which_adapter_lay_over_its_model(tmp_path, monkeypatch):
    """The bare model's digest is what it was; an adapter's weights and its scale both change it."""
    tiny_eval.prepare(tmp_path / "tiny", monkeypatch.setattr)
    monkeypatch.setattr(loading, "WRITER", tmp_path / "writer")
    bare = inputs_of(EvalConfig(), agent_config("default"))
    assert bare.adapter is None and bare == inputs_of(EvalConfig(adapter="none"), agent_config("default"))
    for name in ("writer", "mine"):
        (tmp_path / name).mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / name / file).write_text(name)
    packaged = inputs_of(EvalConfig(), agent_config("default"))
    mine = inputs_of(EvalConfig(adapter=str(tmp_path / "mine")), agent_config("default"))
    assert (packaged.adapter, mine.adapter) == ("default", str(tmp_path / "mine"))
    assert bare == inputs_of(EvalConfig(adapter="none"), agent_config("default"))
    (tmp_path / "mine" / "adapter_config.json").write_text("another scale")
    scaled = inputs_of(EvalConfig(adapter=str(tmp_path / "mine")), agent_config("default"))
    assert len({i.weights_blake2b for i in (bare, packaged, mine, scaled)}) == 4


def test_a_run_whose_settings_have_the_names_of_before_is_gone_on_with(run, tmp_path):
    """[adapter] was called memory, [write] under_delta memory."""
    first = run(names=["none"])
    recorded = results(tmp_path / "out")
    settings = recorded["config"]["settings"]
    settings["memory"] = settings.pop("adapter")
    settings["write"]["memory"] = settings["write"].pop("under_delta")
    (tmp_path / "out" / "results.json").write_text(json.dumps(recorded))
    again = run(names=["none"], resume=True)
    assert again["config"] == first["config"] and again["methods"] == first["methods"]


def test_a_run_that_asked_in_other_words_than_it_taught_is_not_gone_on_with(run, tmp_path):
    """Before presets said it, tmem was taught bare questions, and asked within an instruction."""
    run(names=["none"])
    recorded = results(tmp_path / "out")
    del recorded["config"]["settings"]["learn"]["renderings"], recorded["config"]["settings"]["answer"]["asked"]
    (tmp_path / "out" / "results.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match="pairs were taught in other words than they were asked in; give another"):
        run(names=["none"], resume=True)


def test_every_run_that_took_part_is_recorded(run, tmp_path, monkeypatch):
    first = run(names=["none"])
    (one,) = first["runs"]
    assert one["answers"] == 8 and one["slots"] == 2 and one["peak_bytes"] > 1e7 and one["machine"] == first["machine"]
    now = {**machine.provenance(), "torch": "9.9.9", "commit": "abc"}
    monkeypatch.setattr(machine, "provenance", lambda: now)
    second = run(names=["none", "constant"], resume=True, slots=1)
    assert second["machine"] == first["machine"] and second["runs"][0] == one
    assert second["runs"][1]["machine"] == now and (second["runs"][1]["answers"], second["runs"][1]["slots"]) == (8, 1)
    assert json.loads(json.dumps(second)) == results(tmp_path / "out")
    third = run(names=["none"], resume=True)
    assert [r["answers"] for r in third["runs"]] == [8, 8, 0]


def test_a_run_without_its_texts_is_not_gone_on_with(run, tmp_path):
    run(names=["none"])
    strip(tmp_path / "out", tmp_path / "bare")
    before = {f.name: f.read_bytes() for f in (tmp_path / "bare").iterdir()}
    with pytest.raises(ValueError, match="holds a run without its texts"):
        run(names=["none", "constant"], resume=True, out="bare")
    assert {f.name: f.read_bytes() for f in (tmp_path / "bare").iterdir()} == before


def test_what_earlier_methods_computed_is_not_forgotten(run):
    before = run("squad", ["dense"])["methods"]["dense"]
    assert run("squad", ["none"], resume=True)["methods"]["dense"] == before and before["embedded_tokens"] > 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    found = subprocess.run([sys.executable, tiny_eval.__file__, out], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return out


@pytest.mark.parametrize("where, counts", [("ask", (3, 2, 4)), ("write", (2, 4))])
def test_a_run_that_was_killed_gives_the_same_answers(undisturbed, tmp_path, where, counts):
    """SIGKILL again and again. Between batches nothing is asked twice; while one is written, it alone is asked again."""
    out = tmp_path / "out"
    for i, count in enumerate(counts):
        killed = forked.run(tiny_eval.__file__, out, "--kill", where, count, *["--resume"] * (i > 0))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = forked.run(tiny_eval.__file__, out, "--resume")
    assert found.returncode == 0, found.stderr
    assert settled(out) == settled(undisturbed)
    assert len(results(out)["runs"]) == len(counts) + 1
    same = {k: v for k, v in results(out)["methods"]["tmem"].items() if k != "seconds"}
    assert same == {k: v for k, v in results(undisturbed)["methods"]["tmem"].items() if k != "seconds"}
    asked, once = (Counter((f.parent / "asked.txt").read_text().split()) for f in (out, undisturbed))
    more = sum((asked - once).values())
    assert not once - asked and (more == 0 if where == "ask" else 0 < more <= 3 * len(counts))


def test_what_no_prompt_has_room_for_is_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"room for \d+ tokens of text beside the longest question \('.+', \d+ tokens\)"):
        run("squad", names=["none"], context=10**6)
    with pytest.raises(ValueError, match=r"room for no text beside question '.+' \(\d+ tokens\) and an answer of 9999"):
        run("squad", names=["none"], answer_tokens=9999)
    assert not (tmp_path / "out").exists()


def test_a_summary_that_takes_long_is_made_seldom_and_at_the_end(monkeypatch):
    clock, made = [100.0], []
    monkeypatch.setattr(record.time, "perf_counter", lambda: clock[0])

    def taking(seconds):
        def work():
            clock[0] += seconds
            made.append(clock[0])

        return record.Seldom(work)

    for seconds, count in ((0.1, 50), (6.0, 1)):  # 50 groups, a second each
        made.clear()
        write = taking(seconds)
        for _ in range(50):
            write()
            clock[0] += 1.0
        assert len(made) == count, seconds
        write.now()
        assert len(made) == count + 1
