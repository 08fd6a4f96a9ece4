"""`tmem report` of evaluations: runs join into tables of one protocol each, with pictures, and nothing from outside."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_page import HOSTILE, Found

from tmem import cli
from tmem.evaluation import runs
from tmem.evaluation.summary import summarise
from tmem.files.objects import write_json
from tmem.report import comparison, grids, pictures, strip
from tmem.tasks.search import summary

SECRET = "Zanzibar"  # stands in every text of the data


def answer(method, i, f1):
    return {
        "seed": 0, "method": method, "episode": f"e{i % 3}", "read": f"e{i % 3}", "id": f"q{i}", "kind": "ab"[i % 2],
        "category": "abstention" if i % 5 == 0 else "", "question": f"what {i}? {HOSTILE} {SECRET}", "answers": ["it", SECRET],
        "prediction": f"{HOSTILE} {SECRET}" if f1 == 0 else "it", "f1": f1, "em": f1, "intrusion": 0, "sessions": 2 + i % 3,
        "position": (i % 5) / 4, "prompt_tokens": 20, "generated_tokens": 3, "seconds": 0.1,
    }  # fmt: skip


def reading(method, i, state):
    row = {"seed": 0, "method": method, "episode": f"e{i}", "read": f"e{i}", "state_bytes": state, "read_tokens": 100,
           "generated_tokens": 10, "learned_tokens": 5, "peak_tokens": 60, "seconds": 1.0, "transcript": SECRET}  # fmt: skip
    dropped = dict.fromkeys(("malformed", "empty", "duplicates", "conflicts"), 0)
    stuck = {"question": SECRET, "answer": SECRET, "paraphrase": SECRET, "said": SECRET, "other_said": SECRET}
    writes = [
        {"segment": f"{SECRET} said", "pairs": [["q", SECRET]], "dropped": dropped, "undone": "", "loss": [2.0, 1.0],
         "norm": 3.0, "stuck": [{**stuck, "recalled": w == 0, "other": SECRET if i else None, "leaked": i == 1}]}
        for w in range(2)
    ]  # fmt: skip
    log = {"id": f"e{i}", "writes": writes, "questions": [{"text": SECRET, "answers": [SECRET], "said": SECRET}]}
    return row | ({"log": log} if method == "tmem" else {})


@pytest.fixture
def run(tmp_path):
    def made(name, model="small", scores=(("none", 4), ("tmem", 2)), task="stream", judge=None, rows=30, bare=False, **config):
        answers = [answer(m, i, float(i % k == 0)) for m, k in scores for i in range(rows)]
        if judge:
            answers = [{**r, "judge": r["f1"]} for r in answers]
        readings = [reading(m, i, 4096 * (m == "tmem")) for m, _ in scores for i in range(3)]
        known = {"model": model, "preset": "default", "settings": {"learn": {"epochs": 6}}, "data": None, "data_blake2b": None,
                 "limit": None, "seed": 0, "seeds": 1, "split": "test", "difficulty": 1, "adversarial": None, "context": 2048,
                 "answer_tokens": 24, "known": False, "episodes": 3, **config}  # fmt: skip
        results = {"task": task, "config": known, **summarise(answers, readings, task), **({"judge": judge} if judge else {})}
        write_json(tmp_path / name / "results.json", results)
        for file, lines in (("answers", answers), ("readings", readings)):
            if not bare:
                (tmp_path / name / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
        return str(tmp_path / name)

    return made


def report(*folders, out):
    """The page, as it is read, and the Markdown."""
    found = CliRunner().invoke(cli.main, ["report", *map(str, folders), "--out", str(out)])
    assert found.exit_code == 0, found.output
    page = Found(out.read_text())
    assert not page.open and "script" not in page.tags and all(a.startswith("data:") for a in page.addresses)
    return page, out.with_suffix(".md").read_text()


def parts(tmp_path, names):
    """What the page is made of, its pictures not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "drawn", lambda *_, **__: "data:,")
        return comparison.joined([comparison.read(tmp_path / n) for n in names])


def table(part, title):
    """The rows of the table whose title begins so."""
    (grid,) = [g for g in (*part["before"], *part["after"]) if g.title.startswith(title)]
    assert all(len(row) == len(grid.columns) for row in grid.rows)
    return [dict(zip(grid.columns, row)) for row in grid.rows]


