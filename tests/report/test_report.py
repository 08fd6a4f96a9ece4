"""Reports: intervals respect episodes, charts are drawn, files appear whole and hold no NaN."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tmem import machine, stats
from tmem.files import journal, objects
from tmem.report import charts, tables
from tmem.rl import record
from tmem.tasks import names

METHODS = {
    "none": {"f1": 0.0, "f1_ci": [0.0, 0.0], "em": 0.0, "em_ci": [0.0, 0.0], "n": 40},
    "tmem": {"f1": 0.75, "f1_ci": [0.6, 0.9], "em": 0.5, "em_ci": [0.5, 0.5], "n": 40},
}


def test_bootstrap_is_the_percentile_interval_of_the_mean():
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    mean, low, high = stats.bootstrap(values, range(400))
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)
    assert stats.bootstrap(values, range(400)) == (mean, low, high)
    assert stats.bootstrap(values, range(400), seed=1) != (mean, low, high)


def test_bootstrap_draws_whole_episodes():
    """Ten questions an episode, all alike: only the episodes count, so the interval is that of one question each."""
    episodes = [0.0, 1.0] * 8
    each = stats.bootstrap(episodes, range(16))
    repeated = stats.bootstrap([v for v in episodes for _ in range(10)], [str(i) for i in range(16) for _ in range(10)])
    assert repeated == pytest.approx(each)
    as_if_independent = stats.bootstrap([v for v in episodes for _ in range(10)], range(160))
    assert repeated[2] - repeated[1] > 2 * (as_if_independent[2] - as_if_independent[1])


def test_bootstrap_weighs_questions_when_episodes_differ_in_size():
    mean, low, high = stats.bootstrap([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"])
    assert (mean, low, high) == (0.25, 0.0, 1.0)
    assert stats.bootstrap([1.0, 0.0], ["a", "a"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "values, clusters, match",
    [
        ([], [], "0 values and 0 clusters"),
        ([1.0], ["a", "b"], "1 values and 2 clusters"),
        ([1.0, math.nan], ["a", "b"], "value 1 is not finite"),
    ],
)
def test_bootstrap_refuses_what_has_no_mean(values, clusters, match):
    with pytest.raises(ValueError, match=match):
        stats.bootstrap(values, clusters)


def printed(table, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(table)
    return console.export_text()


def test_a_table_has_methods_metrics_and_intervals():
    text = printed(tables.table("stream, seed 3", METHODS))
    assert "stream, seed 3" in text and "0.75 [0.60, 0.90]" in text and "40" in text
    assert "F1" in text and "EM" in text and "official" not in text
    with pytest.raises(ValueError, match="no methods"):
        tables.table("empty", {})


def test_the_tables_of_an_evaluation_fit_into_80_columns():
    metrics = list(names.METRICS)[:4]
    found = {k: v for m in metrics for k, v in ((m, 0.5), (f"{m}_ci", [0.25, 0.75]))}
    tokens = {f"{k}_tokens": 123_456 for k in ("prompt", "peak", "read", "generated", "learned")}
    one = {"tmem+retrieval": {**found, **tokens, "n": 1986, "state_bytes": 2.88e6, "flops": 1.46e14, "seconds": 1757.1}}
    assert "[0.25, 0.75]  [0.25, 0.75]" in printed(tables.table("x", one), 80)
    cell = {"mean": -0.1234, "low": -0.25, "high": -0.125}
    text = printed(tables.difference_table({m: {"tmem - none": cell} for m in metrics}, "tmem"), 80)
    assert text.count("[-0.25, -0.12]") == 4
    text = printed(tables.cost_table(one), 80)
    assert "…" not in text and text.count("123 k") == 5 and "2.88 M" in text and "1757.1" in text


def colours(path, box=(0, 0, 1, 1)):
    """How many pixels there are of each colour inside a box given as fractions (left, top, right, bottom)."""
    image = Image.open(path).convert("RGB")
    left, top, right, bottom = (int(f * size) for f, size in zip(box, image.size * 2, strict=True))
    found = image.crop((left, top, right, bottom)).getcolors(image.width * image.height)
    return {f"#{r:02X}{g:02X}{b:02X}": count for count, (r, g, b) in found}


def test_a_bar_chart_shows_each_metric_in_proportion(tmp_path):
    path = tmp_path / "new" / "chart.png"
    charts.bar_chart(path, METHODS, title="stream, 40 questions, seed 3")
    below_legend = colours(path, (0.08, 0.16, 1, 1))
    f1, em = (below_legend[names.METRICS[key][1]] for key in ("f1", "em"))
    assert f1 / em == pytest.approx(0.75 / 0.5, rel=0.05)
    assert names.METRICS["official_f1"][1] not in below_legend
    assert [file.name for file in path.parent.iterdir()] == ["chart.png"]
    with pytest.raises(ValueError, match="no methods"):
        charts.bar_chart(tmp_path / "none.png", {}, title="none")
    assert not (tmp_path / "none.png").exists()


def test_a_metric_that_some_methods_lack_leaves_gaps(tmp_path):
    one = {**METHODS, "full": {"n": 3, "judge": 0.5, "judge_ci": [0.4, 0.6], "judged": 2}}
    assert tables.metrics_of(one) == ["f1", "em", "judge"]
    row = next(line for line in printed(tables.table("x", one)).splitlines() if line.startswith(" full"))
    assert row.split() == ["full", "0.50", "[0.40,", "0.60]", "3", "2"]
    charts.bar_chart(tmp_path / "chart.png", one, title="x")
    assert colours(tmp_path / "chart.png", (0.08, 0.16, 1, 1))[names.METRICS["judge"][1]] > 100


def test_without_any_score_there_is_a_table_and_no_chart(tmp_path):
    bare = {"none": {"n": 2}, "tmem": {"n": 2}}
    assert tables.metrics_of(bare) == [] and "tmem" in printed(tables.table("x", bare))
    assert tables.difference_table({}, "tmem") is None
    with pytest.raises(ValueError, match="no method has a score"):
        charts.bar_chart(tmp_path / "chart.png", bare, title="x")
    assert not list(tmp_path.iterdir())


def test_differences_of_metrics_that_not_all_methods_have():
    cell = {"mean": 0.25, "low": 0.1, "high": 0.4}
    text = printed(tables.difference_table({"f1": {"tmem - none": cell}, "judge": {"full - tmem": cell}}, "tmem"))
    assert "+0.25 [0.10, 0.40]" in text and "-0.25 [-0.40, -0.10]" in text


def test_the_cost_table_shows_operations_where_they_were_counted():
    m = dict.fromkeys(("state_bytes", *(f"{k}_tokens" for k in ("prompt", "peak", "read", "generated", "learned"))), 0)
    text = printed(tables.cost_table({"tmem": {**m, "seconds": 1.0, "flops": 2.5e13}, "old": {**m, "seconds": 1.0}}))
    assert "TFLOP" in text and " 25 " in text
    assert "TFLOP" not in printed(tables.cost_table({"old": {**m, "seconds": 1.0}}))


def test_a_long_title_fits(tmp_path):
    charts.bar_chart(tmp_path / "short.png", METHODS, title="x")
    charts.bar_chart(tmp_path / "long.png", METHODS, title="a model with a long name, " * 8)
    short, long = (Image.open(tmp_path / f"{name}.png") for name in ("short", "long"))
    assert long.size == short.size
    assert colours(tmp_path / "long.png", (0.98, 0, 1, 0.15)).keys() == {"#FFFFFF"}, "no letter is cut at the right"


def training():
    seconds = 0
    for phase, count in (("warm", 30), ("rl", 20), ("sft", 30)):
        for step in range(count):
            seconds += 5
            yield {"phase": phase, "step": step, "seconds": seconds, "loss": 1.0} | ({"reward": 0.5} if phase == "rl" else {})
        for mode in ("greedy", "sampled"):
            yield {"phase": f"eval_{phase}", "step": 0, "seconds": seconds, "mode": mode, "f1": 0.6}


def test_a_curve_marks_its_phases(tmp_path):
    charts.curve(tmp_path / "curve.png", list(training()))
    seen = colours(tmp_path / "curve.png")
    warm, rl, sft = (seen[colour] for _, colour in record.PHASES.values())
    assert warm == pytest.approx(sft, rel=0.3) and rl == pytest.approx(warm * 2 / 3, rel=0.3)
    assert seen[names.METRICS["f1"][1]] > 100, "the reward"
    assert seen[names.METRICS["intrusion"][1]] > 100, "the evaluations"


def test_a_curve_of_a_run_that_measured_nothing_is_drawn(tmp_path):
    charts.curve(tmp_path / "curve.png", [])
    seen = colours(tmp_path / "curve.png")
    assert all(seen.get(colour, 0) < 100 for _, colour in record.PHASES.values())


def test_the_machine_names_what_a_figure_depends_on():
    found = machine.provenance()
    assert found["cpu"] and found["cores"] >= 1
    assert found["python"] == sys.version.split()[0] and {"torch", "transformers", "numpy"} <= found.keys()
    json.dumps(found, allow_nan=False)


def test_json_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    objects.write_json(path, {"name": "Zoë", "f1": 0.5})
    assert json.loads(path.read_text("utf-8")) == {"name": "Zoë", "f1": 0.5}
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"got one at methods\.tmem\.f1_ci\.1"):
            objects.write_json(path, {"methods": {"tmem": {"f1": 0.5, "f1_ci": [0.1, bad]}}})
    assert json.loads(path.read_text("utf-8"))["f1"] == 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_jsonl_names_a_broken_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert journal.read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(ValueError, match="line 2: not a JSON object"):
        journal.read_jsonl(path)


def test_importing_reports_is_cheap():
    code = "import sys, tmem.report; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
