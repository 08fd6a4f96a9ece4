"""The processes that train together: what torchrun started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """Rank r of `size` takes items r, r + size, ... of every list that all ranks know; what they found is put together again
    in the list's own order, so no result depends on the number of ranks."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None  # of this rank; None: wherever the model loads by itself

    @classmethod
    def join(cls) -> World:
        """The world that torchrun's environment describes: NCCL with a GPU for each rank, else gloo; without torchrun alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        device = None
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Whether this rank reports and writes the run's files."""
        return self.rank == 0

    def share(self, items: Sequence) -> list:
        """This rank's part of a list that all ranks know."""
        return list(items[self.rank :: self.size])

    def gathered(self, mine: Sequence) -> list:
        """The whole list from every rank's part of it, on every rank."""
        if self.size == 1:
            return list(mine)
        parts: list = [None] * self.size
        dist.all_gather_object(parts, list(mine))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def total(self, *values: float) -> list[float]:
        """The sum of each value over ranks."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def most(self, *values: float) -> list[float]:
        """The largest of each value over ranks; NaN where one has it."""
        return [largest(column) for column in zip(*self.gathered([values]))]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Give the process group back; the last call of a run."""
        if dist.is_initialized():
            dist.destroy_process_group()


def largest(values: Iterable[float]) -> float:
    """The largest value, NaN if there is one (max() would lose it or not, by where it stands); 0 of none."""
    return max(values, key=lambda value: (value != value, value), default=0.0)


ALONE = World()
