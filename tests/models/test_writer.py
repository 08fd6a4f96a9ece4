"""The adapter that comes with tmem: what lies in the package, and what is said of it."""

import json
import re

import pytest
import torch
import writer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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


def test_several_runs_are_their_mean_by_weight(tmp_path, monkeypatch):
    """Hand-computed; and an adapter over other weights is refused before anything is written."""
    for name, value, base in (("a", 1.0, "x"), ("b", 5.0, "x"), ("c", 1.0, "y")):
        (tmp_path / name / "warm").mkdir(parents=True)
        (tmp_path / name / "warm" / "adapter_config.json").write_text('{"r": 1}')
        save_file({"w": torch.full((2,), value)}, tmp_path / name / "warm" / "adapter_model.safetensors", {BASE: base})
    monkeypatch.setattr(writer, "WRITER", tmp_path / "out")
    with pytest.raises(SystemExit, match="over the same weights as the first run's"):
        writer.main(str(tmp_path / "a"), str(tmp_path / "c"))
    assert not (tmp_path / "out").exists()
    writer.main(f"{tmp_path / 'a'}:3", f"{tmp_path / 'b'}:1")
    made = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert made["w"].dtype == torch.bfloat16 and made["w"].tolist() == [2.0, 2.0]  # (3 · 1 + 1 · 5) / 4
