"""A GGUF file as an ordinary Hugging Face folder, converted once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import io
from contextlib import redirect_stderr
from pathlib import Path

from .folders import atomic_folder, cache_folder

# Counts changes of what `_write` makes, so that folders of an older recipe are not used.
_RECIPE = 1

# Pre-tokenizers (GGUF's `tokenizer.ggml.pre`) that cut every digit out before byte-level BPE.
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva"}


def folder_of(file: Path) -> Path:
    """Where the conversion of `file` belongs; named by its content, so a changed file gets a new folder."""
    digest = hashlib.sha256(f"{_RECIPE}:{file.stat().st_size}:".encode())
    with file.open("rb") as f:
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
    from gguf import GGMLQuantizationType, GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = GGUFReader(file)
    exact = {GGMLQuantizationType.F32, GGMLQuantizationType.F16}
    # A quantised matrix is off by far more than the bf16 it was made from; unquantised ones keep every bit in fp32.
    full = any(t.tensor_type in exact and len(t.shape) > 1 for t in reader.tensors)
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    with redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32 if full else torch.bfloat16)
    model.hf_quantizer = None  # the weights are dense by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = model.config.max_position_embeddings
    _mend(tokenizer, reader)
    tokenizer.save_pretrained(folder)


def _mend(tokenizer, reader) -> None:
    """Put right from the file's own fields what transformers' loader gets wrong: bos, eos, pad, digits, spaces."""
    from tokenizers import decoders, pre_tokenizers

    def field(name):
        found = reader.fields.get(f"tokenizer.ggml.{name}")
        return None if found is None else found.contents()

    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        index = field(f"{name}_token_id")
        if index is not None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(int(index)))
    tokenizer.clean_up_tokenization_spaces = False  # it would drop spaces that the model wrote
    if field("pre") in _DIGITS_APART:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
