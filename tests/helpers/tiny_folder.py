"""A tiny model in a folder, as `--model` takes it."""

from pathlib import Path

from tiny import model
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from tmem.models import loading


def words():
    """A tokenizer of three words."""
    made = Tokenizer(tokenizer_models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="?")


def folder_of(path: Path, **options) -> Path:
    loading.save_model(model(**options), words(), path)
    return path
