"""How many kernels a GPU runs in one step of decoding, told without a GPU: `python tests/helpers/launched.py` prints them.

A step takes the same ops on a CPU, where it is run. A dispatch mode counts one kernel for each op of torch that is no view,
and for each op of tmem as many as LAUNCHES says, which a test holds against the launchers.
"""

import itertools
from collections import Counter

import tiny
import tiny_bank
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tmem.agent.steps import Steps

LAUNCHES = {  # on a GPU, of any sizes
    "attend": 2, "lora_decode_": 2, "lora_decode_multi_": 1, "lora_glu": 1, "lora_norm": 1, "lora_plan": 1, "rope_write_": 1,
}  # fmt: skip
FREE = {"aten.empty.memory_format", "aten.new_empty.default", "aten.empty_like.default", "prim.device.default"}


class Launched(TorchDispatchMode):
    """Counts the kernels of what is called within the block, by the op's name."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function)
        if function.namespace == "tmem":
            self.found[name] += LAUNCHES[function._schema.name.removeprefix("tmem::")]
        elif name not in FREE and not _is_view(function, args, kwargs, out):
            self.found[name] += 1
        return out


def _is_view(function, args, kwargs, out) -> bool:
    """Whether nothing is written: the results lie in the memory of an argument, or are no tensors."""
    if function._schema.is_mutable:
        return False
    held = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
    results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
    return all(x.untyped_storage()._cdata in held for x in results)


def of_a_step(family: str, layers: int, few: bool, targets=tiny_bank.ALL) -> Counter:
    """What one captured step of a model of so many layers launches, all its linear layers adapted. few: by the layers of
    adapters.token, as on a GPU; or by those of transformers."""
    with torch.inference_mode():
        kinds = {"layer_types": tiny.MORE[family][1]["layer_types"][:layers]} if family == "gemma3_text" else {}
        network = tiny.model(family, dtype=torch.bfloat16, num_hidden_layers=layers, **kinds)
        bank = tiny_bank.bank_of(network, copy=True, targets=targets)
        bank.reads_once = bank.decodes_rows = True  # as on a GPU
        steps = Steps(network, bank, 4, 512)
        steps.few = few
        steps.route.segments(steps.ids[..., None])  # which stands before a step is captured
        with Launched() as launched:
            steps._run()
    return launched.found


def of_a_layer(family: str, few: bool, **options) -> Counter:
    """What one more layer launches."""
    more, fewer = of_a_step(family, 3, few, **options), of_a_step(family, 2, few, **options)
    more.subtract(fewer)
    return +more


def main():
    for family, few in itertools.product(("llama", "qwen3", "gemma3_text"), (False, True)):
        found = of_a_layer(family, few)
        print(f"{family}, {'adapters.token' if few else 'layers of transformers'}: {found.total()} kernels a layer")
        for name, count in found.most_common():
            print(f"  {count:3d}  {name}")


if __name__ == "__main__":
    main()
