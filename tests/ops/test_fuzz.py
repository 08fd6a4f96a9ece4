"""2,000 random calls of the ops. More: TMEM_FUZZ=100000; another start, or one call again: TMEM_FUZZ_SEED. See fuzz.py."""

import importlib
import os
from types import SimpleNamespace

import fuzz
import pytest
import torch

from tmem import ops

pytestmark = pytest.mark.usefixtures("poison")
CALLS, SEED = int(os.environ.get("TMEM_FUZZ", 2000)), int(os.environ.get("TMEM_FUZZ_SEED", 0))
PARTS = 8 if CALLS >= 8 else 1


@pytest.mark.parametrize("part", range(PARTS))
def test_random_calls(part):
    each = CALLS // PARTS
    fuzz.run(ops, SEED + part * each, each)


def served(**others):
    return SimpleNamespace(**{**{name: getattr(ops, name) for name in fuzz.FUZZED}, **others})


@pytest.mark.parametrize(
    "name",
    ["gram_overwrites", "missing_scale", "attend_wrong_head", "decode_wraps_around", "copy_forgets_zero", "stored_rank",
     "projections_of_one", "glu_gates_the_up", "norm_without_residual", "norm_before_after_the_sum", "rope_turns_pairs",
     "rope_writes_the_last_column", "rms_norm_of_all_rows", "rotate_back_goes_on", "row_linear_drops_the_tail",
     "branches_as_one_text", "token_logp_of_the_last_but_one"],
)  # fmt: skip
def test_wrong_implementations_are_caught(name):
    """A call goes wrong within the first few hundred of the op at fault, and its seed is named."""
    module = importlib.import_module(f"wrong.{name}")
    fault = {op: getattr(module, op) for op in fuzz.FUZZED if hasattr(module, op)}
    with pytest.raises(AssertionError, match="again: TMEM_FUZZ_SEED="):
        fuzz.run(served(**fault), 0, 300, tuple(fault))


@pytest.mark.parametrize("name", fuzz.OUTPUTS)
def test_a_missing_check_is_caught(name):
    """The op without its Python checks, which the dispatcher serves, takes what must be refused."""
    with pytest.raises(AssertionError, match="again: TMEM_FUZZ_SEED="):
        fuzz.run(served(**{name: getattr(torch.ops.tmem, name)}), 0, 300, (name,))
