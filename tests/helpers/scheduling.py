"""Which tests of a run over several workers stay together: those of a file whose fixtures are made once."""

import re
from functools import cached_property
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ONCE = re.compile(r'^@pytest\.fixture\(scope="(module|session)"', re.MULTILINE)


def made_once(file: Path) -> bool:
    """Whether a file defines such a fixture. Two workers would make it twice."""
    return file.is_file() and ONCE.search(file.read_text(encoding="utf-8")) is not None


class Scheduling(LoadScopeScheduling):
    """Such files first, each in one worker; then all other tests one by one, to whoever is free."""

    @cached_property
    def _together(self) -> dict[str, bool]:
        return {}

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        if file not in self._together:
            self._together[file] = made_once(self.config.rootpath / file)
        return file if self._together[file] else nodeid


def scheduler_of(config, log) -> Scheduling | None:
    """Of `--dist load`, which -n means; None for another, which xdist knows."""
    return Scheduling(config, log) if config.getvalue("dist") == "load" else None
