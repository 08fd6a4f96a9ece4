"""What a GGUF file says and holds, read within bounds: a damaged header is refused, in time and memory that its size limits."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# GGUF's numbers for the types of metadata, and struct's letters; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_VERSIONS = (2, 3)
_MOST = 1 << 16  # metadata keys, or tensors: the largest models have some thousands
_LONGEST = 1 << 22  # elements of an array: the largest vocabularies have 2^18
_NAME = 1 << 10  # bytes of a key, of a tensor's name, or of a token
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `shape` with the fastest dimension last, `kind` GGML's number of its format, bytes start to stop."""

    file: Path
    shape: tuple[int, ...]
    kind: int
    start: int
    stop: int

    def values(self) -> np.ndarray:
        """Its values, fp32 [*shape]."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(self.kind)
        raw = np.fromfile(self.file, dtype=np.uint8, count=self.stop - self.start, offset=self.start)
        if kind.name in _PLAIN:
            return raw.view(_PLAIN[kind.name]).reshape(self.shape).astype(np.float32)
        block, size = GGML_QUANT_SIZES[kind]
        try:
            return dequantize(raw.reshape(*self.shape[:-1], self.shape[-1] // block * size), kind).reshape(self.shape)
        except NotImplementedError as error:
            raise ValueError(f"its tensors are in format {kind.name}, which is not read; get another quantisation.") from error


@dataclass(frozen=True)
class Contents:
    """`fields`: metadata by key, numbers, strings and lists of them; `tensors` by name; `files`: what they were read from."""

    fields: dict[str, object]
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]


def parts(file: Path) -> list[Path]:
    """All files of the set that `file` belongs to by its name (`name-00001-of-00003.gguf`), in order; else itself."""
    if (found := _PART.fullmatch(file.name)) is None or not 1 <= int(found[2]) <= int(found[3]):
        return [file]
    return [file.with_name(f"{found[1]}-{i:05}-of-{found[3]}.gguf") for i in range(1, int(found[3]) + 1)]


def read(file: Path) -> Contents:
    """The metadata and tensors of a file, or of the whole set it is a part of. Raises ValueError that says what is wrong."""
    first = _read(file)
    count = _whole(first, "split.count", 1)
    if count <= 1:
        return first
    files = parts(file)
    if len(files) != count:
        raise ValueError(
            f"it is one of {count} files (split.count), which are found by their names; "
            f"expected it to be called NAME-00001-of-{count:05}.gguf."
        )
    fields, tensors = {}, {}
    for number, part in enumerate(files):
        if not part.is_file():
            raise ValueError(f"it is one of {count} files, and {part.name} is not beside it; put all of them into one folder.")
        try:
            found = _read(part)
        except ValueError as error:
            raise ValueError(f"in {part.name}, {error}") from error
        if (_whole(found, "split.no", 0), _whole(found, "split.count", 1)) != (number, count):
            raise ValueError(f"{part.name} says that it is another part than its name does; get the set of files anew.")
        fields = fields or found.fields
        if both := sorted(tensors.keys() & found.tensors.keys()):
            raise ValueError(f"{part.name} holds {both[0]} again; get the set of files anew.")
        tensors |= found.tensors
    total = fields.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ValueError(f"its {count} files hold {len(tensors)} tensors of {total}; get the set of files anew.")
    return Contents(fields, tensors, tuple(files))


def _whole(contents: Contents, key: str, default: int) -> int:
    value = contents.fields.get(key, default)
    if not isinstance(value, int):
        raise ValueError(f"{key} is {value!r}, expected a whole number; get the file anew.")
    return value


def _read(file: Path) -> Contents:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF; the file is of another kind or damaged.")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(file, content).contents()


class _Header:
    """A place in the file that moves on as things are read; nothing is read or counted beyond the file's end."""

    def __init__(self, file: Path, content: mmap.mmap):
        self._file, self._content, self._at = file, content, 4

    def contents(self) -> Contents:
        version = self._number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            raise ValueError(
                "it is a big-endian GGUF file; expected little-endian." if swapped
                else f"it is of GGUF version {version}; expected 2 or 3."
            )  # fmt: skip
        tensors, keys = self._count(_MOST, "tensors"), self._count(_MOST, "metadata keys")
        fields: dict[str, object] = {}
        for _ in range(keys):
            key = self._string(_NAME)
            if key in fields:
                raise self._damaged(f"{key} is there twice")
            fields[key] = self._value(self._number("I"))
        infos = [self._info() for _ in range(tensors)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}, expected a power of two")
        begin = -(-self._at // alignment) * alignment
        found: dict[str, Tensor] = {}
        for name, shape, kind, size, offset in infos:
            if name in found:
                raise self._damaged(f"tensor {name} is there twice")
            if offset % alignment or begin + offset + size > len(self._content):
                raise self._damaged(f"tensor {name} lies at {begin + offset} with {size} bytes of {len(self._content)}")
            found[name] = Tensor(self._file, shape, kind, begin + offset, begin + offset + size)
        return Contents(fields, found, (self._file,))

    def _info(self) -> tuple[str, tuple[int, ...], int, int, int]:
        """Name, shape, format, bytes and offset of a tensor."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, dims = self._string(_NAME), self._number("I")
        if not 1 <= dims <= 4:
            raise self._damaged(f"tensor {name} has {dims} dimensions")
        shape = tuple(self._number("Q") for _ in range(dims))[::-1]
        kind, offset, elements = self._number("I"), self._number("Q"), 1
        for size in shape:
            elements *= size
        if not 0 < elements <= 32 * len(self._content):  # no format has more than 32 values in a byte
            raise self._damaged(f"tensor {name} has the shape {shape}")
        if kind not in set(GGMLQuantizationType):
            raise ValueError(f"tensor {name} is in format {kind}, which is not known; get another quantisation.")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if shape[-1] % block:
            raise self._damaged(f"tensor {name} has rows of {shape[-1]}, no multiple of {block}")
        return name, shape, kind, elements // block * size, offset

    def _value(self, kind: int):
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string(len(self._content))
        if kind != _ARRAY:
            raise self._damaged(f"metadata of type {kind}")
        kind, count = self._number("I"), self._count(_LONGEST, "elements in an array")
        if kind == _STRING:
            return [self._string(_NAME) for _ in range(count)]
        if kind not in _SCALARS:
            raise self._damaged(f"an array of type {kind}")
        letter = _SCALARS[kind]
        return list(struct.unpack(f"<{count}{letter}", self._take(count * struct.calcsize(letter))))

    def _count(self, most: int, what: str) -> int:
        count = self._number("Q")
        if count > min(most, len(self._content)):
            raise self._damaged(f"{count} {what}")
        return count

    def _string(self, longest: int) -> str:
        length = self._number("Q")
        if length > longest:
            raise self._damaged(f"a name of {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged("a text that is not UTF-8") from error

    def _number(self, letter: str):
        return struct.unpack(f"<{letter}", self._take(struct.calcsize(letter)))[0]

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._content):
            raise self._damaged("it ends early")
        self._at += size
        return self._content[self._at - size : self._at]

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"its header is damaged at byte {self._at}: {what}; get the file anew.")
