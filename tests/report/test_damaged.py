"""`tmem report` on whatever run files may hold: a page, or one sentence with exit code 2; the committed runs are pages."""

import copy
import itertools
import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tmem import cli
from tmem.files import shapes
from tmem.files.objects import parsed
from tmem.report import charts, comparison, page
from tmem.terminal.plain import in_markdown

RESULTS = Path(__file__).parents[2] / "results"
WRITE = {"segment": "Ann is king.", "pairs": [["Who is king?", "Ann"]], "dropped": {"malformed": 1, "empty": 0}, "undone": "",
         "loss": [1.0, 0.5], "norm": 2.0, "stuck": [{"recalled": True, "other": "Ben", "leaked": False},
                                                     {"recalled": False, "other": None, "leaked": None}]}  # fmt: skip
EPISODE = {"id": "e", "writes": [WRITE], "questions": [{"text": "Who?", "answers": ["Ann"], "said": "Ann"}]}


def evaluation(task):
    """The files of a small evaluation as JSON: {name: one object, or a list of lines}."""
    method = {"n": 4, "f1": 0.5, "f1_ci": [0.2, 0.8], "em": 0.25, "em_ci": [0.0, 0.5], "seconds": 1.0, "flops": 1e12,
              "by_kind": {"a": {"f1": 0.5, "n": 2}, "b": {"f1": 0.5, "n": 2}}, "writes": 2, "pairs_per_write": 1.0,
              "dropped": {"malformed": 1}, "rolled_back": 0, "stuck": 0.5, "leaked": None, "state_bytes": 100.0,
              **{f"{k}_tokens": 50 for k in ("prompt", "peak", "read", "generated", "learned")}}  # fmt: skip
    if task == "longmemeval":
        method["aggregates"] = {"f1": {"types": {"a": 0.5}, "task_average": 0.5, "overall": 0.5, "abstention": None}}
    if task == "search":
        method["search"] = {"searches": 2.0, "turns": 3.0, "recall": 0.5, "mem1_peak": None, "peak": 900.0}
    config = {
        "model": "small",
        "preset": "default",
        "settings": {"learn": {"lr": 0.1}},
        "seed": 0,
        "seeds": 1,
        "episodes": 2,
        "objectives": 2 if task == "search" else None,
        "turns": 6,
        "limit": 2,
        "data": "x.json",
        "known": False,
    }
    judge = {
        "model": "gpt",
        "plumbing": False,
        "judged": 4,
        "malformed": {"a": 1},
        "unreachable": 0,
        "spent": {"prompt_tokens": 5, "completion_tokens": 6, "cost": 0.5},
        "methods": {"tmem": {"judged": 4}},
    }
    cell = {"mean": 0.1, "low": 0.0, "high": 0.2}
    rows = [{"seed": 0, "method": m, "episode": f"e{i % 2}", "read": f"e{i % 2}", "id": f"q{i}", "kind": "ab"[i % 2],
             "category": "1", "question": "Who?", "answers": ["Ann"], "prediction": "Ann", "f1": 0.5, "em": 0.0,
             "sessions": None if task == "search" else 2 + i % 2, "position": 0.5, "prompt_tokens": 5, "generated_tokens": 5,
             "seconds": 0.1, "objectives": 2} for m in ("none", "tmem") for i in range(4)]  # fmt: skip
    readings = [{"seed": 0, "method": "tmem", "episode": f"e{i}", "read": f"e{i}", "state_bytes": 9, "peak_tokens": 9,
                 "seconds": 0.1, "log": {"writes": [WRITE, WRITE]}} for i in range(2)]  # fmt: skip
    verdicts = [{"method": "tmem", "seed": 0, "id": f"q{i}", "score": 1.0, "rubrics": [1, 0]} for i in range(4)]
    results = {
        "task": task,
        "config": config,
        "machine": {"commit": "abc"},
        "judge": judge,
        "methods": {"none": copy.deepcopy(method), "tmem": method},
        "differences": {"f1": {"tmem - none": cell}},
    }
    return {"results.json": results, "answers.jsonl": rows, "readings.jsonl": readings, "verdicts.jsonl": verdicts}


def training():
    settings = {"preset": "study", "model": "small", "TrainConfig": {
        "reward": "f1", "rl_steps": 4, "rl_episodes": 2, "eval_episodes": 2, "seed": 0, "task": "stream", "eval_split": "test",
    }}  # fmt: skip
    step = {
        "reward": 0.5,
        "dead_groups": 0,
        "pairs_per_write": 2.0,
        "norm": 3.0,
        "dlogp": 1e-5,
        "dlogp_worst_segment": 1e-4,
        "dlogp_worst_token": 1e-4,
        "drift": 1e-4,
        "loss": 0.1,
        "copied": 0.0,
        "neutral_kl": 0.1,
        "held": None,
    }
    rows = [{"phase": "warm", "step": i, "loss": 1.0, "recall_loss": 1.0} for i in range(2)]
    rows += [{"phase": "eval_warm", "step": i, "mode": m, "f1": 0.5, "em": 0.5} for i, m in enumerate(("greedy", "sampled"))]
    rows += [{"phase": "rl", "step": i, **step} for i in range(4)]
    timings = [{"phase": r["phase"], "step": r["step"], "seconds": 1.0, "trained": 1.0 + i, "seconds_write": 0.5}
               for i, r in enumerate(rows)]  # fmt: skip
    return {"run.json": settings, "metrics.jsonl": rows, "timings.jsonl": timings, "episodes/warm-greedy.json": [EPISODE],
            "episodes/base-greedy.json": [EPISODE], "episodes/rl-now.json": {"step": 2, "episodes": [EPISODE]}}  # fmt: skip


