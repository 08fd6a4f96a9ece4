"""How many kernels a GPU runs for a layer and token: counted on a CPU by helpers/launched.py."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and arm64")

import launched  # noqa: E402
import targets  # noqa: E402
import tiny_bank  # noqa: E402

from tmem.ops import _triton  # noqa: E402
from tmem.testing import make_case  # noqa: E402

MOST = 14


def test_every_op_launches_what_the_table_says():
    case = make_case([1] * 4, [0, 1, -1, 0], [4, 9], k=256, n=256, dtype=torch.bfloat16)
    x, y, factors, named = case.x, torch.zeros_like(case.x), ([case.a] * 2, [case.bt] * 2), case.decode[2:]
    one, cache = (factors[0][:1], factors[1][:1]), torch.zeros(4, 2, 9, 64, dtype=torch.bfloat16)
    heads, turn, seen = x[:, :128], x[:, :64], torch.ones(4, 9, dtype=torch.bool)
    calls = {
        "lora_plan": (*case.seg, 4),
        "lora_decode_": (y, x, *case.decode),
        "lora_decode_multi_": ([y, y], x, *factors, *named),
        "lora_norm": (y, x, None, x[0], 1e-6, 0.0, x, *one, *named),
        "lora_glu": (x, y, False, x, *factors, *named),
        "rope_write_": (cache, cache, x, heads, heads, turn, turn, case.seg_slot.long(), None, None, 0.0, 0.0),
        "attend": (x.view(4, 4, 64), cache, cache, seen, 0.1),
    }
    assert calls.keys() == launched.LAUNCHES.keys()
    for name, arguments in calls.items():
        with targets.compiling("sm_90") as launches:
            getattr(_triton, name)(*arguments)
        assert len(launches) == launched.LAUNCHES[name], name


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma3_text"])
def test_a_layer_takes_at_most_14_kernels(family):
    """All seven projections adapted; by transformers' layers it takes many more, which the counter must see."""
    found = launched.of_a_layer(family, few=True)
    assert found.total() <= MOST, found
    assert found["aten.linear.default"] == 7
    assert not found["tmem.lora_decode_.default"], "a projection's adapter takes two launches"
    assert launched.of_a_layer(family, few=False).total() > 50


@pytest.mark.parametrize("targets", [tiny_bank.MLP, ("q_proj", "v_proj"), ("gate_proj",)], ids=str)
def test_fewer_adapters_take_no_more(targets):
    assert launched.of_a_layer("llama", few=True, targets=targets).total() <= MOST


def test_the_counter_counts_what_writes_memory_and_nothing_else():
    x = torch.zeros(4, 6)
    with launched.Launched() as counted:
        x.view(2, 12).t()[1:].add_(1)
        x.t().reshape(2, 12)
        x[:, None].expand(4, 3, 6).contiguous()
        torch.empty_like(x)
    assert counted.found.total() == 3
