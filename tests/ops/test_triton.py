"""The Triton kernels without a GPU: compiled for every architecture, held to budgets, never compiled twice. For sm_90 see also
test_triton_tiles.py and test_triton_rows.py."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")

import budgets  # noqa: E402
import targets  # noqa: E402

from tmem.ops import _triton  # noqa: E402
from tmem.ops.attend import WIDEST  # noqa: E402
from tmem.testing import make_case  # noqa: E402
from tmem.triton_kernels import configs, gemm  # noqa: E402

ROWS = json.loads(budgets.FILE.read_text())
OTHERS = [name for name in targets.CUDA if name != "sm_90"]
of_this_triton = pytest.mark.skipif(
    triton.__version__ != "3.6.0", reason="another Triton has another assembler, which counts otherwise"
)


@of_this_triton
@pytest.mark.parametrize("architecture", OTHERS)
def test_the_tightest_kernels_for_another_card_are_within_their_budgets(architecture):
    """Of each kernel the types and rank that take most registers; budgets.py compiles all, for whoever changes a kernel."""
    rows = budgets.of_triton(ROWS, architecture)
    names = budgets.tightest(rows, budgets.alone)
    budgets.within(budgets.triton(architecture, names), architecture)


@of_this_triton
def test_kernels_for_an_amd_gpu_compile():
    """Of each pair of types, the kernel that takes most registers; budgets.py compiles all. None was ever run."""
    rows = budgets.of_triton(ROWS, "gfx942")
    budgets.within(budgets.triton("gfx942", budgets.tightest(rows, lambda name: " ".join(name.split(" ")[-3:-1]))), "gfx942")


@pytest.mark.parametrize("architecture", targets.SHARED)
def test_every_row_is_measured_and_fits_the_card(architecture):
    rows = budgets.of_triton(ROWS, architecture)
    assert rows.keys() == budgets.launches().keys()
    assert max(row["shared"] for row in rows.values()) <= targets.SHARED[architecture]


def test_a_layer_moves_what_it_must():
    """MB beside the frozen layer: each activation six times, B in bf16 twice, its gradient once. Within 0.1 %."""
    script = Path(__file__).parents[1] / "helpers" / "traffic.py"
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True
    )
    assert {name: sum(parts.values()) for name, parts in json.loads(done.stdout).items()} == {
        name: pytest.approx(aim, rel=1e-3) for name, aim in (("r=16 64x128", 439), ("r=16 256x16", 337), ("r=64 256x16", 744))
    }


def test_every_configuration_is_compiled():
    held = {kernel: dict.fromkeys(t, configs.RANKS[: 3 if "several" in kernel else 4]) for kernel, t in configs.TABLE.items()}
    held["attend"] = {(16, 16): configs.HEADS, (32, 32): configs.HEADS[:2]}
    rows = {(kernel, *bits, rank) for kernel, table in held.items() for bits, ranks in table.items() for rank in ranks}
    assert all(len(row) == len(held[kernel][bits]) for kernel, table in configs.TABLE.items() for bits, row in table.items())
    widest = {torch.bfloat16: (16, 16), torch.float16: (16, 16), torch.float32: (32, 32)}
    assert {dtype: held["attend"][bits][-1] for dtype, bits in widest.items()} == WIDEST
    assert all(own.keys() <= rows for own in configs.OVERRIDES.values())
    tried = {name.split(" ")[0] for name in budgets.launches()} - {"plan", "decode", "step", "copy", "norm", "glu", "rope"}
    assert {kernel.split(" ")[0] for kernel in configs.TABLE} == tried


def test_a_card_takes_the_configurations_of_its_architecture():
    cards = {
        "sm_75": "sm_89", "sm_80": "sm_80", "sm_86": "sm_89", "sm_87": "sm_89", "sm_89": "sm_89", "sm_90": "sm_90",
        "sm_100": "sm_100", "sm_103": "sm_100", "sm_120": "sm_120", "sm_121": "sm_120", "sm_200": "sm_120",
    }  # fmt: skip
    for card, architecture in cards.items():
        assert configs.architecture(targets.target(card)) == architecture, card
    for name, columns in (("sm_90", 128), ("sm_120", 32), ("gfx942", 128), ("gfx1100", 32)):
        with targets.compiling(name):
            assert configs.config("expand", torch.bfloat16, torch.float32, 40).bd == columns, name


def test_a_rank_above_the_largest_is_refused():
    with pytest.raises(ValueError, match="hold stored ranks up to 128, got 129"):
        configs.padded_rank(129)


def run_layer(case):
    """Forward and backward of one layer by the launchers."""
    rows, n = case.x.shape[0], case.w.shape[0]
    plan = _triton.lora_plan(*case.seg, rows)
    z = torch.zeros(rows, case.a.shape[1])
    dy = torch.zeros(rows, n, dtype=case.x.dtype)
    _triton.lora_linear(*case.linear, plan)
    _triton.lora_shrink_multi(case.x, [case.a] * 2, *case.seg, case.scale, plan)
    _triton.lora_backward_(torch.zeros(*case.bt.shape), z, dy, case.bt, *case.seg, case.scale, plan)
    _triton.lora_expand_(torch.zeros_like(case.x), z, case.a, *case.seg, plan)
    _triton.lora_gram_(torch.zeros(*case.a.shape), z, case.x, *case.seg, plan)
    slots, moments = len(case.rank), [torch.zeros(*case.bt.shape) for _ in range(3)]
    settings = torch.arange(slots, dtype=torch.int32), torch.zeros(slots, 6).double()
    _triton.lora_gram_step_(*moments, *settings, z, dy, *case.seg, plan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_recompilation_over_200_batches(dtype):
    """Any lengths, active slots and rank mix: after the first batch, the compiled kernels are all there are."""
    draw = random.Random(0)

    def batch(rows):
        segments = draw.randint(1, 40)
        cuts = sorted(draw.randint(0, rows) for _ in range(segments - 1))
        lengths = [b - a for a, b in zip([0, *cuts], [*cuts, rows])]
        slots = [draw.randint(-1, 15) for _ in lengths]
        ranks = [draw.randint(1, 16) for _ in range(16)]
        return make_case(lengths, slots, ranks, stored=16, k=64, n=192, dtype=dtype, factor_dtype=torch.float32)

    with targets.compiling("sm_90") as launches:
        run_layer(batch(64))
        first = {kernel.hash for _, kernel in launches}
        for _ in range(200):
            run_layer(batch(draw.choice([1, 2, 3, 15, 16, 17, 31, 64, 100, 511, 512])))
    assert len(launches) == 201 * 10 and len(first) <= 10
    assert {kernel.hash for _, kernel in launches} == first, "a batch compiled a kernel anew"


@pytest.mark.parametrize("ranks", [16, 64])
def test_one_gemm_for_sm_90_takes_matrix_units_and_tma_and_spills_nothing(ranks, monkeypatch):
    """Every tile that `make gpu` tries on Hopper."""
    monkeypatch.setattr(gemm, "programs", lambda x: 132)
    x, w, z, f = (torch.zeros(*size, dtype=torch.bfloat16) for size in ((256, 512), (512, 512), (256, ranks), (4, ranks, 512)))
    off, slot, rank = (torch.zeros(n, dtype=torch.int32) for n in (5, 4, 4))
    for tile in gemm.tiles(ranks):
        for turned in (False, True) if tile == gemm.tiles(ranks)[0] else (False,):
            with targets.compiling("sm_90") as launches:
                gemm.gemm(x, w, z.float(), f, off, slot, rank, tile, turned)
            kernel = targets.resources(launches[0][1])
            assert not kernel.local and kernel.shared <= targets.SHARED["sm_90"], (tile, kernel.local)
            assert "wgmma.mma_async" in kernel.text and "cp.async.bulk.tensor" in kernel.text, tile


def run_rows(rows, draw):
    """A decode of so many rows, and a step and copies in a bank of 16, by the launchers: any slots, flags and pairs."""
    slots, ranks = [draw.randint(-1, 15) for _ in range(rows)], [draw.randint(1, 16) for _ in range(16)]
    case = make_case([1] * rows, slots, ranks, stored=16, k=64)
    _triton.lora_decode_(torch.zeros(rows, case.bt.shape[2]), case.x, *case.decode)
    bank = [torch.zeros(16, 640) for _ in range(4)]
    step, active = torch.tensor([draw.randint(0, 99) for _ in range(16)]).int(), torch.rand(16) < draw.random()
    _triton.bank_step_(*bank, step, torch.zeros(16, 6).double(), active, bank[0].bfloat16())
    source = torch.tensor([draw.randint(-1, 15) for _ in range(rows % 16 + 1)]).int()
    _triton.bank_copy_([*bank, step], source, source)


def test_no_recompilation_of_rows():
    """From one row to 512, whatever steps and whatever is copied."""
    draw = random.Random(0)
    with targets.compiling("sm_90") as launches:
        run_rows(64, draw)
        first = {kernel.hash for _, kernel in launches}
        for _ in range(50):
            run_rows(draw.choice([1, 2, 3, 15, 16, 17, 31, 64, 100, 511, 512]), draw)
    assert len(launches) == 51 * (2 + 3 + 5)
    assert {kernel.hash for _, kernel in launches} == first, "a batch compiled a kernel anew"


def run_token(rows, columns, draw):
    """A layer's ops for one token of so many rows over so many columns of the cache, by the launchers."""
    slots, ranks = [draw.randint(-1, 15) for _ in range(rows)], [draw.randint(1, 16) for _ in range(16)]
    case = make_case([1] * rows, slots, ranks, stored=16, k=128, n=128)
    x, (a, bt, *named) = case.x, case.decode
    y, half, seen = torch.zeros_like(x), x[:, :64].contiguous(), torch.ones(rows, columns, dtype=torch.bool)
    cache, at = torch.zeros(2, rows, 2, columns, 32), torch.zeros(rows, dtype=torch.int64)
    turn = x[:, :32].contiguous()
    _triton.lora_decode_multi_([y, y], x, [a] * 2, [bt] * 2, *named)
    _triton.lora_norm(y, x, None, a[0, 0], 1e-6, 0.0, x, [a], [bt], *named)
    _triton.lora_glu(y, x, False, x, [a] * 2, [bt] * 2, *named)
    q = _triton.rope_write_(*cache, x, half, half, turn, turn, at, None, None, 1e-6, 0.0)
    _triton.attend(q, *cache, seen, 0.1)


