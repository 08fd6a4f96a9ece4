"""What a CUDA graph does, on a CPU: every op that a function calls is kept with its tensors, and called again on these."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        self.calls.append((op, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        """All again, each result in the memory of the first one. What Python had computed is as it was the first time."""
        for op, args, kwargs, made in self.calls:
            for old, new in zip(tree_leaves(made), tree_leaves(op(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    assert old.shape == new.shape, op
                    old.copy_(new)


def recorded(run: Callable[[], None]) -> Callable[[], None]:
    """As `captured_update.recorder` gives on a GPU; but a GPU does not run what it records."""
    with Tape() as tape:
        run()
    return tape.replay
