"""`tmem bench`: the form of what it writes, and that a provider that computes something else is never timed."""

import json
from collections import defaultdict

import pytest
import torch
from click.testing import CliRunner
from tmem.bench import lora, measure, step
from tmem.bench.measure import Provider, Settings, WrongNumbers

from tmem import bench, cli

PROVIDERS = {
    "lora": ({"base", "tmem", "peft loop", "padded bmm"}, "base"),
    "step": (
        {"tmem bank_step_", "torch fused, one group per adapter", "torch fused, one flat tensor"},
        "torch fused, one flat tensor",
    ),
}


def run(*arguments):
    result = CliRunner().invoke(cli.main, ["bench", "--quick", "--threads", "1", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("names", [["lora"], ["step"], []])
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
    assert {key[0] for key in groups} == set(names or PROVIDERS)
    assert {key[2] for key in groups if key[0] == "lora"} == ({"float32", "bfloat16"} if "step" not in names else set())
    for (name, *_), rows in groups.items():
        expected, ratio_to = PROVIDERS[name]
        assert rows.keys() == expected
        for row in rows.values():
            assert 0 < row["min"] <= row["p20"] <= row["ms"] <= row["p80"]
            assert row["ratio_to"] == ratio_to and row["ratio"] == row["ms"] / rows[ratio_to]["ms"]
            assert row["bytes"] > 0 and row["flops"] > 0 and row["of_copy"] > 0 and row["copy_gb_per_s"] > 0


def test_an_unknown_bench_is_refused():
    assert CliRunner().invoke(cli.main, ["bench", "decode"]).exit_code == 2
    with pytest.raises(ValueError, match="expected lora or step, got 'decode'"):
        bench.run(["decode"])


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
    ways["tmem bank_step_"] = step._bank(case, "cpu", ways["tmem bank_step_"].oracle)
    with pytest.raises(WrongNumbers, match="param of tmem bank_step_"):
        measure.measured("step", case, ways, step.RATIO_TO, Settings.quick(), "cpu")


def test_nan_is_wrong(monkeypatch):
    untimed(monkeypatch)
    case = step.cases(quick=True)[0]
    nan = {"param": torch.full((case.slots, case.width), float("nan"))}
    ways = {"x": Provider(lambda: None, lambda: nan, step.oracle(case, "cpu"))}
    with pytest.raises(WrongNumbers, match="param of x is nan"):
        measure.measured("step", case, ways, "x", Settings.quick(), "cpu")
