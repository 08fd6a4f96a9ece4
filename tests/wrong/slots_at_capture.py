"""Wrong: the segments of a step at fixed addresses are read when it is recorded, so that a replay serves the slots of then."""

import torch

from tmem.adapters import attach


class Route(attach.Route):
    def lay(self, shape, off, slot):
        super().lay(shape, *(torch.tensor(x.tolist(), dtype=torch.int32) for x in (off, slot)))
