"""How many threads a process of the tests may take."""

import os
from collections.abc import Mapping


def share_of(environment: Mapping[str, str]) -> int | None:
    """Cores for each worker of pytest-xdist, at least 1; None outside of a worker, where torch decides."""
    if "PYTEST_XDIST_WORKER_COUNT" not in environment:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(environment["PYTEST_XDIST_WORKER_COUNT"]))
