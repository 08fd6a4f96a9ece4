"""The adapter that comes with tmem: what lies in the package, and what is said of it."""

import json
import re

import pytest
from safetensors import safe_open

from tmem.models import loading
from tmem.models.lora import fingerprint
from tmem.models.merge import BASE, read_lora

CARD = loading.WRITER / "README.md"


def test_it_is_small_and_plain_and_over_the_default_model():
    assert {f.name for f in loading.WRITER.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert sum(f.stat().st_size for f in loading.WRITER.iterdir()) < 12 * 10**6
    with safe_open(loading.WRITER / "adapter_model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 (safe_open has no __iter__)
        assert set(file.metadata()) == {"format", BASE}
    config = json.loads((loading.WRITER / "adapter_config.json").read_text())
    assert "/" not in config["base_model_name_or_path"] or config["base_model_name_or_path"].startswith("HuggingFaceTB/")
    model, _ = loading.load_model(None, adapter=None)
    lora = read_lora(loading.WRITER, model)
    assert lora.base == fingerprint(model) and len(lora.pairs) == 7 * model.config.num_hidden_layers


def test_the_default_model_has_it_unless_told_otherwise():
    plain, _ = loading.load_model(None, adapter="none")
    default, _ = loading.load_model(None, adapter="default")
    assert fingerprint(plain) != fingerprint(default)


@pytest.mark.parametrize("word", ["Apache-2.0", "CC BY-SA 4.0", "tmem train", "tmem eval", "seed 0", "SQuAD", "FairytaleQA"])
def test_its_card_says_what_it_was_made_from_and_by_which_command(word):
    card = CARD.read_text(encoding="utf-8")
    assert word in card and not re.search(r"/(?:work|tmp|home)/", card)