def test_no_recompilation_of_a_token():
    """From one row to 512, and whatever the cache holds: 6 launches, of 6 kernels."""
    draw = random.Random(0)
    with targets.compiling("sm_90") as launches:
        run_token(64, 512, draw)
        first = {kernel.hash for _, kernel in launches}
        for _ in range(20):
            run_token(draw.choice([1, 2, 3, 15, 16, 17, 31, 64, 100, 512]), draw.choice([16, 496, 512, 1024]), draw)
    assert len(launches) == 21 * 6 and len(first) == 6
    assert {kernel.hash for _, kernel in launches} == first, "a batch compiled a kernel anew"


def test_where_a_row_lies_decides_nothing_in_decode():
    """Alignment chooses layouts, and so the order of sums: x and y, which the batch places, have no part in it."""
    case = make_case([1] * 4, [0, 1, -1, 0], [4, 9], k=256, n=192)
    x, y = torch.zeros(4 * 256 + 1), torch.zeros(4 * 192 + 1)
    with targets.compiling("sm_90") as launches:
        for start in (0, 1):
            rows = x[start:][: 4 * 256].view(4, 256), y[start:][: 4 * 192].view(4, 192)
            _triton.lora_decode_(rows[1], rows[0], *case.decode)
    assert len(launches) == 4 and len({kernel.hash for _, kernel in launches}) == 2


def test_the_counter_sees_a_recompilation():
    """Another width is another layer, and another kernel: the test above would notice one."""
    with targets.compiling("sm_90") as launches:
        for width in (64, 128):
            run_layer(make_case([5, 3], [0, 1], [4, 4], k=width, n=192))
    assert len(launches) == 20 and len({kernel.hash for _, kernel in launches}) > 10
