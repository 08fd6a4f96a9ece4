"""Checkpoints of a run: folders of safetensors and one JSON file that appear whole or not at all.

The tensors go through torch.distributed.checkpoint, so a run may resume on another number of ranks or in another layout.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from ..files.folders import ASIDE, aside, atomic_folder, standing
from .world import World

STATE = "state.json"


class Damaged(ValueError):
    """A checkpoint that cannot be read."""


def save_checkpoint(folder: Path, state: dict, tensors: dict[str, Tensor], world: World) -> None:
    """Write `state` and `tensors`, which every rank has whole or a part of. An older folder of this name is replaced.

    Whenever the process dies, whoever reads `folder` finds it whole or as it was (atomic_folder, which rank 0 opens and all
    write into). Raises OSError, such as for a full disk, and leaves nothing behind.
    """
    with atomic_folder(folder, None) if world.first else nullcontext() as mine:
        work = Path(world.gathered([str(mine)] if world.first else [""])[0])
        if tensors:
            writer = HuggingFaceStorageWriter(str(work), save_distributed=True)
            with _alone_is_meant(), _interruptible():
                dcp.save(tensors, storage_writer=writer, no_dist=world.size == 1)
        files = sorted(f.name for f in work.glob("*.safetensors"))
        digests = world.gathered([_digest(work / name) for name in world.share(files)])
        if world.first:
            text = json.dumps({**state, "files": dict(zip(files, digests))})
            (work / STATE).write_text(json.dumps({"digest": _of_bytes(text.encode()), "state": text}), encoding="utf-8")
    world.wait()


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """torch gathers what its ranks raise, the end of the process among it, into an error of its own: have that end raised."""
    try:
        yield
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, (KeyboardInterrupt, SystemExit)):
                raise cause from error
        raise


def numbered(parent: Path) -> list[Path]:
    """The checkpoints step-* in a folder, oldest first, with those that a kill left set aside."""
    return sorted({*parent.glob("step-*"), *(f.with_name(f.name[1 : -len(ASIDE)]) for f in parent.glob(f".step-*{ASIDE}"))})


def remove(folder: Path) -> None:
    """Remove a checkpoint."""
    for path in (folder, aside(folder)):
        shutil.rmtree(path, ignore_errors=True)


def _digest(file: Path) -> str:
    """BLAKE2b of a file's bytes."""
    found = hashlib.blake2b()
    with file.open("rb") as opened:
        while part := opened.read(1 << 22):
            found.update(part)
    return found.hexdigest()


def _of_bytes(data: bytes) -> str:
    return hashlib.blake2b(data).hexdigest()


def state_of(folder: Path) -> dict:
    """The state of a checkpoint. Raises Damaged unless it is what was written and every file is there and has a header."""
    folder = standing(folder)
    try:
        held = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if "digest" not in held:
            raise ValueError(f"{STATE} has no digest; a version of tmem from before there were any made it")
        if held["digest"] != _of_bytes(held["state"].encode()):
            raise ValueError(f"{STATE} is not what was written")
        state = json.loads(held["state"])
        for name in state["files"]:
            with safe_open(folder / name, framework="pt") as opened:
                opened.keys()
    except Exception as error:
        raise Damaged(f"checkpoint {folder} cannot be read: {error}") from error
    return state


def check(folder: Path, world: World) -> dict:
    """The state of a checkpoint all of whose files are what was written. Raises Damaged otherwise, on all ranks, each of which
    reads its share of the files."""
    folder, state, fault = standing(folder), {}, ""
    try:
        state = state_of(folder)
        for name in world.share(list(state["files"])):
            if _digest(folder / name) != state["files"][name]:
                raise Damaged(f"checkpoint {folder} cannot be read: {name} is not what was written")
    except (Damaged, OSError) as error:
        fault = str(error)
    faults = [f for f in world.gathered([fault]) if f]
    if faults:
        raise Damaged(faults[0])
    return state


def load_checkpoint(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Fill `tensors` in place from a checkpoint. Raises Damaged, or ValueError for another model's checkpoint."""
    folder, held = standing(folder), set()
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


def newest(folders: list[Path], world: World) -> tuple[Path | None, list[str]]:
    """The last of `folders` (oldest first) that is whole, and a sentence about each later one that is not."""
    bad = []
    for folder in reversed(folders):
        try:
            check(folder, world)
            return folder, bad
        except Damaged as error:
            bad.append(str(error))
    return None, bad