def test_runs_of_one_protocol_share_a_table_and_others_do_not(run, tmp_path):
    folders = [run("a"), run("b", "trained"), run("c", known=True)]
    tables = parts(tmp_path, "abc")
    assert [[(r["model"], r["method"]) for r in t["rows"]] for t in tables] == [
        [("small", "none"), ("small", "tmem"), ("trained", "none"), ("trained", "tmem")],
        [("small", "none"), ("small", "tmem")],
    ]  # fmt: skip
    assert tables[0]["rows"][1]["scores"]["f1"].startswith("0.500 [") and "questions known beforehand" in tables[1]["title"]
    page, written = report(*folders, out=tmp_path / "page.html")
    assert HOSTILE in page.text and len(page.addresses) == 10  # two parts: bytes, tokens, place, length, stuck
    assert written.count("| small | tmem | 0.500 [") == 4 and "script" not in written  # all questions, and answerable ones
    assert written.count("### The questions that the text answers: scores") == 2


@pytest.mark.parametrize(
    "config",
    [
        {"task": "locomo"}, {"data_blake2b": "x"}, {"known": True}, {"adversarial": "choice"}, {"limit": 5}, {"context": 512},
        {"leave_out_blake2b": "x"}, {"dated": "day"}, {"answer_tokens": 8}, {"seeds": 2}, {"objectives": 4}, {"turns": 9},
        {"judge": {"model": "other", "plumbing": False}},
        {"judge": {"model": "gpt", "plumbing": True}}, {"judge": None},
    ],
)  # fmt: skip
def test_whatever_belongs_to_the_protocol_keeps_runs_apart(run, tmp_path, config):
    judge = {"model": "gpt", "plumbing": False}
    run("a", judge=judge)
    run("b", **{"judge": judge, **config})
    run("c", "trained", judge=judge, preset="long", settings={"learn": {"epochs": 9}})
    first, second = parts(tmp_path, "abc")
    assert [r["model"] for r in first["rows"]] == ["small"] * 2 + ["trained"] * 2 and len(second["rows"]) == 2
    runs = table(first, "Runs")
    assert [(r["preset"], r["learn.epochs"]) for r in runs] == [("default", "6"), ("long", "9")]


def test_settings_with_the_names_of_before_are_compared_by_those_of_now(run, tmp_path):
    now = {"adapter": {"rank": 4}, "learn": {"epochs": 6}, "write": {"under_delta": True}}
    before = {"memory": {"rank": 8}, "learn": {"epochs": 6}, "write": {"memory": True}}
    by = {name: runs.read(Path(run(name, settings=settings))) for name, settings in (("new", now), ("old", before))}
    grid = grids.compared(by)
    assert list(grid.columns[4:]) == ["adapter.rank"] and [row[4:] for row in grid.rows] == [["4"], ["8"]]


def test_scale_rows_unfinished_runs_and_stand_in_judges_are_not_ranked(run, tmp_path):
    scores = (("oracle", 1), ("constant", 1), ("none", 4), ("tmem", 2))
    run("a", scores=scores)
    run("b", "trained", scores=scores[2:], rows=1)  # one question, right: a mean of 1
    (part,) = parts(tmp_path, "ab")
    assert "tmem under small is first by F1, 0.500" in part["headline"]
    rows = table(part, "Scores")
    assert [r["method"] for r in rows] == ["oracle (scale)", "constant (scale)", "none", "tmem", "none", "tmem"]
    assert [r["n"] for r in rows] == ["30"] * 4 + ["1 of 30"] * 2
    run("cut", scores=(("constant", 2), ("none", 4), ("tmem", 2)))
    file = tmp_path / "cut/results.json"
    results = json.loads(file.read_text())
    for name in ("none", "tmem"):
        results["methods"][name]["n"] -= 1
    write_json(file, results)
    assert "tmem is first by F1" in parts(tmp_path, ["cut"])[0]["headline"]
    run("tie", scores=(("none", 2), ("tmem", 2)))
    assert "none and tmem are first" in parts(tmp_path, ["tie"])[0]["headline"]
    run("zero", scores=(("none", 99), ("tmem", 99)), rows=1)
    file = tmp_path / "zero/results.json"
    results = json.loads(file.read_text())
    for found in results["methods"].values():
        found["f1"] = 0.0
    write_json(file, results)
    assert "no method scores above 0 by F1" in parts(tmp_path, ["zero"])[0]["headline"]


