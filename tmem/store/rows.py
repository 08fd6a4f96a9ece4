"""The files of rows in a store's folder. A file is written once, under a name that no other ever has, and never changed."""

from __future__ import annotations

import re
import secrets
import shutil
from hashlib import blake2b
from pathlib import Path

from ..adapters.bank import Snapshot
from ..adapters.row_file import row_bytes, row_in
from ..files.folders import UNFINISHED, atomic_file, sync

_NAME = re.compile("[0-9a-f]{32}-[0-9a-f]{16}")


class Rows:
    """Rows by the name of their file. A memory's name is hashed, so that nothing a user says is part of a path."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"the database names a row {name!r:.60}, which is no file of a store; restore it from a copy.")
        return self.folder / name[:2] / f"{name}.safetensors"

    def write(self, memory: str, row: Snapshot) -> tuple[str, str]:
        """A new file on the disk: its name, and the digest of what it holds. Raises OSError for a full disk."""
        content, owner = row_bytes(row), blake2b(memory.encode(), digest_size=16).hexdigest()
        name = f"{owner}-{secrets.token_hex(8)}"
        file = self._file(name)
        new = not file.parent.is_dir()
        with atomic_file(file) as work:
            work.write_bytes(content)
        if new:
            sync(self.folder)
            sync(self.folder.parent)
        return name, _digest(content)

    def read(self, name: str, digest: str) -> Snapshot:
        """Raises FileNotFoundError for a file that is gone, ValueError for one that is not as it was written."""
        file = self._file(name)
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{file} is gone; undo to the memory's last write, which learns it again.") from error
        if _digest(content) != digest:
            raise ValueError(
                f"{file} is damaged: it is not what was written; undo to the memory's last write, which learns it again."
            )
        return row_in(content, str(file))

    def remove(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def first(self) -> Path | None:
        """A file of a row, if there is one."""
        return next(self.folder.glob("??/*.safetensors"), None)

    def sweep(self, needed: set[str]) -> None:
        """Remove the files that no write names, and half-written ones: a kill came between a file and its transaction, or
        after a deletion. For who has the folder alone."""
        for left in self.folder.glob(f"??/{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        for file in self.folder.glob("??/*.safetensors"):
            if file.stem not in needed:
                file.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
