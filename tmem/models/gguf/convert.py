"""A GGUF file as an ordinary Hugging Face folder, converted once and kept in the user's cache.

Whatever the file says about the computation is carried over or refused by its name: nothing is left to a default that the file
does not state, and no weight is drawn. The rules are those of llama.cpp, which writes and runs such files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...files.folders import atomic_folder, cache_folder
from .config import config_of
from .families import ALONE, FAMILIES, Family
from .file import Contents, parts, read
from .rope import TENSORS
from .tokenizer import tokenizer_of

# Counts changes of what `_write` makes, so that folders of an older recipe are not used.
_RECIPE = 4


def folder_of(file: Path) -> Path:
    """Where the conversion of `file` belongs; named by its content, so a changed file gets a new folder."""
    digest = hashlib.sha256(f"{_RECIPE}".encode())
    for part in parts(file):
        if part.is_file():
            digest.update(f":{part.stat().st_size}:".encode())
            with part.open("rb") as f:
                while block := f.read(1 << 22):
                    digest.update(block)
    return cache_folder() / "models" / f"{file.stem}-{digest.hexdigest()[:16]}"


def converted(file: Path) -> Path:
    """The folder with the converted model, made now if it is not there; safe under several processes at once."""
    with file.open("rb") as f:
        if f.read(4) != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF; the file is of another kind or damaged.")
    folder = folder_of(file)
    if not (folder / "config.json").is_file():
        with atomic_folder(folder, "config.json", keep=True) as work:
            _write(file, work)
    return folder


def _write(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    contents = read(file)
    config = config_of(contents)
    tokenizer = tokenizer_of(contents.fields, config.max_position_embeddings)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"it has {len(tokenizer)} tokens and embeds {config.vocab_size}; get the file anew.")
    for role in ("bos", "eos", "pad"):
        setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # A quantised matrix is off by far more than the bf16 it was made from; unquantised ones keep every bit in fp32.
    # Routers of experts are never quantised.
    matrices = [t for name, t in contents.tensors.items() if len(t.shape) > 1 and ".ffn_gate_inp." not in name]
    exact = any(t.kind in (0, 1) for t in matrices)
    weights = _weights(contents, config, {n: tuple(p.shape) for n, p in model.named_parameters()})
    dtype = torch.float32 if exact else torch.bfloat16
    state = {name: torch.from_numpy(np.ascontiguousarray(values)).to(dtype) for name, values in weights}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    _ends(model, contents.fields, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _ends(model, fields: dict, tokenizer) -> None:
    """The tokens that end a generation: the file may name one of a turn and one of a message beside that of a text."""
    also = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    ends = list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *also) if i is not None))
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def _weights(contents: Contents, config, expected: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, fp32 values) of every weight of the model. Raises ValueError that names what is absent, too much or misshapen."""
    family, model = FAMILIES[contents.fields["general.architecture"]], config.model_type
    pieces: dict[str, list[_Piece]] = {}
    for name, tensor in contents.tensors.items():
        if name in TENSORS:
            continue
        places, order = _places(name, family)
        if not places or any(place not in expected for place in places[:-1]):
            raise ValueError(f"tensor {name} has no place in a model of family {model}; choose another model.")
        cuts = [0, *np.cumsum([expected[place][0] for place in places[:-1]]).tolist(), tensor.shape[0]]
        for place, start, stop in zip(places, cuts, cuts[1:]):
            pieces.setdefault(place, []).append(_Piece(order, name, slice(start, stop) if len(places) > 1 else slice(None)))
    if absent := sorted(expected.keys() - pieces.keys()):
        raise ValueError(f"{len(absent)} of the model's {len(expected)} weights are absent, such as {absent[0]}; get it anew.")
    if unread := sorted(pieces[place][0].name for place in pieces.keys() - expected.keys()):
        raise ValueError(f"tensor {unread[0]} has no place in a model of family {model}; choose another model.")
    for place, of in pieces.items():
        of.sort()
        if (shape := _shape(contents, of)) != expected[place]:
            names = " and ".join(piece.name for piece in of)
            raise ValueError(f"tensor {names} has the shape {shape}, the header asks for {expected[place]}; get the file anew.")
    for place, of in pieces.items():
        values = np.concatenate([_read(contents, piece) for piece in of], _joined(expected[place]))
        if family.swapped and (heads := _turned(place, config)):
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        yield place, values - family.shift if "norm" in place else values


class _Piece(NamedTuple):
    """Rows of a tensor that are a weight, or a part of one that stands at `order`."""

    order: int
    name: str
    rows: slice


def _places(name: str, family: Family) -> tuple[tuple[str, ...], int]:
    """Hugging Face's names of what GGUF's tensor `name` holds, and where it stands among what it is joined with."""
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return (), 0
    if stem in ALONE:
        return (f"{ALONE[stem]}.{suffix}",), 0
    match stem.split(".", 2):
        case ["blk", number, part] if number.isdecimal():
            block = f"model.layers.{int(number)}"
            return tuple(_called(f"{block}.{place}", suffix) for place in family.places(part)), family.rank(part)
    return (), 0


def _called(place: str, suffix: str) -> str:
    """The tensors of all experts are parameters, and no layers with weights."""
    return place if ".experts." in place and suffix == "weight" else f"{place}.{suffix}"


def _joined(shape: tuple[int, ...]) -> int:
    """The dimension of outputs: of all experts' weights [E, N, K] the second, else the first."""
    return max(len(shape) - 2, 0)


def _shape(contents: Contents, pieces: list[_Piece]) -> tuple[int, ...]:
    """The shape of the joined pieces; of the last one that does not fit to the first where there is one."""
    shapes = [contents.tensors[piece.name].shape for piece in pieces]
    shapes = [(len(range(*piece.rows.indices(shape[0]))), *shape[1:]) for piece, shape in zip(pieces, shapes)]
    axis = _joined(shapes[0])
    whole = (*shapes[0][:axis], sum(shape[axis] for shape in shapes if len(shape) > axis), *shapes[0][axis + 1 :])
    unlike = [shape for shape in shapes if (*shape[:axis], *shape[axis + 1 :]) != (*whole[:axis], *whole[axis + 1 :])]
    return unlike[-1] if unlike else whole


def _read(contents: Contents, piece: _Piece) -> np.ndarray:
    values = contents.tensors[piece.name].values()[piece.rows]
    if not np.isfinite(values).all():
        raise ValueError(f"tensor {piece.name} holds values that are not finite; get the file anew.")
    return values


def _turned(place: str, config) -> int:
    """How many heads lie in a weight whose outputs are rotated by positions; 0: they are not."""
    if ".q_proj." in place:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in place else 0
