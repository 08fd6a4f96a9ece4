"""Counters of a server in the text format of Prometheus. No text of a user, nor a memory's name, is in them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from ..store.database import Write

_HELP = {
    "tmem_requests_total": "requests by route, method and status",
    "tmem_request_seconds_total": "seconds of requests by route",
    "tmem_prompt_tokens_total": "tokens of prompts that were answered",
    "tmem_generated_tokens_total": "tokens that were generated",
    "tmem_writes_total": "updates that memories learned, and those that were rolled back",
    "tmem_pairs_total": "question/answer pairs that memories learned",
}


class Metrics:
    """Threads may share it."""

    def __init__(self):
        self._lock, self._counts = threading.Lock(), Counter()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount

    def wrote(self, writes: Iterable[Write]) -> None:
        """Count writes and their pairs."""
        for write in writes:
            self.add("tmem_writes_total", kept=str(write.kept).lower())
            self.add("tmem_pairs_total", len(write.told) if write.kept else 0)

    def page(self, now: Mapping[str, float]) -> str:
        """The counters, and values of this moment by name."""
        lines = []
        with self._lock:
            counts = dict(self._counts)
        for name, words in _HELP.items():
            lines += [f"# HELP {name} {words}", f"# TYPE {name} counter"]
            for (which, labels), value in sorted(counts.items()):
                if which == name:
                    inside = ",".join(f'{k}="{v}"' for k, v in labels)
                    lines.append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}")
        for name, value in now.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:g}"]
        return "\n".join(lines) + "\n"
