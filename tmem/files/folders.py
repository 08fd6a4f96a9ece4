"""Files and folders that appear whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import ctypes
import errno
import functools
import inspect
import os
import re
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

Found = TypeVar("Found")

LOCK = ".lock"
GLANCE = 0.1  # seconds, far more than `in_use` holds what it looks at
UNFINISHED = ".tmem-unfinished-"  # how the names of folders begin in which something is being written
ASIDE = ".tmem-old"  # how the name of a folder ends that stands aside while another takes its place
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


class Busy(OSError):
    """Another process or thread works in a folder."""


def cache_folder() -> Path:
    """$TMEM_CACHE, else $XDG_CACHE_HOME/tmem, else ~/.cache/tmem."""
    if own := os.environ.get("TMEM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tmem"


# one at a time -----------------------------------------------------------------------------------------------------------


class Lock:
    """A folder held by this process from `Lock(folder)` until `release()`, or until the process ends in whatever way.

    The system's lock (flock) on the file `name` in it, which says who holds it and goes with the holder; so does the folder,
    where it was made for this and is still empty. Raises Busy, before anything else is written, while somebody else holds it.
    """

    def __init__(self, folder: str | Path, name: str = LOCK):
        self.handle: int | None = None
        self.folder, self.file = Path(folder), Path(folder) / name
        self.owner, self.made = os.getpid(), not self.folder.exists()
        while self.handle is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:  # something else has the name, or the folder went while mkdir looked
                if os.path.lexists(self.folder) and not self.folder.is_dir():
                    raise
                continue
            try:
                handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # the folder went with who held it before
                continue
            try:
                self._take(handle)
            except BaseException:
                os.close(handle)
                raise
            if _is(handle, self.file):
                self.handle = handle
            else:  # the file went with who held it before
                os.close(handle)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)

    def _take(self, handle: int) -> None:
        held = _hold(handle)
        if held is False:  # perhaps by somebody who looks whether it is held
            time.sleep(GLANCE)
            held = _hold(handle)
        if held is False:
            who = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise Busy(f"{self.folder} is in use by {who}; wait until that has ended, or give another folder.")
        if held is None:
            warnings.warn(f"{self.folder} cannot be locked; see to it that one process at a time writes there", stacklevel=4)

    def release(self) -> None:
        """Let others in. A second time it does nothing, nor in a process that was forked off."""
        if self.handle is None or self.owner != os.getpid():
            return
        self.file.unlink(missing_ok=True)
        os.close(self.handle)
        self.handle = None
        if self.made:
            with suppress(OSError):  # it holds something by now
                self.folder.rmdir()

    __del__ = release


@contextmanager
def locked(folder: str | Path, name: str = LOCK) -> Iterator[None]:
    """A Lock on `folder` while the block runs."""
    lock = Lock(folder, name)
    try:
        yield
    finally:
        lock.release()


def alone(argument: str, name: str = LOCK) -> Callable:
    """A decorator: the function holds the folder that its `argument` names while it runs."""

    def decorate(work: Callable) -> Callable:
        signature = inspect.signature(work)

        @functools.wraps(work)
        def held(*args, **options):
            with locked(signature.bind(*args, **options).arguments[argument], name):
                return work(*args, **options)

        return held

    return decorate


def in_use(folder: str | Path, name: str = LOCK) -> bool:
    """Whether somebody holds `folder` now."""
    try:
        handle = os.open(Path(folder) / name, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _hold(handle) is False
    finally:
        os.close(handle)


def _hold(handle: int) -> bool | None:
    """True if what was opened is held from now on until `handle` is closed, False if somebody else holds it, None where the
    system or the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return None
    return True


