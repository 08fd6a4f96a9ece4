"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """$TMEM_CACHE, else $XDG_CACHE_HOME/tmem, else ~/.cache/tmem."""
    if own := os.environ.get("TMEM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tmem"


@contextmanager
def atomic_folder(path: str | Path, marker: str, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path` that becomes `path` when the block ends and vanishes when it fails.

    `marker` is the file that tells a folder of this kind (`config.json` for a model): an existing folder that lacks
    it is somebody else's, and FileExistsError is raised before anything is written. `keep=True` is for caches, where
    every writer makes the same content: whoever comes first wins and later writers leave the folder as it is.
    What is replaced is set aside first: a process that dies between two renames leaves it beside `path`, as `.NAME.old.*`.
    Raises OSError for a full disk, also where a library writes.
    """
    path = Path(path).absolute()
    if path.exists() and not (path / marker).exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and holds no {marker}, so it is not replaced; choose another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp is private to the user; a result is not
        for folder in (*(p for p in work.rglob("*") if p.is_dir()), work):
            sync(folder)
        _move(work, path, keep)
    except Exception as error:
        if isinstance(error, OSError) or (cause := os_error(error)) is None:
            raise
        raise OSError(cause.errno, f"{cause.strerror.lower()}; this was not written", str(path)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a new file beside `path` that replaces it when the block ends and vanishes when it fails."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield work
        _to_disk(work)
        os.replace(work, path)
        _to_disk(path.parent)
    finally:
        work.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Have the files of a folder, and the folder's own entries, on the disk before going on."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        _to_disk(path)


def os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error: itself, one of those that torch.distributed.checkpoint gathers from its ranks, or the one
    that a library in Rust (safetensors, tokenizers) tells of in words; None if there is none."""
    if isinstance(error, OSError):
        return error if error.errno else None
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    inner = [part for failure in getattr(error, "failures", {}).values() for part in failure]
    return next((found for e in inner if isinstance(e, BaseException) and (found := os_error(e))), None)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move(work: Path, path: Path, keep: bool) -> None:
    try:
        os.rename(work, path)  # also takes the place of an empty folder
    except OSError:
        if not path.is_dir():
            raise
        if keep:
            return
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
        os.rename(path, old)
        os.rename(work, path)
        _to_disk(path.parent)
        shutil.rmtree(old)
        return
    _to_disk(path.parent)
