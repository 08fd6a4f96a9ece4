"""Which memories have a slot: those longest unused give theirs up when another needs one."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from .kept import Kept


class Occupied(RuntimeError):
    """Another thread uses a memory or waits for it, or all slots are taken."""


class NoSlot(Occupied):
    """All slots are taken, or others wait for one."""


class Asleep(Occupied):
    """A memory has to learn again first what it was told."""


class Slots:
    """Memories with a slot, `count` at most; `make(name)` gives one that a slot has room for.

    Nothing is saved when a slot is given up: a store has every change on the disk before it goes on.
    """

    def __init__(self, count: int, make: Callable[[str], Kept]):
        self.count, self.make = count, make
        self._free = threading.Condition()
        self._resident: OrderedDict[str, Kept] = OrderedDict()  # longest unused first
        self._pins: Counter[tuple[int, str]] = Counter()  # of thread and name: uses it, or waits for it and has its slot
        self._line: deque[object] = deque()  # those that wait for slots, first come first

    @contextmanager
    def alone(self, names: Sequence[str], wait: bool = True) -> Iterator[list[Kept]]:
        """Within the block these memories have slots and belong to this thread; one that was closed meanwhile has none.

        wait: for other threads; without it Occupied is raised. Raises ValueError for more names than there are slots.
        """
        held = self._pinned(names, wait)
        try:
            with ExitStack() as locks:
                for memory in sorted(held, key=lambda m: m.name):  # the same order for all threads: nobody waits in a circle
                    if not memory.lock.acquire(blocking=wait):
                        raise Occupied("using: another thread has just begun to use a memory.")
                    locks.callback(memory.lock.release)
                yield held
        finally:
            with self._free:
                self._pins -= Counter((threading.get_ident(), name) for name in names)
                for memory in held:
                    if memory.slot is None and self._resident.get(memory.name) is memory:
                        del self._resident[memory.name]
                self._free.notify_all()

    def _pinned(self, names: Sequence[str], wait: bool) -> list[Kept]:
        """The memories, all at once, so that nobody holds some while it waits for others."""
        if len(names) > self.count:
            raise ValueError(f"using: {len(names)} memories at once and {self.count} slots; open the store with more slots.")
        with self._free:
            if wait:
                self._stand_in_line(names)
            else:
                self._check(names)
            pinned = {name for _, name in self._pins}
            for name in names:
                if name in self._resident:
                    self._resident.move_to_end(name)
                    continue
                if len(self._resident) == self.count:
                    oldest = next(n for n in self._resident if n not in pinned and n not in names)
                    self._resident.pop(oldest).close()
                self._resident[name] = self.make(name)
            self._pins.update((threading.get_ident(), name) for name in names)
            return [self._resident[name] for name in names]

    def _fits(self, names: Sequence[str]) -> bool:
        return len({*names, *(name for _, name in self._pins)}) <= self.count

    def _stand_in_line(self, names: Sequence[str]) -> None:
        """Wait for slots; whoever came before is served before, however many it wants."""
        me = object()
        self._line.append(me)
        try:
            self._free.wait_for(lambda: self._line[0] is me and self._fits(names))
        finally:
            self._line.remove(me)
            self._free.notify_all()

    def _check(self, names: Sequence[str]) -> None:
        """Raises Occupied unless this thread can have the memories now, and nobody waits for what it would take."""
        me = threading.get_ident()
        if any(name in names and thread != me for thread, name in self._pins):
            raise Occupied("using: another thread uses a memory, or waits for it.")
        mine = {name for thread, name in self._pins if thread == me}
        if not mine.issuperset(names) and (self._line or not self._fits(names)):
            raise NoSlot("using: all slots are taken.")

    def __len__(self) -> int:
        """How many memories have a slot."""
        return len(self._resident)

    def close(self) -> None:
        """Give all slots back."""
        with self._free:
            for memory in self._resident.values():
                memory.close()
            self._resident.clear()
