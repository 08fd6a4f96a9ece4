"""A memory's Δ as the two files of a PEFT adapter, and a whole memory as an archive that goes in again."""

from __future__ import annotations

import io
import json
import lzma
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..adapters.memory_file import RECORD, read_memory, write_memory
from ..adapters.peft import peft_files
from ..models.lora import CONFIG, WEIGHTS
from ..store.database import Write
from ..store.store import Missing, Taken
from .fields import Refused
from .server import server_of, worked
from .tenants import memory_of, tenant_of
from .wire import content_of

FILES = (RECORD, CONFIG, WEIGHTS)  # of an archive
ZIP = "application/zip"
ROOM = 16 << 20  # bytes of an archive beside twice those of Δ and A
# What zipfile, zlib, bz2 and lzma raise for bytes that they cannot read.
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)
SECONDS = 300.0  # in which an archive must have come


async def weights(request: Request) -> Response:
    """The weights, in safetensors."""
    content = (await _files(request))[WEIGHTS]
    named = {"Content-Disposition": f'attachment; filename="{WEIGHTS}"'}
    return Response(content, media_type="application/octet-stream", headers=named)


async def config(request: Request) -> Response:
    """The config beside them. It names the model as it is served, not where it lies on the server."""
    found = _named((await _files(request))[CONFIG], server_of(request).model)
    return Response(found, media_type="application/json")


def _named(config: bytes, model: str) -> bytes:
    """An adapter's config with another name of its base model."""
    return json.dumps({**json.loads(config), "base_model_name_or_path": model}, indent=1).encode()


async def _files(request: Request) -> dict[str, bytes]:
    server, name = server_of(request), memory_of(request)

    def files() -> dict[str, bytes]:
        with server.store.using([name]) as (memory,):
            return peft_files(server.store.agent.bank, memory.row)

    return await worked(request, files)


async def archive(request: Request) -> Response:
    """The folder that `Memory.save` writes, in a zip archive: the adapter, the pairs, and the text that waits.

    Its config is that of the route beside this one.
    """
    server, name = server_of(request), memory_of(request)

    def packed() -> bytes:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "memory"
            server.store.export(name, path)
            adapter, *told = read_memory(path)
            write_memory(path, {**adapter, CONFIG: _named(adapter[CONFIG], server.model)}, *told)
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as into:  # random numbers do not get smaller
                for file in FILES:
                    into.write(path / file, file)
            return content.getvalue()

    content = await worked(request, packed)
    return Response(content, media_type=ZIP, headers={"Content-Disposition": 'attachment; filename="memory.zip"'})


async def restored(request: Request) -> Response:
    """A new memory from such an archive."""
    server, tenant, name = server_of(request), tenant_of(request), memory_of(request)
    bank = server.store.agent.bank
    most = ROOM + 2 * 4 * bank.max_rank * sum(s.experts * (s.inputs + s.outputs) for s in bank.sites)
    content = await content_of(request, ZIP, most, SECONDS)

    def unpacked() -> Write:
        tenant.room_for(name, server.store)
        files = _unpacked(content, most)
        with TemporaryDirectory() as folder:
            work = Path(folder)
            for file in FILES:  # no path is taken from the archive
                (work / file).write_bytes(files[file])
            try:
                return server.store.import_from(name, work)
            except (Taken, Missing):
                raise
            except ValueError as error:  # it speaks of a file: the archive's, for a client
                raise Refused(str(error).replace(f"{folder}/", "").replace(folder, "the archive")) from error

    write = await worked(request, unpacked)
    server.metrics.wrote([write])
    return JSONResponse({"name": request.path_params["name"], "pairs": len(write.told)}, 201)


def _unpacked(content: bytes, most: int) -> dict[str, bytes]:
    """The files of an archive, of `most` bytes at most together. Raises Refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            names = sorted(packed.namelist())
            if names != sorted(FILES):
                raise Refused(f"the archive holds {', '.join(names) or 'nothing'!s:.200}; expected {', '.join(FILES)}.")
            if (size := sum(packed.getinfo(file).file_size for file in FILES)) > most:
                raise Refused(f"the archive's files have {size} bytes together, expected {most} at most.", status=413)
            return {file: packed.read(file) for file in FILES}
    except Refused:
        raise
    except UNREADABLE as error:
        raise Refused("the body is no zip archive that can be read; send what .../archive gave.") from error


ROUTES = [
    Route("/v1/memories/{name:path}/archive", archive, methods=["GET"]),
    Route("/v1/memories/{name:path}/archive", restored, methods=["PUT"]),
    Route("/v1/memories/{name:path}/adapter", weights, methods=["GET"]),
    Route("/v1/memories/{name:path}/adapter/config", config, methods=["GET"]),
]