def test_a_verdict_or_the_official_score_comes_before_plain_f1(run, tmp_path):
    def headline(name, judged_by, judged=(30, 30), **scores):
        run(name, judge=judged_by)
        file = tmp_path / name / "results.json"
        results = json.loads(file.read_text())
        for found, verdicts in zip(results["methods"].values(), judged) if judged_by else ():
            found["judged"] = verdicts
        for metric, best in scores.items():
            for method, found in results["methods"].items():
                found[metric], found[f"{metric}_ci"] = (0.9, [0.8, 1.0]) if method == best else (0.1, [0.0, 0.2])
        write_json(file, results)
        return parts(tmp_path, [name])[0]["headline"]

    real, stand_in = {"model": "gpt", "plumbing": False}, {"model": "stand-in", "plumbing": True}
    assert headline("a", None, f1="none", official_f1="tmem").endswith("tmem is first by official F1, 0.900 [0.800, 1.000]")
    assert "none is first by judge (gpt)" in headline("b", real, official_f1="tmem", judge="none")
    assert "tmem is first by judge (gpt)" in headline("d", real, judged=(29, 30), judge="none"), "a verdict is missing"
    assert "tmem is first by official F1" in headline("c", stand_in, official_f1="tmem", judge="none")


def test_a_stand_in_judge_is_named_wherever_its_scores_are(run, tmp_path):
    spent = {"prompt_tokens": 900, "completion_tokens": 99}
    run("a", judge={"model": "stand-in", "plumbing": True, "malformed": 2, "spent": spent})
    file = tmp_path / "a/results.json"
    results = json.loads(file.read_text())
    for found in results["methods"].values():  # as CL-bench, which has no other score
        for metric in ("f1", "em", "intrusion"):
            del found[metric], found[f"{metric}_ci"]
    results["methods"]["tmem"]["judged"] = 28
    write_json(file, results)
    (part,) = parts(tmp_path, "a")
    assert "no ranking" in part["headline"] and "first" not in part["headline"]
    assert [r["judged"] for r in table(part, "Scores")] == ["30", "28"]
    (judge,) = table(part, "The judge")
    assert judge["judge"] == "the model under test, plumbing only" and judge["malformed"] == "2" and judge["judged"] == "58"
    assert judge["tokens"] == "999" and judge["cost"] == ""
    shown = [g for g in (*part["before"], *part["after"]) if any("judge (" in text for text in (g.title, *g.columns))]
    assert len(shown) >= 3 and all(grids.PLUMBING in " ".join((g.title, *g.columns)) for g in shown)
    assert part["pictures"] and all(grids.PLUMBING in p["title"] for p in part["pictures"] if "stuck" not in p["title"])


def test_differences_read_as_their_names_do(run, tmp_path):
    run("a", scores=(("none", 4), ("tmem", 2)))
    run("b", "trained", scores=(("none", 4), ("tmem", 1)))
    (part,) = parts(tmp_path, "ab")
    between = {(r["pair"], r["method"]): r["F1"] for r in table(part, "Differences between runs")}
    assert between["trained - small", "tmem"].startswith("+0.500 [") and between["trained - small", "none"].startswith("+0.000")
    within = {(r["run"], r["pair"]): r["F1"] for r in table(part, "Differences between methods")}
    assert within["small", "tmem - none"].startswith("+0.233 [") and within["trained", "tmem - none"].startswith("+0.733 [")
    file = tmp_path / "a/results.json"
    results = json.loads(file.read_text())
    cell = results["differences"]["f1"].pop("tmem - none")
    results["differences"]["f1"]["none - tmem"] = {"mean": -cell["mean"], "low": -cell["high"], "high": -cell["low"]}
    write_json(file, results)
    turned = {(r["run"], r["pair"]): r["F1"] for r in table(parts(tmp_path, "ab")[0], "Differences between methods")}
    assert turned == within


def test_differences_between_runs_are_drawn_by_episodes(run, tmp_path):
    """One episode alone shows no spread: its interval is its mean twice."""
    run("a", scores=(("tmem", 2),))
    run("b", "trained", scores=(("tmem", 1),))
    for name in "ab":
        file = tmp_path / name / "answers.jsonl"
        rows = [json.loads(line) | {"episode": "e"} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(r) + "\n" for r in rows[: 30 if name == "a" else 20]))
    (row,) = table(parts(tmp_path, "ab")[0], "Differences between runs")
    assert row["F1"] == "+0.500 [+0.500, +0.500]"  # of the 20 questions that both answered


