"""`tmem bench`: the form of what it writes, and that a provider that computes something else is never timed."""

import json
from collections import defaultdict

import gpu_chart
import pytest
import table
import torch
from click.testing import CliRunner

from tmem import bench, cli
from tmem.bench import engines, episodes, lora, measure, plots, promises, show, step, studies, targets
from tmem.bench.measure import Provider, Settings, WrongNumbers
from tmem.study import init, soak
from tmem.testing import PROMISES

PROVIDERS = {
    "lora": ({"base", "tmem", "peft loop", "padded bmm", "grouped stacked", "grouped bank"}, "base"),
    "bits": ({"base", "tmem", "tmem, whole weights"}, "base"),
    "overhead": ({"base", "tmem", "ops alone"}, "base"),
    "experts": ({"base", "tmem", "loop", "padded bmm", "grouped stacked"}, "base"),
    "model": ({"base", "tmem", "padded bmm"}, "base"),
    "update": ({"plain", "trunk once", "logits at labels", "tmem: both"}, "plain"),
    "branches": ({"tmem", "torch sdpa, masked", "torch sdpa, text by text"}, "tmem"),
    "step": ({"tmem", "tmem, sums to make", "group per slot", "flat", "flat, zeroing"}, "flat"),
    "fused": ({"tmem", "gram, then step"}, "gram, then step"),
    "idle": ({"tmem", "tmem, no idle rows"}, "tmem, no idle rows"),
    "decode": ({"base", "transformers' layers", "tmem"}, "base"),
    "loop": ({"base", "tmem", "base, not captured", "tmem, not captured"}, "base"),
    "attend": ({"tmem", "tmem, alike", "torch sdpa, folded", "torch sdpa, enable_gqa"}, "tmem"),
    "token": ({"tmem", "apart"}, "apart"),
    "forward": ({"base", "tmem", "grouped bank", "vllm", "sglang"}, "base"),
}


