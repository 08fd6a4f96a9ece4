"""Which memories have a slot: those longest unused give theirs up when another needs one."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from .kept import Kept


class Slots:
    """Memories with a slot, `count` at most; `make(name)` gives one that a slot has room for.

    Nothing is saved when a slot is given up: a store has every change on the disk before it goes on.
    """

    def __init__(self, count: int, make: Callable[[str], Kept]):
        self.count, self.make = count, make
        self._free = threading.Condition()
        self._resident: OrderedDict[str, Kept] = OrderedDict()  # longest unused first
        self._pins: Counter[str] = Counter()  # of each, how many threads use it or wait for it

    @contextmanager
    def alone(self, names: Sequence[str]) -> Iterator[list[Kept]]:
        """Within the block these memories have slots and belong to this thread; one that was closed meanwhile has none.

        Raises ValueError for more names than there are slots.
        """
        held = self._pinned(names)
        try:
            with ExitStack() as locks:
                for memory in sorted(held, key=lambda m: m.name):  # the same order for all threads: nobody waits in a circle
                    locks.enter_context(memory.lock)
                yield held
        finally:
            with self._free:
                self._pins -= Counter(names)
                for memory in held:
                    if memory.slot is None and self._resident.get(memory.name) is memory:
                        del self._resident[memory.name]
                self._free.notify_all()

    def _pinned(self, names: Sequence[str]) -> list[Kept]:
        """The memories, all at once, so that nobody holds some while it waits for others."""
        if len(names) > self.count:
            raise ValueError(f"using: {len(names)} memories at once and {self.count} slots; open the store with more slots.")
        with self._free:
            self._free.wait_for(lambda: len({*names, *self._pins}) <= self.count)
            for name in names:
                if name in self._resident:
                    self._resident.move_to_end(name)
                    continue
                if len(self._resident) == self.count:
                    oldest = next(n for n in self._resident if n not in self._pins and n not in names)
                    self._resident.pop(oldest).close()
                self._resident[name] = self.make(name)
            self._pins.update(names)
            return [self._resident[name] for name in names]

    def __len__(self) -> int:
        """How many memories have a slot."""
        return len(self._resident)

    def close(self) -> None:
        """Give all slots back."""
        with self._free:
            for memory in self._resident.values():
                memory.close()
            self._resident.clear()