def test_results_alone_give_the_tables(run, tmp_path):
    whole, bare = run("a"), run("b", bare=True)
    _, with_rows = report(whole, out=tmp_path / "a.html")
    page, alone = report(bare, out=tmp_path / "b.html")
    assert alone == with_rows
    assert len(page.addresses) == 2 and "Questions and answers" not in page.text  # bytes and tokens


def test_stripping_leaves_no_text_and_all_figures(run, tmp_path):
    whole = run("a", "small")
    (tmp_path / "a/verdicts.jsonl").write_text(
        json.dumps({"method": "tmem", "seed": 0, "id": "q0", "score": 1.0, "reason": SECRET, "rubrics": [1, 0]}) + "\n"
    )
    file = tmp_path / "a/results.json"
    write_json(file, json.loads(file.read_text()) | {"judge": {"why": f"the reply {SECRET!r} is not in the form asked for"}})
    out = tmp_path / "stripped"
    found = CliRunner().invoke(cli.main, ["report", whole, "--strip", str(out)])
    assert found.exit_code == 0, found.output
    assert sorted(f.name for f in out.iterdir()) == ["answers.jsonl", "readings.jsonl", "results.json"]
    for file in out.iterdir():
        assert SECRET not in file.read_text() and "what 1" not in file.read_text()
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    texts_left = {v for r in lines for k, v in r.items() if isinstance(v, str) and k not in strip.NAMES}
    assert not texts_left and lines[30]["judge"] == 1.0 and lines[30]["rubrics"] == 0.5 and lines[30]["position"] == 0.0
    page, written = report(out, out=tmp_path / "stripped.html")
    before, as_before = report(whole, out=tmp_path / "whole.html")
    assert written == as_before and page.addresses and [len(a) for a in page.addresses] == [len(a) for a in before.addresses]
    again = tmp_path / "again"
    strip.strip(out, again)
    assert all((again / f.name).read_text() == f.read_text() for f in out.iterdir())
    for refused in ([whole, "--strip", str(out)], [whole, "--strip", whole]):
        found = CliRunner().invoke(cli.main, ["report", *refused])
        assert found.exit_code == 2 and "already holds results" in found.output
    assert "give one RUN" in CliRunner().invoke(cli.main, ["report", whole, str(out), "--strip", str(tmp_path / "z")]).output


def test_what_follows_from_a_run_follows_from_it_without_texts(run, tmp_path):
    run("a")
    strip.strip(tmp_path / "a", tmp_path / "b")
    whole, stripped = (comparison.read(tmp_path / n) for n in "ab")
    made = summarise(stripped.answers, stripped.readings, "stream")
    assert made == summarise(whole.answers, whole.readings, "stream")
    found = made["methods"]["tmem"]
    assert (found["pairs_per_write"], found["stuck"], found["leaked"]) == (1.0, 0.5, 0.5)  # of the two asked about others one


def drawn(monkeypatch, tmp_path, names):
    """The parts of the page, and {name of the x axis: panels} of their pictures."""
    seen = {}
    monkeypatch.setattr(comparison, "drawn", lambda panels, x, y, **how: seen.setdefault(x, panels) and "data:,")
    runs = [comparison.read(tmp_path / n) for n in names]
    return [*comparison.joined(runs), *comparison.sweeps(runs)], seen


def test_every_run_has_its_panel_and_every_method_its_line(run, tmp_path, monkeypatch):
    run("a")
    run("b", "trained", scores=(("none", 4), ("tmem", 1)))
    _, seen = drawn(monkeypatch, tmp_path, "ab")
    assert len(seen) == 5 and all(list(panels) == ["small", "trained"] for panels in seen.values())
    for label, right in (("small", 0.5), ("trained", 1.0)):
        none, tmem = seen["place in the stream"][label]
        assert (none.name, tmem.name) == ("none", "tmem") and tmem.y == [right] * 4
        assert tmem.x == [1, 2, 3, 4]  # what stands first, at 0, is answered by no text
    held, leaked = seen["write of the episode"]["small"]
    assert (held.y, leaked.y) == ([1.0, 0.0], [0.5, 0.5])  # of three episodes two were asked about others, and one leaked
    alone = seen["sessions"]["small"][1]  # each number of sessions is that of one episode
    assert alone.x == [0, 1, 2] and all(math.isnan(v) for v in (*alone.low, *alone.high)) and held.low[0] == 1.0
    kept = seen["bytes kept of an episode between reading and asking"]["small"]
    assert [(line.name, line.x, line.y) for line in kept][1] == ("tmem", [4096.0], [0.5])


