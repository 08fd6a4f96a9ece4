"""Wrong: updates compute W x + s·B A x where rollouts have the rounded sum of W and s·B A, so the two are not one policy."""

from functools import partial

import torch

from tmem.rl.low_rank import SCALE, LowRank


class Beside(LowRank):
    def _thaw(self) -> None:
        def add(a, b, module, given, y):
            return y + (SCALE * (given[0] @ a.to(y.dtype).T) @ b.to(y.dtype).T)

        with torch.no_grad():
            for place in self.places:
                place.weight.copy_(place.frozen)
        pairs = zip(self.layers.values(), self.pairs)
        self.hooks = tuple(module.register_forward_hook(partial(add, a, b)) for module, (a, b) in pairs)

    def _freeze(self) -> None:
        super()._freeze()
        self.publish()


def policy(network):
    made = Beside(network, 4, 0)
    with torch.no_grad():
        for b in made.params[1::2]:
            b.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    made.publish()
    return made
