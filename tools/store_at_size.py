"""How long a memory takes from the disk into a slot and back, in a store of many.

    python tools/store_at_size.py [MEMORIES] [FOLDER]

Of the default model. Fifty memories learn a fact each, and are copied until there are so many, 10,000. Then some are drawn and
used in turn, with 8 slots. Into a slot: what `using` takes, mostly of a memory that has none. Back: what writing its row takes,
which every write of a memory does. Forks share their row's file until they learn, so the files are few and may lie in the
system's cache.
"""

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tmem import MemoryStore

LEARNED, USED, CHANGED = 50, 400, 40


def main(memories: str = "10000", folder: str = "") -> None:
    with tempfile.TemporaryDirectory() as made, MemoryStore.open(Path(folder or made) / "store", slots=8) as store:
        fill(store, int(memories))
        draw = random.Random(0)
        names = [f"m{i}" for i in range(int(memories))]
        into = [used(store, name) for name in draw.sample(names, min(USED, len(names)))]
        back = [written(store, name) for name in draw.sample(names, min(CHANGED, len(names)))]
        began = time.perf_counter()
        about = len(store.memories())
        print(f"{about} memories, listed in {time.perf_counter() - began:.2f} s")
        print(f"from the disk into a slot, of {len(into)}: {percentiles(into)}")
        print(f"from a slot to the disk, of {len(back)}: {percentiles(back)}")


def fill(store: MemoryStore, memories: int) -> None:
    for i in range(memories):
        if i < LEARNED:
            store.make(f"m{i}")
            store.learn(f"m{i}", [(f"What is the name of person {i}'s dog?", f"Rex {i}")])
        else:
            store.fork(f"m{i % LEARNED}", f"m{i}")
        if i % 1000 == 999:
            print(f"{i + 1} of {memories}", flush=True)


def used(store: MemoryStore, name: str) -> float:
    """Seconds until a memory can answer."""
    began = time.perf_counter()
    with store.using([name]):
        return time.perf_counter() - began


def written(store: MemoryStore, name: str) -> float:
    """Seconds until a row of a memory is on the disk, as after every write."""
    with store.using([name]) as (memory,):
        snapshot = store.agent.bank.snapshot(memory.row)
        began = time.perf_counter()
        row, _ = store._rows.write(name, snapshot)
        taken = time.perf_counter() - began
    store._rows.remove(row)
    return taken


def percentiles(values: Sequence[float]) -> str:
    ordered = sorted(1000 * v for v in values)
    return ", ".join(f"p{p} {ordered[min(len(ordered) - 1, p * len(ordered) // 100)]:.1f} ms" for p in (50, 95, 99))


if __name__ == "__main__":
    main(*sys.argv[1:])