def objectives(run, tmp_path, name, n, model="small"):
    folder = run(name, model, scores=(("full", 2), ("tmem", 1)), task="search", objectives=n, turns=3 * n, answer_tokens=16 * n)
    file = tmp_path / name / "results.json"
    results = json.loads(file.read_text())
    counted = {"em": 1.0, "counted": 0.5, "recall": 0.25, "turns": 6.0, "searches": 4.0, "mem1_peak": 300.0, "dependency": 1e5}
    for found in results["methods"].values():
        found["search"] = summary([counted, counted | {"em": 0.0}])
        found["peak_tokens"] = 100 * n
    write_json(file, results)
    return folder


def test_searches_are_curves_over_the_questions_at_once_and_no_ranking(run, tmp_path, monkeypatch):
    for n in (8, 2):
        objectives(run, tmp_path, f"s{n}", n)
    found, seen = drawn(monkeypatch, tmp_path, ["s8", "s2"])
    assert [p["title"] for p in found] == [
        "multi-objective search, 8 questions at once", "multi-objective search, 2 questions at once",
        "multi-objective search: against the number of questions at once",
    ]  # fmt: skip
    assert "sessions" not in seen and "headline" not in found[2]
    assert [(line.name, line.x) for line in seen["questions asked at once"]["small"]] == [("full", [2, 8]), ("tmem", [2, 8])]
    rows = table(found[2], "By questions at once")
    assert [(r["method"], r["at once"], r["longest, tokens"]) for r in rows] == [
        ("full", "2", "200"), ("full", "8", "800"), ("tmem", "2", "200"), ("tmem", "8", "800"),
    ]  # fmt: skip
    row = table(found[0], "Searching")[0]
    assert (row["searches"], row["turns"], row["evidence found"], row["MEM1's peak"]) == ("4.0", "6.0", "25.0%", "300")
    assert "sum of F1" in table(found[0], "Scores")[0]
    page, _ = report(tmp_path / "s8", tmp_path / "s2", out=tmp_path / "page.html")
    assert "A curve, no ranking" in page.text


def test_searches_with_other_turns_for_each_question_are_other_curves(run, tmp_path):
    objectives(run, tmp_path, "a", 2)
    objectives(run, tmp_path, "b", 4)
    run("c", scores=(("full", 2),), task="search", objectives=4, turns=40, answer_tokens=64)
    a, b, c = (comparison.read(tmp_path / n) for n in "abc")
    assert a.family == b.family != c.family and a.protocol != b.protocol
    assert comparison.sweeps([a, c]) == [] and len(comparison.sweeps([a, b, c])) == 1


def test_longmemeval_has_its_official_aggregates(run, tmp_path):
    run("a", task="longmemeval")
    (part,) = parts(tmp_path, "a")
    row = table(part, "F1: the official aggregates")[1]
    found = json.loads((tmp_path / "a/results.json").read_text())["methods"]["tmem"]["aggregates"]["f1"]
    assert row["method"] == "tmem" and row["task average"] == f"{found['task_average']:.3f}"
    assert (row["overall"], row["a"], row["b"]) == ("0.500", "1.000", "0.000") and row["abstention"] == "0.500"


def test_operations_and_longest_prompts_stand_with_the_costs(run, tmp_path):
    run("a")
    assert "FLOP" not in table(parts(tmp_path, "a")[0], "What it takes")[0]
    file = tmp_path / "a/results.json"
    results = json.loads(file.read_text())
    results["methods"]["tmem"]["flops"] = 3.2e14
    write_json(file, results)
    none, tmem = table(parts(tmp_path, "a")[0], "What it takes")
    assert (none["FLOP"], tmem["FLOP"], tmem["longest, tokens"], tmem["kept, bytes"]) == ("", "3.20e+14", "60", "4,096")


def test_names_of_runs_differ():
    made = [
        runs.Run(Path(f"out/{folder}"), {"config": {"model": model, "preset": preset}})
        for folder, model, preset in (("a", "/x/y/rl", "long"), ("a", "/x/y/rl", "short"), ("b", "/x/y/rl", "short"))
    ]
    assert list(runs.named(made[:1])) == ["y/rl"]
    assert list(runs.named(made[:2])) == ["y/rl, long", "y/rl, short"]
    assert list(runs.named(made)) == ["y/rl, long, a", "y/rl, short, a", "y/rl, short, b"]
    assert list(runs.named(made[:1] * 2)) == ["y/rl, long, a (1)", "y/rl, long, a (2)"]