def put(folder, files):
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = value if name.endswith("l") else [value]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def places(value, path=()):
    """Every path into nested JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def deep(n):
    made = 1
    for i in range(n):
        made = {"a": made} if i % 2 else [made]
    return made


WORDS = [None, True, -1, 0, 10**40, -(10**18), 1e300, -1e300, 0.5, "", "x", "eval_", "eval_x", "{}", "\ud800", "<b>", [], [1],
         [[]], {}, {"a": 1}, {"": {}}, float("nan"), float("inf"), deep(60), deep(100), "9" * 5000]  # fmt: skip


def mutated(files, rng):
    files = copy.deepcopy(files)
    for _ in range(rng.choice([1, 1, 2, 4])):
        name = rng.choice(list(files))
        spot = rng.choice(list(places(files[name])))
        if not spot:
            if not name.endswith("l"):
                files[name] = copy.deepcopy(rng.choice(WORDS))
            continue
        owner = files[name]
        for key in spot[:-1]:
            owner = owner[key]
        kind = rng.random()
        if kind < 0.2:
            del owner[spot[-1]]
        elif kind < 0.3 and isinstance(owner, dict):
            key = rng.choice(["x", "phase", "f1", "f1_ci", "writes", "search", "method", "n"])
            owner[key] = copy.deepcopy(rng.choice(WORDS))
        else:
            owner[spot[-1]] = copy.deepcopy(rng.choice(WORDS))
    return files


def seldom(draw):
    """One picture of forty: they take long."""
    count = itertools.count()
    return lambda *args, **how: "data:," if next(count) % 40 else draw(*args, **how)


@pytest.mark.parametrize("made", [evaluation("stream"), evaluation("longmemeval"), evaluation("search"), training()],
                         ids=["stream", "longmemeval", "search", "training"])  # fmt: skip
def test_hundreds_of_damaged_runs_are_pages_or_one_sentence(tmp_path, monkeypatch, made):
    rng, ends = random.Random(0), {0: 0, 2: 0}
    for owner, name in ((comparison, "drawn"), (page, "_drawn")):
        monkeypatch.setattr(owner, name, seldom(getattr(owner, name)))
    for i in range(250):
        folder = tmp_path / str(i)
        put(folder, mutated(made, rng) if i else made)
        if i and rng.random() < 0.15:
            file = folder / rng.choice(list(made))
            data = file.read_bytes() or b"x"
            at = rng.randrange(len(data))
            file.write_bytes(rng.choice([data[:at], data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :], b"[" * 90_000]))
        found = CliRunner().invoke(cli.main, ["report", str(folder)])
        assert found.exit_code in ends and isinstance(found.exception, SystemExit | None), (i, found.output, found.exc_info)
        if found.exit_code:
            assert found.output.startswith("Error: ") and found.output.count("\n") == 1 and len(found.output) < 900
            assert not list(folder.glob("report.*"))
        ends[found.exit_code] += 1
    assert ends[0] > 20 and ends[2] > 80, ends


COMMITTED = sorted(p.parent for p in RESULTS.glob("benchmarks/*/results.json")) + sorted(RESULTS.glob("study/seed-*"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda p: p.name)
def test_the_committed_runs_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "drawn", lambda *_, **__: "data:,")
    monkeypatch.setattr(page, "_drawn", lambda *_: "data:,")
    found = CliRunner().invoke(cli.main, ["report", str(folder), "--out", str(tmp_path / "page.html")])
    assert found.exit_code == 0, found.output


def test_a_run_under_way_is_read_though_its_last_line_is_half_written(tmp_path):
    from tmem.files.folders import locked

    files = evaluation("stream")
    put(tmp_path / "run", files)
    with (tmp_path / "run/answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"seed": 0, "meth')
    words = ["report", str(tmp_path / "run")]
    with locked(tmp_path / "run"):
        assert CliRunner().invoke(cli.main, words).exit_code == 0
    ended = CliRunner().invoke(cli.main, words)
    assert ended.exit_code == 2 and "answers.jsonl, line 9: not a JSON object" in ended.output


@pytest.mark.parametrize(
    "value, shape, sentence",
    [
        (True, int, "expected a whole number, got True"),
        (10**40, float, "expected a number, got 1000"),
        ({"a": [1, "x"]}, {"a": [int]}, "f, `a`, 2: expected a whole number, got 'x'"),
        ({}, {"a": int}, "f: `a` is missing"),
        ({"a": 1, "c": "x"}, {"a": int, str: float}, "f, `c`: expected a number, got 'x'"),
        ([1], [int, int], "expected a list of 2, got a list"),
        ("z", {"x", "y"}, "expected one of x, y, got 'z'"),
        (["z"], {"x", "y"}, "expected one of x, y, got a list"),
        ([1], ({"a": int}, None), "expected an object, got a list"),
    ],
)
def test_a_shape_says_where_what_and_what_was_found(value, shape, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        shapes.check(value, shape, "f")


def test_json_that_goes_too_deep_is_refused_before_anything_walks_it():
    assert parsed(json.dumps(deep(64)).encode()) == deep(64)
    for n in (66, 500, 100_000):
        with pytest.raises(ValueError, match="too deep"):
            parsed(b"[" * n + b"]" * n)


# names and texts of others -----------------------------------------------------------------------------------------------

HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![x](javascript:alert(1))",
           "[x](javascript:alert(1))", "a|b\n|c|", "`code`", "\x1b[31mred\x1b[0m",
           "[red]red[/red] :smile:", "https://evil.example", "\u202eevil", "&lt;b&gt;",
           "[x]: javascript:alert(1)", "{0} %s {{ 7 * 7 }}", "*a* _b_ ~~c~~ $x$"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_come_to_life_neither_in_markdown_nor_in_the_page_nor_on_the_terminal(tmp_path, name, monkeypatch):
    monkeypatch.setattr(comparison, "drawn", lambda *_, **__: "data:,")
    files = evaluation("stream")
    results = files["results.json"]
    results["config"] |= {"model": name, "preset": name, "data": name}
    results["config"]["settings"]["learn"][name] = name
    results["judge"]["model"] = results["judge"]["host"] = results["machine"]["commit"] = name
    results["methods"][name] = results["methods"].pop("tmem")
    results["methods"][name]["by_kind"] = {name: {"f1": 0.5}, "b": {"f1": 0.5}}
    results["methods"][name]["dropped"] = {name: 1}
    for row in files["answers.jsonl"]:
        row |= {"question": name, "prediction": name, "answers": [name], "kind": name}
    other = copy.deepcopy(files)
    other["results.json"]["config"]["settings"]["learn"][name] = "other"
    put(tmp_path / "run", files)
    put(tmp_path / "run2", other)
    found = CliRunner().invoke(cli.main, ["report", str(tmp_path / "run"), str(tmp_path / "run2")])
    assert found.exit_code == 0, found.output
    md = (tmp_path / "run/report.md").read_text(encoding="utf-8")
    html = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|img src=x)", html) and not re.search(r"(?<!\\)[`<]|(?<!\\)][(:]|https?:", md)
    for text in (md, found.output):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    tables = [t.splitlines() for t in md.split("\n\n") if t.startswith("|")]
    assert tables and all(len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1 for rows in tables)


def test_what_stands_at_the_start_of_a_line_is_no_heading_list_or_rule():
    for name in ("# head", "---", "===", "- x", "+ x", "1. x", "12) x", "1."):
        assert in_markdown(name) in (f"\\{name}", name.replace(".", "\\.").replace(")", "\\)")), name
    for name in ("3.5", "-1", "#1", "a - b", "2023-05-01"):
        assert in_markdown(name) == name


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", ["名前", "x" * 1000, "word " * 300, "$x^{$"])
def test_a_chart_has_a_title_of_any_name(tmp_path, name):
    methods = {"none": {"n": 1, "f1": 0.5, "f1_ci": [0.0, 1.0]}}
    charts.bar_chart(tmp_path / "chart.png", methods, title=name)
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_come_to_life_in_no_log_and_on_no_terminal(name):
    import io

    from tmem.agent.log import readable
    from tmem.report.tables import table
    from tmem.terminal.plain import Terminal, fenced

    write = {**WRITE, "segment": name, "pairs": [[name, name]], "undone": name,
             "dropped": dict.fromkeys(("malformed", "empty", "duplicates", "conflicts"), 0),
             "stuck": [{"question": name, "recalled": False, "said": name, "other": None, "leaked": None}]}  # fmt: skip
    md = readable({"id": name, "writes": [write], "questions": [{"text": name, "answers": [name], "said": name}]})
    assert not re.search(r"(?<!\\)[`<]|(?<!\\)][(:]|https?:", md)
    block = fenced(f"{name}\n```\n<b>")
    assert block.startswith("````text\n") and block.endswith("\n````")
    shown = io.StringIO()
    console = Terminal(file=shown, width=300, force_terminal=False)
    console.print(table(name, {name: {"n": 1, "f1": 0.5, "f1_ci": [0.0, 1.0]}}))
    console.print(name)
    for text in (md, block, shown.getvalue()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    if "\n" not in name and "\x1b" not in name and "\u202e" not in name:
        assert shown.getvalue().count(name) == 3, "as it is written"
