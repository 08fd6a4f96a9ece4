"""The tournament without a GPU: a kernel and a timer that are made up, who wins, who may not take part, and the card's file."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gated
import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")

from tmem.bench import gate, kernels, measure, token, tournament  # noqa: E402
from tmem.bench.measure import Provider, Settings, WrongNumbers, check  # noqa: E402
from tmem.triton_kernels import backward, configs, winners  # noqa: E402
from tmem.triton_kernels.configs import Config  # noqa: E402

CARD = "sm_90"
SHRINK, BACKWARD = ("shrink", 16, 16, 16), ("backward", 16, 16, 16)
LINKED = [BACKWARD, ("backward", 16, 32, 16), ("gram", 16, 32, 16), ("gram of few slots", 16, 32, 16)]


def now(place):
    return configs.chosen(CARD, *place)


class Kernel:
    """A kernel whose time in ms is `cost(configuration)`, and whose numbers are wrong, or which raises, where it is told."""

    def __init__(self, place, cost, wrong=lambda c: False, raises=lambda c: False):
        self.place, self.cost, self.is_wrong, self.raises = place, cost, wrong, raises
        self.ms, self.timed = 0.0, []

    def call(self):
        self.ms = self.cost(now(self.place))
        self.timed.append(now(self.place))

    def results(self):
        if self.raises(now(self.place)):
            raise RuntimeError("out of resource: shared memory, Required: 300000")
        return {"z": torch.ones(3) * (1.5 if self.is_wrong(now(self.place)) else 1.0)}

    def trials(self, place):
        oracle = {"z": torch.ones(3, dtype=torch.float64)}
        return {case: Provider(self.call, self.results, oracle) for case in gate.batches(place)}

    def timer(self, call):
        call()
        return self.ms

    def ground(self, refuse=lambda entrant: ""):
        return tournament.Ground(self.trials, lambda entrants: [refuse(e) for e in entrants], self.timer, now)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "TUNED", tmp_path / "tuned")
    monkeypatch.setattr(measure, "gc", SimpleNamespace(collect=int, disable=int, enable=int))  # a third of a second each
    configs.forget()
    yield
    configs.forget()


def preferring(**fields):
    """Each of these fields that a configuration has makes it a tenth faster than 1 ms."""
    return lambda c: 0.9 ** sum(getattr(c, name) == value for name, value in fields.items())


def test_the_fastest_wins_over_tiles_and_then_regimes():
    kernel = Kernel(SHRINK, preferring(bd=64, warps=8, stages=3, few=64))
    found = tournament.play(SHRINK, kernel.ground())
    assert found["winner"] == [winners.row(SHRINK, Config(64, 8, 3, few=64))]
    assert found["ratio"] == pytest.approx(0.9**4)
    assert [report["round"] for report in found["rounds"]] == ["tiles", "regimes"]
    tiles = found["rounds"][0]
    assert tiles["ratio"][gate.HOLDS] == 1 and len(tiles["ratio"]) == tournament.FINAL + 1
    assert len(tiles["us"]) == 18 and all(len(times) == 4 for times in tiles["us"].values())
    assert json.loads(json.dumps(found)) == found
    assert tournament.play(SHRINK, Kernel(SHRINK, kernel.cost).ground()) == found


def test_who_computes_something_else_is_never_timed():
    kernel = Kernel(SHRINK, preferring(bd=64, warps=8), wrong=lambda c: c.bd == 64)
    found = tournament.play(SHRINK, kernel.ground())
    assert [row["warps"] for row in found["winner"]] == [8] and found["winner"][0]["bd"] != 64
    assert kernel.timed and not any(c.bd == 64 for c in kernel.timed)
    reasons = found["rounds"][0]["dropped"]
    assert len(reasons) == 6 and all("off the oracle" in why and "bd=64" in name for name, why in reasons.items())


def test_who_raises_or_is_refused_is_dropped_with_the_reason():
    def refuse(entrant):
        return "spills registers: 8" if any(c.warps == 8 for c in entrant.values()) else ""

    kernel = Kernel(SHRINK, preferring(bd=256, warps=8, stages=2), raises=lambda c: c.bd == 256)
    found = tournament.play(SHRINK, kernel.ground(refuse))
    assert found["winner"] == [winners.row(SHRINK, replace(now(SHRINK), stages=2))]
    reasons = found["rounds"][0]["dropped"]
    counts = [sum(what in why for why in reasons.values()) for what in ("spills", "shared memory")]
    assert counts == [9, 3] and len(reasons) == 12
    assert not any(c.warps == 8 or c.bd == 256 for c in kernel.timed)


def test_a_gain_within_the_noise_changes_nothing():
    kernel = Kernel(SHRINK, lambda c: 0.985 if c.bd == 64 else 1.0)
    found = tournament.play(SHRINK, kernel.ground())
    assert found["winner"] == [] and found["ratio"] == 1
    assert tournament.write_winners(CARD, {"shrink": found}, {}) is None and not configs.TUNED.exists()


def test_where_what_holds_is_wrong_another_takes_its_place():
    held = now(SHRINK)
    kernel = Kernel(SHRINK, preferring(stages=2), wrong=lambda c: (c.bd, c.stages) == (held.bd, held.stages))
    found = tournament.play(SHRINK, kernel.ground())
    assert found["winner"][0]["stages"] == 2 and gate.HOLDS in found["rounds"][0]["dropped"]
    nobody = tournament.play(SHRINK, Kernel(SHRINK, preferring(), wrong=lambda c: True).ground())
    assert nobody["winner"] == [] and nobody["ratio"] == 1 and nobody["rounds"][0]["us"] == {}


def test_a_configuration_is_judged_by_all_batches():
    """Twice as fast in one of four batches and a tenth slower in three is faster, four tenths slower in three is not."""
    for slower, wins in ((1.1, True), (1.4, False)):
        kernel = Kernel(SHRINK, lambda c: 1.0)

        def trials(place, slower=slower, kernel=kernel):
            def run(i):
                def call():
                    kernel.ms = (0.5 if i == 0 else slower) if now(SHRINK).bd == 64 else 1.0

                return call

            made = kernel.trials(place)
            return {case: replace(provider, call=run(i)) for i, (case, provider) in enumerate(made.items())}

        found = tournament.play(SHRINK, replace(kernel.ground(), trials=trials))
        assert bool(found["winner"]) == wins
        if wins:
            assert found["ratio"] == pytest.approx(math.exp((math.log(0.5) + 3 * math.log(1.1)) / 4))


def test_the_steps_of_gradients_change_together():
    found = tournament.play(BACKWARD, Kernel(BACKWARD, preferring(rows=64)).ground())
    assert [tuple(row[name] for name in winners.PLACE) for row in found["winner"]] == sorted(LINKED)
    assert {row["rows"] for row in found["winner"]} == {64}
    tournament.write_winners(CARD, {"backward": found}, {})
    assert {now(place).rows for place in LINKED} == {64} and now(("gram", 16, 32, 32)).rows == 64


def test_shrink_and_gram_may_win_over_what_reads_once():
    found = tournament.play(BACKWARD, Kernel(BACKWARD, preferring(rows=0)).ground())
    assert [row["rows"] for row in found["winner"]] == [0]
    tournament.write_winners(CARD, {"backward": found}, {})
    assert now(BACKWARD).rows == 0 and now(("gram", 16, 32, 16)).rows == 128


def test_backward_without_rows_is_shrink_and_gram(monkeypatch):
    calls, dz = [], torch.zeros(1, 3, 4)
    monkeypatch.setattr(backward, "backward_kernel", None)
    monkeypatch.setattr(backward, "config", lambda *_: Config(128, rows=0))
    monkeypatch.setattr(backward, "shrink", lambda *given: calls.append("shrink") or dz)
    monkeypatch.setattr(backward, "gram", lambda *given: calls.append(given[-1]))
    dy, seg = torch.zeros(3, 8, dtype=torch.bfloat16), [torch.zeros(1, dtype=torch.int32)] * 3
    assert backward.backward(None, torch.zeros(3, 4), dy, dy, *seg, None, None) is not None
    assert calls == ["shrink", 0]  # gram leaves no slot out


def test_every_place_that_is_played_for_has_candidates():
    places = tournament.contests()
    assert len(places) == len(set(places)) and {p[0] for p in places} == configs.TABLE.keys()
    for place in places:
        assert tournament.candidates(place, now) > 3 and tournament.expected(place, now) < 60
        every = gate.batches(place) + gate.batches(place, small=True)
        if place[0] == "attend":
            assert all((case.size, case.dtype) == (place[3], torch.bfloat16) for case in every)
            continue
        assert all(case.rank == place[3] for case in every)
        few = place[0] == "gram of few slots"
        assert all((len(case.lengths) <= configs.FEW) == few for case in every)


ATTEND = ("attend", 16, 16, 128)


def test_columns_of_a_step_and_of_a_part_are_played_for():
    found = tournament.play(ATTEND, Kernel(ATTEND, preferring(bd=128, rows=512)).ground())
    assert [report["round"] for report in found["rounds"]] == ["tiles", "sums"]
    assert [(row["bd"], row["rows"]) for row in found["winner"]] == [(128, 512)]
    tournament.write_winners(CARD, {"attend": found}, {})
    assert now(ATTEND).rows == 512
    with pytest.raises(ValueError, match="rows of shrink 16 16 16 is 512"):
        configs.accepted(CARD, [winners.row(SHRINK, Config(64, rows=512))])


def test_gradients_of_a_rank_are_summed_in_one_order_on_every_architecture():
    for architecture in configs.OVERRIDES:
        rows = {place: configs.chosen(architecture, *place) for place in configs.places()}
        assert all(len(winners.orders(rows, rank)) == 1 for rank in configs.RANKS), architecture


def test_what_is_tried_computes_what_the_oracle_does_and_keeps_the_bits():
    """By the interpreter: tiles, regimes, and every way to sum a gradient, in one call or in several."""
    script = Path(__file__).parents[1] / "helpers" / "tried.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name.split(":")[0] for name in found} == {*kernels.KERNELS, "attend", "bits"}
    assert not any(found.values()), found


def test_what_a_process_has_compiled_is_seen():
    import budgets
    import targets

    before, place = gate._compiled(), ("expand", 16, 16, 16)
    launch, arguments, _ = budgets.launches()["expand bf16 bf16 16"]
    with targets.compiling(CARD) as launched, configs.instead({place: Config(64, 8, 1)}):
        launch(*arguments)
    ((_, kernel),) = launched
    assert kernel.metadata.num_warps == 8 and gate._compiled().keys() - before.keys() == {id(kernel)}


# the card's file ---------------------------------------------------------------------------------------------------------


def contest(place, config):
    return {"winner": [winners.row(place, config)]}


def test_winners_are_read_back_and_later_ones_go_before():
    one, two = Config(64, 8, 2, few=64), Config(32, 4, 3)
    expand = ("expand", 16, 32, 64)
    path = tournament.write_winners(CARD, {"a": contest(SHRINK, one)}, {"device": "a card"})
    assert path == configs.TUNED / "sm_90.json" and json.loads(path.read_text())["device"] == "a card"
    assert now(SHRINK) == one and configs.chosen("sm_100", *SHRINK) == configs.TABLE["shrink"][16, 16][0]
    tournament.write_winners(CARD, {"b": contest(expand, one), "c": contest(SHRINK, two)}, {"device": "a card"})
    assert now(SHRINK) == two and now(expand) == one and now(BACKWARD) == configs.TABLE["backward"][16, 16][0]
    assert tournament.write_winners(CARD, {"c": contest(SHRINK, two)}, {"device": "another"}) is None
    before = path.read_bytes()
    with pytest.raises(ValueError, match="rows of backward, gram, gram of few slots differ at rank 16"):
        tournament.write_winners(CARD, {"d": contest(LINKED[2], Config(64, rows=64))}, {})
    assert path.read_bytes() == before and now(SHRINK) == two


GOOD = winners.row(SHRINK, Config(64))


@pytest.mark.parametrize(
    "rows, why",
    [
        ([GOOD | {"kernel": "srhink"}], "srhink 16 16 16 is no kernel of the table"),
        ([GOOD | {"rank": 24}], "shrink 16 16 24 is no kernel"),
        ([GOOD | {"bd": 100}, GOOD | {"rank": 32, "warps": True}], "bd of shrink 16 16 16 is 100; warps of .* 32 is True"),
        ([GOOD | {"stages": 0}], "stages of shrink 16 16 16 is 0"),
        ([GOOD | {"rows": 0}], "rows of shrink 16 16 16 is 0"),
        ([GOOD, GOOD], "shrink 16 16 16 is there twice"),
        ([GOOD | {"speed": 1}], "shrink 16 16 16 has .*speed"),
        ([{k: v for k, v in GOOD.items() if k != "few"}], "shrink 16 16 16 has "),
        ([{"bd": 64}], "KeyError: 'kernel'"),
        ([winners.row(LINKED[2], Config(64, rows=64))], "differ at rank 16"),
        (7, "TypeError"),
        (None, "no table of configurations"),
    ],
)
def test_a_damaged_file_is_one_clear_error(rows, why):
    configs.TUNED.mkdir()
    file = configs.TUNED / "sm_90.json"
    file.write_text("{" if rows is None else json.dumps({"rows": rows}))
    with pytest.raises(ValueError, match=why) as error:
        now(SHRINK)
    assert str(file) in str(error.value) and "take it away" in str(error.value)
    file.unlink()
    assert now(SHRINK) == configs.TABLE["shrink"][16, 16][0]


def test_what_is_tried_holds_within_its_block_alone():
    before, one = now(SHRINK), Config(32, 2)
    with pytest.raises(RuntimeError), configs.instead({SHRINK: one}):
        assert now(SHRINK) == one
        with configs.instead({BACKWARD: one}):
            assert now(SHRINK) == one == now(BACKWARD)
        assert now(BACKWARD) != one
        raise RuntimeError
    assert now(SHRINK) == before


# who may take part -------------------------------------------------------------------------------------------------------


def test_processes_tell_of_each_and_try_again_who_fell_with_another(tmp_path):
    kinds = ["well", "raises", "faults once", "spills"]
    with gate.processes(1, 50, gated.prove) as ask:
        assert ask([(kind, str(tmp_path)) for kind in kinds]) == [
            "", "RuntimeError: out of resource: shared memory", "", "spills registers: 8",
        ]  # fmt: skip
        assert len(list(tmp_path.iterdir())) == 2  # processes
        assert ask([("well", "")]) == [""]


def test_who_gives_no_answer_is_dropped():
    with gate.processes(1, 1, gated.prove) as ask:
        assert ask([("sleeps", "")]) == ["no answer in 1 s"]


# each kernel alone -------------------------------------------------------------------------------------------------------


def test_every_kernel_alone_computes_what_the_oracle_does():
    rows = kernels.measure_alone("cpu", Settings(rounds=1, warmup=0), lambda *_: None, quick=True)
    others = ["shrink of 3", "step", "decode", "copy", "attend", *token.KINDS]
    assert [row["kernel"] for row in rows] == [*kernels.KERNELS, *others]
    assert all(row["bytes"] > 0 and row["of_copy"] > 0 for row in rows)


@pytest.mark.parametrize("op", ["lora_shrink_multi", "lora_expand_", "lora_gram_", "lora_backward_", "bank_copy_"])
def test_a_kernel_that_does_nothing_is_found_out(op, monkeypatch):
    def nothing(*given, **_):
        if op == "lora_shrink_multi":
            return torch.zeros(len(given[1]), given[0].shape[0], given[1][0].shape[1])
        return torch.zeros_like(given[1]) if op == "lora_backward_" else None

    monkeypatch.setattr(kernels, op, nothing)
    caught = 0
    for case in kernels.cases(quick=True):
        if isinstance(case, kernels.KernelCase | kernels.CopyCase):
            try:
                check("kernels", case, "tmem", kernels.providers(case, "cpu")[kernels.RATIO_TO])
            except WrongNumbers:
                caught += 1
    assert caught == (2 if op == "lora_shrink_multi" else 1)


def test_bytes_by_hand():
    """3 rows of 2 slots, rank 2, 8 columns."""
    moved = {
        "shrink": 3 * 8 * 2 + 2 * 8 * 2 + 3 * 2 * 4,
        "shrink of 3": 3 * 8 * 2 + 3 * (2 * 8 * 2 + 3 * 2 * 4),
        "expand": 2 * 3 * 8 * 2 + 2 * 2 * 8 * 2 + 3 * 2 * 4,
        "gram": 3 * 8 * 2 + 3 * 2 * 4 + 2 * 2 * 8 * 4,
        "backward": 3 * 8 * 2 + 2 * 3 * 2 * 4 + 2 * 2 * 8 * (2 + 4),
    }
    for kernel, expected in moved.items():
        assert kernels.KernelCase(kernel, 2, "", (1, 2), d=8).bytes == expected, kernel
    assert kernels.lengths(300, "128") == (128, 128, 44) and sum(kernels.lengths(4096, "ragged")) == 4096
    assert {len(kernels.lengths(rows, "16")) for rows in kernels.ROWS} == {16, 64, 256, 512}
