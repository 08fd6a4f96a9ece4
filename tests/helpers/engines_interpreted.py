"""Run by test_forward.py in a process of its own, where Triton interprets the kernels of a serving engine on the CPU: engine
and case -> how far y is off fp64, relative RMS. The names of the engines are the arguments.

The interpreter's bf16 is not torch's, and vLLM takes 16-bit types alone: vLLM runs in fp16, SGLang in fp32.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # without which vLLM looks for a driver, finds none and switches its kernels off

import torch

from tmem.bench.engines import ENGINES, Mix
from tmem.testing import rel_rms

DTYPES = {"vllm": torch.float16, "sglang": torch.float32}
CASES = {
    "one token each": ((1,) * 5, (8,) * 5, (2.0,) * 5, 80, 48),
    "ragged": ((5, 1, 33, 17), (8, 8, 8, 8), (2.0,) * 4, 100, 136),
    "ranks and scales of their own": ((7, 2, 19), (3, 16, 8), (0.5, 2.0, 4.0), 96, 72),
    "one adapter": ((40,), (20,), (1.0,), 64, 40),
}


def off(engine, lengths, ranks, scales, k, n):
    generator, dtype = torch.Generator().manual_seed(0), DTYPES[engine]

    def random(*shape, size=1.0):
        return (torch.randn(*shape, generator=generator) * size).to(dtype)

    rows, slots, most = sum(lengths), len(lengths), max(ranks)
    x, y = random(rows, k), random(rows, n)
    a, bt = random(slots, most, k, size=k**-0.5), random(slots, most, n, size=most**-0.5)
    expected, at = y.double(), 0
    for i, length in enumerate(lengths):
        part = slice(at, at := at + length)
        z = scales[i] * x[part].double() @ a[i, : ranks[i]].double().T
        expected[part] += z @ bt[i, : ranks[i]].double()
    for i, rank in enumerate(ranks):  # what lies beyond a rank belongs to nobody
        a[i, rank:] = bt[i, rank:] = 7
    ENGINES[engine](Mix(lengths, ranks, scales, a, bt))(y, x)
    return rel_rms(y, expected)


def name_the_device():
    """SGLang looks for tuned sizes by the name of the device, and a CPU has none."""
    from sglang.kernels.ops.lora.dense import lora_tuning_config

    lora_tuning_config.get_device_name = lambda: "interpreter"


if __name__ == "__main__":
    if "sglang" in sys.argv:
        name_the_device()
    with torch.inference_mode():
        found = {f"{engine}, {name}": off(engine, *case) for engine in sys.argv[1:] for name, case in CASES.items()}
    print(json.dumps(found))