def _is(handle: int, path: Path) -> bool:
    """Whether what was opened still stands at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


# whole or not at all -----------------------------------------------------------------------------------------------------


def _somebody_elses(path: Path, marker: str) -> bool:
    """Whether what stands at `path` holds something, and no marker. What is replaced meanwhile is looked at again."""
    while (held := standing(path)).exists():
        try:
            before, names = os.stat(held), os.listdir(held)
        except NotADirectoryError:
            return True
        except FileNotFoundError:
            continue
        if marker in names or not names:
            return False
        with suppress(FileNotFoundError):
            if os.path.samestat(before, os.stat(standing(path))):
                return True
    return False


@contextmanager
def atomic_folder(path: str | Path, marker: str | None, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends and vanishes when it fails.

    `marker` is the file that tells a folder of this kind (`config.json` for a model): an existing folder that lacks
    it is somebody else's, and FileExistsError is raised before anything is written; without a marker every folder of this
    name is ours. `keep=True` is for caches, where
    every writer makes the same content: whoever comes first wins and later writers leave the folder as it is.
    Where the system can, old and new trade places in one step. Elsewhere the old one is set aside first, and `standing` finds
    it if the process dies then. A link at `path` is replaced, and what it points at stays as it is.
    Raises OSError for a full disk, also where a library writes.
    """
    path = Path(path).absolute()
    if marker and _somebody_elses(path, marker):
        raise FileExistsError(f"{path} exists and holds no {marker}, so it is not replaced; choose another path.")
    with _beside(path) as work:
        work.mkdir()
        yield work
        mode = work.stat().st_mode  # what the user's umask leaves: some libraries write files that only the user may read
        for file in (p for p in work.rglob("*") if p.is_file()):
            file.chmod(mode & 0o666)
        for folder in (*(p for p in work.rglob("*") if p.is_dir()), work):
            sync(folder)
        _move(work, path, keep)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a new file that replaces `path` when the block ends and vanishes when it fails.

    A link at `path` is replaced, and what it points at stays as it is. Raises OSError that names `path` for a full disk.
    """
    path = Path(path).absolute()
    with _beside(path) as work:
        work.mkdir()
        mode = work.stat().st_mode
        work.rmdir()
        yield work
        work.chmod(mode & 0o666)
        _to_disk(work)
        os.replace(work, path)
        _to_disk(path.parent)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A path named as `path` is, in a private folder beside it that is gone afterwards. Those that a kill left are removed.

    Nobody can plant a link there: the folder is new, named at random, and closed to others. The system's lock on it says that
    its writer lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{UNFINISHED}????????"):
        _sweep(left)
    with _errors_of(path):
        folder, handle = _private(path.parent)
        try:
            yield folder / path.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _private(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=UNFINISHED))
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was held
            continue
        if _hold(handle) is not False and _is(handle, folder):
            return folder, handle
        os.close(handle)


def _sweep(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, or no folder of ours
        return
    try:
        if _hold(handle):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Have an error of the disk name `path`, also where a library tells of it in an error of its own."""
    try:
        yield
    except BaseException as error:  # torch.distributed.checkpoint's is no Exception
        if isinstance(error, OSError) and (error.filename or not error.errno):
            raise
        if (cause := os_error(error)) is None:
            raise
        raise OSError(cause.errno, f"{os.strerror(cause.errno).lower()}; this was not written", str(path)) from error


def standing(path: str | Path) -> Path:
    """The folder to read for `path`: itself, or the one set aside where a kill came before another took its place."""
    path, other = Path(path), aside(path)
    return other if not path.exists() and other.exists() else path


def whole(path: str | Path, read: Callable[[Path], Found]) -> Found:
    """What `read(folder)` makes of the files of `path`, all of one folder: read again if another took its place meanwhile."""
    while True:
        folder = standing(path)
        handle = os.open(folder, os.O_RDONLY)  # while it is open no other folder gets its number
        try:
            found = read(folder)
        except Exception:
            if _is_at(handle, folder):
                raise
        else:
            if _is_at(handle, folder):
                return found
        finally:
            os.close(handle)


def _is_at(handle: int, folder: Path) -> bool:
    """As `_is`, through a link."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False


def aside(path: Path | str) -> Path:
    """Where the folder of this name is set aside."""
    if not Path(path).name:
        raise ValueError(f"{str(path)!r} is no folder with a name of its own; give one.")
    return Path(path).with_name(f".{Path(path).name}{ASIDE}")


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
    """Have `work` stand at `path`, whatever other writers do meanwhile."""
    while True:
        try:
            os.rename(work, path)  # also takes the place of an empty folder
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not path.is_symlink():
                raise
        if keep:
            return
        try:
            if _exchange(work, path):
                break
            shutil.rmtree(aside(path), ignore_errors=True)
            os.rename(path, aside(path))
        except OSError as error:  # another writer has just moved one of them: once more
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise
    _to_disk(path.parent)
    shutil.rmtree(aside(path), ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Have two paths trade places in one step; False where the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))