def run(*arguments):
    result = CliRunner().invoke(cli.main, ["bench", "--quick", "--threads", "1", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("names", [["step", "forward"], []])
def test_the_json_holds_every_provider_of_every_case(names, tmp_path):
    file = tmp_path / "new" / "bench.json"
    threads = torch.get_num_threads()
    assert str(file) in run(*names, "--json", file).replace("\n", "")
    assert torch.get_num_threads() == threads
    found = json.loads(file.read_text())
    assert found["machine"]["cores"] and found["versions"]["torch"] == torch.__version__ and "commit" in found
    assert found["settings"] == {"quick": True, "threads": 1, "rounds": 3, "warmup": 1}
    groups = defaultdict(dict)
    for row in found["rows"]:
        groups[row["bench"], row["case"], row["dtype"], row["device"]][row["provider"]] = row
    assert {key[0] for key in groups} == {b for name in names or bench.BENCHES for b in bench.BENCHES[name]}
    types = {"float32", "bfloat16"}
    assert {key[2] for key in groups if key[0] == "lora"} == (types if "step" not in names else set())
    assert found["ceilings"].keys() == {"copy GB/s", "float32 GF/s", "float32 medium GF/s", "bfloat16 GF/s"}
    assert file.with_name("bench-roofline.png").read_bytes().startswith(b"\x89PNG")
    for (name, *_), rows in groups.items():
        expected, ratio_to = PROVIDERS[name]
        assert rows.keys() == expected
        for row in rows.values():
            if row["provider"] in engines.ENGINES:
                assert row["absent"] and "ms" not in row
                continue
            assert 0 < row["min"] <= row["p20"] <= row["ms"] <= row["p80"]
            assert row["ratio_to"] == ratio_to and row["ratio"] > 0
            assert row["provider"] != ratio_to or row["ratio"] == 1
            assert row["bytes"] > 0 and row["flops"] > 0 and row["of_copy"] > 0 and row["copy_gb_per_s"] > 0


def test_an_unknown_bench_is_refused():
    assert CliRunner().invoke(cli.main, ["bench", "lars"]).exit_code == 2
    with pytest.raises(ValueError, match="expected lora or step or decode or forward or branches, got 'lars'"):
        bench.run(["lars"])


@pytest.mark.parametrize("name", bench.STUDIES)
def test_a_study_leaves_its_rows_and_pictures(name, tmp_path, capfd):
    file = tmp_path / "found.json"
    said = run(name, "--json", file).replace("\n", "")
    assert "gemm_4bit" not in capfd.readouterr().err  # of processes that a study starts
    found = json.loads(file.read_text())
    assert found["settings"] == {"quick": True, "threads": 1} and found["rows"] and "commit" in found
    pictures = sorted(tmp_path.glob("found-*.png"))
    assert bool(pictures) == (name != "promises")
    assert all(picture.read_bytes().startswith(b"\x89PNG") and picture.name in said for picture in pictures)
    if name == "rsvd":
        assert {"tmem", "svd_lowrank loop", "svd_lowrank batched", "pissa", "linalg.svd loop", "Gram and eigh loop",
                "scikit-learn loop"} == {r["way"] for r in found["rows"]}  # fmt: skip
        for row in found["rows"]:
            assert 0.8 < row["energy"][1] <= row["energy"][0] < 1 + 1e-5 and 0 < row["min"] <= row["ms"]
        assert found["rows"][0]["ratio"] == 1 and found["rows"][0]["energy"][0] > 0.999
    elif name == "train":
        assert [r["part"] for r in found["rows"]] == [*bench.train.PARTS, "whole"]
        assert 0 < found["outside"] < 1
        *parts, whole = found["rows"]
        for row in found["rows"]:
            assert row["tmem"] > 0 and row["plain"] > 0 and row["ratio"] > 0 and row["least"] >= 0
        for way in ("tmem", "plain"):
            for i, seconds in enumerate(whole[f"{way}_rounds"]):
                assert 0 < sum(r[f"{way}_rounds"][i] for r in parts) <= seconds  # parts follow one another inside the whole
        assert whole["least"] == pytest.approx(sum(r["least"] for r in parts))
    elif name == "eval":
        for row in found["rows"]:
            assert row["episodes"] > 1 and row["ratio"] == pytest.approx(row["apart"] / row["together"])
            assert row["together_an_hour"] == pytest.approx(3600 * row["episodes"] / row["together"])
    elif name == "serve":
        phases = [("mixed", ("tmem", "straightforward")), ("answers", ("tmem", "base"))]
        expected = {(server, phase, users) for users in (1, 3) for phase, servers in phases for server in servers}
        expected |= {(server, "arrivals", 3) for server in ("tmem", "straightforward")}
        assert {(r["server"], r["phase"], r["users"]) for r in found["rows"]} == expected
        for row in found["rows"]:
            assert row["a_second"] == pytest.approx(row["requests"] / row["seconds"])
            assert row["requests"] == row["users"] * (2 if row["phase"] == "answers" else 3)
            assert all(0 < times["p50"] <= times["p95"] <= times["p99"] for times in row["total"].values())
        assert [b["server"] for b in found["beside"]] == list(found["work"]["servers"]) == ["tmem", "straightforward"]
        assert all(0 < b["step"] < b["write"] and b["writes"] > 0 for b in found["beside"])
        assert all(s["resident"] > 0 and s["steps"] > 0 for s in found["work"]["servers"].values())
        assert found["work"]["alike"] >= 0.8
    elif name == "promises":
        broke = {(r["way"], r["promise"]): r["broke"] for r in found["rows"]}
        names = ["tmem", "PEFT, one by one", "PEFT, mixed batch", "grouped_mm", "padded bmm"]
        assert list(broke) == [(way, promise) for way in names for promise in promises.TRIED] and "holds" in said
        assert not any(broke["tmem", promise] for promise in PROMISES)
        assert broke["PEFT, mixed batch", "idle"] == "not given"
        assert not any(broke[way, promise] for way in names for promise in ("values", "ranks", "base"))
    elif name == "soak":
        names = ["default", "rehearse 0", "rehearse 16", "lr 0.03", "lr 0.015"]
        assert list(found["work"]["settings"]) == names and found["work"]["settings"]["rehearse 16"]["rehearse"] == 16
        places = [(r["setting"], r["chain"], r["after"]) for r in found["rows"]]
        assert sorted(places) == sorted((n, c, after) for n in names for c in (0, 1) for after in (1, 2, 3))
        for row in found["rows"]:
            told = soak.chain(row["chain"], row["after"])
            assert sum(a["pairs"] for a in row["asked"]) == len({f.about for facts in told for f in facts})
            assert all(0 <= a[way] <= a["pairs"] and 0 <= a["age"] < row["after"] for a in row["asked"] for way in soak.WAYS)
            assert sum(row["never"].values()) == soak.STRANGERS * row["after"]
            assert row["norm"] > 0 and row["nll"] > 0 and row["seconds"] > 0 and row["undone"] == 0
    else:
        assert {r["phase"] for r in found["rows"]} == {"tuning", "judging"}
        assert {r["optimizer"] for r in found["rows"]} == {"adamw", "sgd"}
        start = [r for r in found["rows"] if r["steps"] == 0]
        assert start and all(r["norm"] == 0 and r["recall"] < 1 for r in start)
        assert all(0 < r["own"] <= 1 and 0 <= r["top"] < 1 for r in found["energy"])


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    taught, calls = init._taught, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return taught(*arguments)

    monkeypatch.setattr(init, "_taught", interrupted)
    design = init.Design(("sigma",), (0.01,), (1,), 1, 1, 2, (), ())
    monkeypatch.setattr(init.Design, "quick", lambda: design)
    monkeypatch.setattr(init, "energy", lambda *_: [])
    file, parts = tmp_path / "init.json", tmp_path / ".init.json.parts"
    with pytest.raises(KeyboardInterrupt):
        show.bench(("init",), file, quick=True, threads=1)
    assert parts.exists() and not file.exists()
    monkeypatch.setattr(studies, "draw", lambda *_: [])
    show.bench(("init",), file, quick=True, threads=1)
    assert len(calls) == 3 and file.exists() and not parts.exists()
    assert {r["phase"] for r in json.loads(file.read_text())["rows"]} == {"tuning", "judging"}


def test_a_study_runs_by_itself():
    with pytest.raises(ValueError, match="rsvd, init, train, eval, serve, soak, promises run by themselves, got lora, rsvd"):
        show.bench(("lora", "rsvd"), None, quick=True, threads=1)


def test_the_reach_is_chosen_by_late_recall_of_the_tuning_seeds():
    def row(phase, reach, steps, recall, swept=True):
        return {"phase": phase, "optimizer": "adamw", "init": "none", "reach": reach, "steps": steps, "recall": recall,
                "swept": swept, "seed": 0}  # fmt: skip

    rows = [row("tuning", 0.1, 2, 1.0), row("tuning", 0.1, 16, 0.2), row("tuning", 0.2, 2, 0.0), row("tuning", 0.2, 16, 0.5)]
    rows += [row("judging", 0.1, 16, 1.0), row("tuning", 0.3, 16, 1.0, swept=False), row("tuning", 0.4, 16, 0.5)]
    assert init.best_reach(rows, "none") == 0.2
    assert init.interval([1.0, 1.0]) == (1, 1, 1)
    mean, low, high = init.interval([0, 1] * 50)
    assert mean == 0.5 and 0.38 < low < 0.43 and 0.57 < high < 0.62


def test_without_a_name_the_json_goes_to_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("step", "--json")
    assert (tmp_path / "bench.json").exists()


@pytest.mark.parametrize("name", ["model", "update", "decode"])
def test_a_model_with_other_numbers_is_never_timed(name, monkeypatch):
    untimed(monkeypatch)
    module = {"model": bench.model, "update": bench.update, "decode": bench.decode}[name]
    case = module.cases(quick=True)[-1]
    ways = module.providers(case, "cpu")
    ours = next(p for label, p in ways.items() if label.startswith("tmem"))
    assert ours.oracle.keys() == ours.results().keys()
    for what in ours.oracle:
        wrong = {**ours.results(), what: ours.results()[what] * 1.5}
        other = Provider(ours.call, lambda wrong=wrong: wrong, ours.oracle, tolerance=ours.tolerance)
        with pytest.raises(WrongNumbers, match=f"{what} of tmem is .* nothing was timed"):
            measure.measured(name, case, {**ways, "tmem": other}, module.RATIO_TO, Settings.quick(), "cpu")


def test_targets_are_read_from_the_rows():
    row = {"bench": "step", "case": "32 adapters r=8, all linear layers", "dtype": "float32", "device": "cpu", "sweep": ""}
    rows = [{**row, "provider": p, "ratio": ratio} for p, ratio in (("tmem", 1.0), ("flat", 1.0), ("group per slot", 2.0))]
    found = {aim["work"]: (aim["reached"], aim["met"]) for aim in targets.reached(rows)}
    assert found == {
        "AdamW, 32 slots, all linear layers: speed-up over a group per slot": (2.0, False),
        "the same over one flat tensor": (1.0, True),
    }


def test_a_ratio_is_taken_round_by_round(monkeypatch):
    """A machine that gets ten times slower half-way changes no ratio."""
    times = {"copy": [1.0] * 4, "base": [1.0, 1.0, 10.0, 10.0], "tmem": [1.5, 1.5, 15.0, 15.0]}
    monkeypatch.setattr(measure, "_in_turns", lambda *_: dict(times))
    case = step.cases(quick=True)[0]
    ways = {name: Provider(lambda: None, dict, {}) for name in ("base", "tmem")}
    assert [r["ratio"] for r in measure.measured("step", case, ways, "base", Settings.quick(), "cpu")] == [1, 1.5]


def test_both_pictures_are_drawn(tmp_path):
    row = {"provider": "tmem", "dtype": "float32", "flops": 10, "bytes": 20, "ms": 1.0, "ratio": 1.5, "bench": "lora"}
    rows = [{**row, "case": "8→9 r=4 2x3", "sweep": sweep} for sweep in ("", "adapters", "tokens", "rank")]
    limits = {"copy GB/s": 60, "float32 GF/s": 200, "float32 medium GF/s": 400, "bfloat16 GF/s": 900}
    drawn = plots.draw({"rows": rows, "ceilings": limits}, tmp_path / "x.json")
    assert [path.name for path in drawn] == ["x-roofline.png", "x-scaling.png"] and all(p.exists() for p in drawn)


def test_the_picture_of_a_gpu_is_drawn_from_what_make_gpu_wrote(tmp_path):
    for file in sorted((table.ROOT / "results" / "gpu").glob("*.json")):
        found = json.loads(file.read_text())
        assert found["tests"]["status"] == 0 == found["sanitizer"]["status"] and not found["failed"]
        assert gpu_chart.draw(found, tmp_path / "x.png").stat().st_size > 10_000


def untimed(monkeypatch):
    monkeypatch.setattr(measure, "_in_turns", lambda *_: pytest.fail("timed although a provider is wrong"))


@pytest.mark.parametrize("provider", sorted(PROVIDERS["lora"][0] - {"base"}))
@pytest.mark.parametrize("wrong", ["y", "dx", "db"])
@pytest.mark.parametrize("case", lora.cases(quick=True), ids=lambda c: str(c.dtype))
def test_a_lora_provider_with_other_numbers_is_never_timed(case, provider, wrong, monkeypatch):
    untimed(monkeypatch)
    ways = lora.providers(case, "cpu")
    right = ways[provider].results()
    assert right.keys() == {"y", "dx", "db"}
    right[wrong][0] *= 1.5
    ways[provider] = Provider(ways[provider].call, lambda: right, ways[provider].oracle)
    with pytest.raises(WrongNumbers, match=f"{wrong} of {provider} is .* nothing was timed"):
        measure.measured("lora", case, ways, "base", Settings.quick(), "cpu")


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_an_adapter_left_out_or_unscaled_is_seen(scale, monkeypatch):
    untimed(monkeypatch)
    case = lora.cases(quick=True)[0]
    ways = lora.providers(case, "cpu")
    monkeypatch.setattr(lora, "SCALE", scale)
    with pytest.raises(WrongNumbers, match="peft loop"):
        measure.measured("lora", case, ways, "base", Settings.quick(), "cpu")


@pytest.mark.parametrize("name, other", [("LR", 2e-3), ("BETA1", 0.8), ("BETA2", 0.99), ("DECAY", 0.0)])
def test_a_step_with_another_setting_is_never_timed(name, other, monkeypatch):
    untimed(monkeypatch)
    case = step.cases(quick=True)[0]
    ways = step.providers(case, "cpu")
    monkeypatch.setattr(step, name, other)
    ways["tmem"] = step.bank_provider(case, "cpu", ways["tmem"].oracle)
    with pytest.raises(WrongNumbers, match="param of tmem"):
        measure.measured("step", case, ways, step.RATIO_TO, Settings.quick(), "cpu")


def test_nan_is_wrong(monkeypatch):
    untimed(monkeypatch)
    case = step.cases(quick=True)[0]
    nan = {"param": torch.full((case.slots, case.width), float("nan"))}
    ways = {"x": Provider(lambda: None, lambda: nan, step.oracle(case, "cpu"))}
    with pytest.raises(WrongNumbers, match="param of x is nan"):
        measure.measured("step", case, ways, "x", Settings.quick(), "cpu")


def test_the_tables_of_the_document_are_those_of_the_committed_runs():
    """After a new run: python tools/table.py"""
    for document in table.DOCUMENTS:
        assert table.filled(document.read_text()) == document.read_text(), document.name


def test_an_episode_that_runs_otherwise_among_others_is_caught(monkeypatch):
    told = episodes._told
    monkeypatch.setattr(episodes, "_told", lambda rollout: (told(rollout)[0], [float(len(calls.append(1) or calls))], []))
    calls = []
    with pytest.raises(WrongNumbers, match="differs from the same one run alone"):
        bench.run_study("eval", quick=True, threads=1)


def test_what_rounding_in_bf16_may_do_is_less_than_another_memory_does():
    said, exact = [1, 2], [1.25, 1.0, 0.5]
    episodes._check([(said, exact, [9.0])], [(said, exact, [9.0])], 0.0)
    for other in ([x + 0.5 for x in exact], [float("nan")] * 3, exact[:2]):
        with pytest.raises(WrongNumbers, match="differs from the same one run alone"):
            episodes._check([(said, other, [])], [(said, exact, [])], episodes.ROUNDING)
    with pytest.raises(WrongNumbers):
        episodes._check([(said, [1.25 + 1e-15, 1.0, 0.5], [])], [(said, exact, [])], 0.0)
    with pytest.raises(WrongNumbers):
        episodes._check([(said, exact, [9.0])], [(said, exact, [9.5])], 0.0)


def test_a_chain_is_of_conversations_between_different_people():
    told = soak.chain(0, 30)
    assert len(told) == 30 and told == soak.chain(0, 30) and told[:4] == soak.chain(0, 4) and told != soak.chain(1, 30)
    people = [{f.person for facts in told[at : at + 3] for f in facts} for at in range(0, 30, 3)]
    assert sum(map(len, people)) == len(set.union(*people))
    said = {(f.topic, f.person) for facts in told for f in facts}
    for facts in told:
        assert len(facts) == 5
        for f in facts:
            assert f.person in f.taught and f.person in f.plain and f.person in f.oblique and f.person not in f.stranger
            assert len({f.taught, f.plain, f.oblique, f.stranger}) == 4
            assert any(f.plain.replace(f.person, name) == f.stranger and (f.topic, name) not in said
                       for name in soak.stream.language_of("dev").names)  # fmt: skip
    every = [f.about for facts in told for f in facts]
    assert len(every) - len(set(every)) == 2 * 10
    with pytest.raises(ValueError, match="dev has names for 1 to 30 writes, got 31"):
        soak.chain(0, 31)


def test_answers_of_a_soak_are_judged_by_what_is_true_by_then():
    def fact(person, value):
        return soak.Fact(person, "dog", "value", (value,), "", "", "", "")

    told = ((fact("Ann", "Rex"), fact("Bob", "Spot")), (fact("Ann", "Old Tom"), fact("Cy", "Rex")))
    ann, bob, cy = ["old tom", "Spot", "x"], ["a Rex.", "Spot", "y"], ["Rex", "unknown", "Rex"]
    row = soak._judged(told, iter([*ann, *bob, *cy, "Unknown.", "It is Rex", "no", "Old Tom"]))
    assert row["asked"] == [
        {"age": 0, "pairs": 2, "taught": 2, "plain": 0, "oblique": 1},
        {"age": 1, "pairs": 1, "taught": 0, "plain": 1, "oblique": 0},
    ]
    assert row["updates"] == {"new": 0, "stale": 0, "mixed": 0, "other": 1}
    assert row["swapped"] == pytest.approx(1 / 3) and row["never"] == {"unknown": 1, "intruded": 2, "other": 1}


@pytest.mark.parametrize(
    "said, kind",
    [("Night Nurse.", "new"), ("porter", "stale"), ("a porter", "stale"), ("night porter", "mixed"),
     ("the porter nurse", "mixed"), ("night watch", "other"), ("unknown", "other")],
)  # fmt: skip
def test_an_answer_to_what_changed_is_new_stale_or_mixed(said, kind):
    assert soak.updated(said, "night nurse", ["porter"]) == kind


def test_of_a_soak_settings_are_read_as_those_of_a_preset():
    assert soak.parsed("rehearse=0,lr=0.02") == {"rehearse": 0, "lr": 0.02}
    cases = {
        "rehearse": "expected a setting such as rehearse=0,lr=0.02, got 'rehearse'",
        "rehears=3": "has no setting 'rehears'",
        "lr='a'": "lr: expected a number",
    }
    for wrong, words in cases.items():
        result = CliRunner().invoke(cli.main, ["bench", "soak", "--quick", "--with", wrong])
        assert result.exit_code == 2 and words in " ".join(result.output.split())
    result = CliRunner().invoke(cli.main, ["bench", "step", "--quick", "--with", "lr=1"])
    assert result.exit_code == 2 and "--with has no meaning for bench step; leave it out." in result.output
