"""The part of `make gpu` that times an online update captured and launched, here at fixed addresses and step by step."""

import pytest

from tmem.agent import captured_update
from tmem.bench import captured
from tmem.bench.measure import Settings


def test_both_ways_are_timed():
    told = []
    found = captured.measure_captured("cpu", Settings(rounds=2, warmup=1), lambda *now: told.append(now), quick=True)
    (case,) = captured.cases(True)
    assert told == [(f"captured {case.name}", 0, 1)]
    assert [(row["case"], row["provider"]) for row in found["rows"]] == [(case.name, "launched"), (case.name, "captured")]
    assert all(row["ms"] > 0 and row["ratio_to"] == "launched" and row["flops"] > 0 for row in found["rows"])


def test_what_is_not_captured_is_not_timed(monkeypatch):
    monkeypatch.setattr(captured_update, "KEPT", 0)
    with pytest.raises(RuntimeError, match="no step was captured"):
        captured.measure_captured("cpu", Settings.quick(), lambda *_: None, quick=True)


def test_what_is_timed_is_within_what_is_captured():
    for case in captured.cases(False):
        tokens = case.work.tokens // captured.EPOCHS
        assert 2 * tokens * dict(case.sizes)["hidden_size"] ** 2 < captured_update.WORK
