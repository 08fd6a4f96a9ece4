"""Checkpoints of a run: folders of safetensors and one JSON file that appear whole or not at all.

The tensors go through torch.distributed.checkpoint, so a run may resume on another number of ranks or in another layout.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from ..folders import sync
from .world import World

STATE = "state.json"


class Damaged(ValueError):
    """A checkpoint that cannot be read."""


def save(folder: Path, state: dict, tensors: dict[str, Tensor], world: World) -> None:
    """Write `state` and `tensors`, which every rank has whole or a part of. An older folder of this name is replaced.

    Everything is written and synced beside `folder` first, then renamed: whenever the process dies, `folder` is whole or as
    it was. Raises OSError, such as for a full disk, and leaves nothing behind.
    """
    work = folder.with_name(f".{folder.name}.new")
    try:
        if world.first:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        world.wait()
        if tensors:
            writer = HuggingFaceStorageWriter(str(work), save_distributed=True)
            with _alone_is_meant():
                dcp.save(tensors, storage_writer=writer, no_dist=world.size == 1)
        if world.first:
            files = sorted(f.name for f in work.glob("*.safetensors"))
            (work / STATE).write_text(json.dumps({**state, "files": files}))
            sync(work)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(work, folder)
            sync(folder.parent)
        world.wait()
    except BaseException as error:
        if world.first:
            shutil.rmtree(work, ignore_errors=True)
        cause = _os_error(error)
        if cause is not None:
            what = f"{os.strerror(cause.errno).lower()}; this checkpoint was not written, the one before it stays"
            raise OSError(cause.errno, what, str(folder)) from error
        raise


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error of torch.distributed.checkpoint, which wraps what went wrong on each rank."""
    if isinstance(error, OSError) and error.errno:
        return error
    inner = getattr(error, "failures", {})
    found = [e for failure in inner.values() for e in failure if isinstance(e, OSError) and e.errno]
    return found[0] if found else None


def state_of(folder: Path) -> dict:
    """The state of a checkpoint. Raises Damaged unless every file of it is there and whole."""
    try:
        state = json.loads((folder / STATE).read_text())
        for name in state["files"]:
            with safe_open(folder / name, framework="pt") as opened:
                opened.keys()
    except Exception as error:
        raise Damaged(f"checkpoint {folder} cannot be read: {error}") from error
    return state


def load(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Fill `tensors` in place from a checkpoint. Raises Damaged, or ValueError for another model's checkpoint."""
    held = set()
    for name in state_of(folder)["files"]:
        with safe_open(folder / name, framework="pt") as opened:
            held |= set(opened.keys())
    absent = sorted(tensors.keys() - held)
    if absent:
        raise ValueError(f"resume: {folder} lacks {absent[0]}; it belongs to another model.")
    try:
        with _alone_is_meant():
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world.size == 1)
    except Exception as error:
        raise Damaged(f"checkpoint {folder} cannot be read: {error}") from error


def newest(folders: list[Path]) -> tuple[Path | None, list[str]]:
    """The last of `folders` (oldest first) that can be read, and a sentence about each later one that cannot."""
    bad = []
    for folder in reversed(folders):
        try:
            state_of(folder)
            return folder, bad
        except Damaged as error:
            bad.append(str(error))
    return None, bad
