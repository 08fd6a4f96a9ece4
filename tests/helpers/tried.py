"""What a tournament tries, interpreted: `python tests/helpers/tried.py`. Prints one JSON object: entrant -> why it may not
take part, or what broke the promise about the bits of a gradient ("" if nothing)."""

import json
from types import SimpleNamespace

import gpu_rows
import interpreting  # first, as it has Triton interpret
import torch

from tmem.bench import attend as bench
from tmem.bench import gate, kernels, measure, tournament
from tmem.ops import _triton
from tmem.triton_kernels import configs

LENGTHS = (5, 70, 16, 17)  # of few rows, of two tiles, on either side of the limit


def now(place):
    return configs.chosen("sm_90", *place)


def entrants(place):
    """The last tile, and all regimes."""
    return [tournament.tiles(place, now)[-1], *tournament.regimes(place, now), *tournament.sums(place, now)]


def bits(entrant) -> str:
    """Of a gradient in one call or in several, as gpu_rows.py has it."""
    with configs.instead(entrant):
        try:
            gpu_rows.one_read(SimpleNamespace(lora_backward_=_triton.lora_backward_))
        except AssertionError as error:
            return f"other bits: {error}"
    return ""


def main():
    interpreting.mended()
    torch.set_num_threads(1)
    measure.TOLERANCES = {**measure.TOLERANCES, torch.float32: measure.SPLIT}  # fp32 operands are split in two
    for name in ("lora_shrink_multi", "lora_expand_", "lora_gram_", "lora_backward_"):
        setattr(kernels, name, getattr(_triton, name))
    found = {}
    for kernel, factor in (("shrink", 16), ("expand", 16), ("gram", 32), ("backward", 16)):
        case = kernels.KernelCase(kernel, 5, "ragged", LENGTHS, d=96)
        trials = {case: kernels.providers(case, "cpu")[kernels.RATIO_TO]}
        for entrant in entrants((kernel, 16, factor, 16)):
            found[f"{kernel}: {gate.label(entrant)}"] = gate.wrong(entrant, trials)
    bench.attend = _triton.attend
    case = bench.AttendCase(2, 300, torch.bfloat16, 4, 2, 64, bucket=512)
    trials = {case: bench.providers(case, "cpu")[kernels.RATIO_TO]}
    for entrant in entrants(("attend", 16, 16, 64)):
        found[f"attend: {gate.label(entrant)}"] = gate.wrong(entrant, trials)
    for entrant in tournament.sums(("backward", 16, 16, 32), now):  # the rank of one_read
        found[f"bits: {gate.label(entrant)}"] = bits(entrant)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