def test_bins_are_closed_at_both_ends_and_hold_every_value_once():
    assert comparison.bins_of([0, 0.19, 0.2, 0.99, 1.0], [0, 0.2, 0.4, 0.6, 0.8, 1.0]) == [0, 0, 1, 4, 4]
    assert comparison.bins_of([2, 3, 4], [2, 3, 4]) == [0, 1, 1]
    assert pictures.places([32, 19, 19, 27]) == (["19", "27", "32"], [2, 0, 0, 1])
    names, bins = pictures.places(list(range(1, 101)))
    assert names == ["1 to 20", "21 to 40", "41 to 60", "61 to 80", "81 to 100"]
    assert [bins.count(i) for i in range(5)] == [20] * 5
    names, bins = pictures.places([1] * 90 + list(range(2, 12)))
    assert sorted(set(bins)) == list(range(len(names))) and names[-1].endswith("to 11")


@pytest.mark.parametrize(
    "scale, x", [("log", [0, 5, 5e6]), ("log", [30, 31]), ("log", [0]), ("doubling", [1, 16]), ("linear", [0, 1])]
)
def test_pictures_are_drawn_whatever_the_range(tmp_path, scale, x):
    several = pictures.Line("tmem", x, [0.5] * len(x), [0.4] * len(x), [0.6] * len(x))
    lines = [several, pictures.Line("new", x[:1], [0.0], [0.0], [0.1])]
    for count in (1, 5):
        file = tmp_path / f"{count}.svg"
        pictures.draw(file, {f"run {i}": lines for i in range(count)}, "x", "y", ticks=(), scale=scale, top=None)
        assert file.read_text().rstrip().endswith("</svg>")


def test_published_figures_carry_source_and_protocol():
    published = comparison.tomllib.loads((Path(comparison.__file__).parent / "published.toml").read_text())
    assert published
    for entries in published.values():
        for entry in entries:
            assert tuple(entry) == grids.PUBLISHED and all(entry.values())


def test_published_figures_stand_in_no_table_of_ours(run, tmp_path):
    run("a", task="locomo")
    (part,) = parts(tmp_path, "a")
    theirs = {r["method"] for r in table(part, "Published by others, by other protocols: not to be ranked")}
    ours = {cell for g in (*part["before"], *part["after"][:-1]) for row in g.rows for cell in row}
    assert len(theirs) >= 5 and not theirs & ours and not any(name in part["headline"] for name in theirs)


def test_other_data_in_a_benchmark_s_format_have_no_part_in_its_name(run, tmp_path):
    run("a", task="locomo", called="REALTALK (LoCoMo's format)")
    (part,) = parts(tmp_path, "a")
    assert part["title"] == "REALTALK (LoCoMo's format)"
    assert not any("Published" in g.title for g in part["after"])


def test_what_cannot_be_reported_is_one_sentence(run, tmp_path):
    folder = tmp_path / run("a")
    for broken, sentence in (
        ("{", "not JSON"),
        ('{"task": "stream", "config": {"model": "m", "seed": 0, "episodes": 3}}', "holds no answers yet"),
        ('{"task": "stream", "config": {"model": "m"}}', "config lacks seed, episodes"),
        ('{"task": "foo", "config": {}}', "task is 'foo'; expected one of stream, "),
    ):
        (folder / "results.json").write_text(broken)
        found = CliRunner().invoke(cli.main, ["report", str(folder)])
        assert found.exit_code == 2 and sentence in found.output and not (folder / "report.html").exists()
    run("whole")
    found = CliRunner().invoke(cli.main, ["report", str(tmp_path / "whole"), "--out", str(tmp_path / "page.md")])
    assert found.exit_code == 2 and "page.html" in found.output and not (tmp_path / "page.md").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    assert "give one" in CliRunner().invoke(cli.main, ["report", str(tmp_path / "x"), str(tmp_path / "y")]).output
    found = CliRunner().invoke(cli.main, ["report", str(tmp_path / "x"), "--strip", str(tmp_path / "z")])
    assert found.exit_code == 2 and "holds no results.json" in found.output and not (tmp_path / "z").exists()
    run("bare", bare=True)
    found = CliRunner().invoke(cli.main, ["report", str(tmp_path / "bare"), "--strip", str(tmp_path / "z")])
    assert found.exit_code == 2 and "holds no answers.jsonl" in found.output and not (tmp_path / "z").exists()
