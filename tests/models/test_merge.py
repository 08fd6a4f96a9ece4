"""A PEFT LoRA adapter over a model: merged as PEFT computes it or refused in one sentence; what names of the two mean."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import model
from tiny_bank import IDS, logits
from tiny_folder import folder_of

from tmem.models import loading
from tmem.models.lora import fingerprint
from tmem.models.merge import Lora, merged, read_lora, save_lora

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def base(tmp_path):
    return folder_of(tmp_path / "base")


def made_by_peft(folder, network=None, **options):
    """A trained-looking adapter of PEFT, saved; returns PEFT's logits."""
    torch.manual_seed(3)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": LINEAR, **options}
    adapted = peft.get_peft_model(network or model(), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    return logits(adapted.eval(), IDS)


def edit(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)


def load(name, **options):
    return loading.load_model(name, dtype=torch.float32, device="cpu", **options)[0]


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["q_proj"]}, {"layers_to_transform": [1]}])
def test_what_is_merged_computes_what_peft_computes(tmp_path, base, options):
    theirs = made_by_peft(tmp_path / "adapter", **options)
    mine = logits(load(base, adapter=tmp_path / "adapter"), IDS)
    assert (theirs - logits(load(base), IDS)).abs().max() > 0.01
    assert (mine - theirs).abs().max() < 1e-4


def test_the_sum_is_rounded_once_and_a_b_of_zero_leaves_the_weights(tmp_path):
    """Wrong: rounding B·A to bf16 before it is added, which loses what lies between two steps of W."""
    torch.manual_seed(0)
    w, a, b = torch.randn(40, 24).bfloat16(), torch.randn(4, 24), 1e-2 * torch.randn(40, 4)
    right = (w.double() + 2.0 * b.double() @ a.double()).to(torch.bfloat16)
    assert torch.equal(merged(w, a, b, 2.0), right)
    assert not torch.equal(w + (2.0 * b @ a).bfloat16(), right)
    assert torch.equal(merged(w, a, torch.zeros_like(b), 2.0), w)


def test_what_is_saved_is_read_by_peft_and_comes_back(tmp_path, base):
    network = load(base)
    torch.manual_seed(1)
    pairs = {
        name: (torch.randn(2, m.in_features), 0.1 * torch.randn(m.out_features, 2))
        for name, m in network.named_modules() if name.endswith(("q_proj", "down_proj"))
    }  # fmt: skip
    save_lora(tmp_path / "mine", Lora(pairs, 2, 2.0, fingerprint(network)), str(base))
    again = read_lora(tmp_path / "mine", network)
    assert all(torch.equal(x, y) for name in pairs for x, y in zip(pairs[name], again.pairs[name])) and again.scale == 2.0
    theirs = peft.PeftModel.from_pretrained(load(base), tmp_path / "mine").eval()
    assert (logits(theirs, IDS) - logits(load(base, adapter=tmp_path / "mine"), IDS)).abs().max() < 1e-4


def test_an_adapter_that_names_its_base_is_a_model(tmp_path, base):
    made_by_peft(tmp_path / "adapter")
    with pytest.raises(loading.ModelError, match="is an adapter, not a model, and names none"):
        load(tmp_path / "adapter")
    edit(tmp_path / "adapter", base_model_name_or_path=str(base))
    network = load(tmp_path / "adapter")
    assert torch.equal(logits(network, IDS), logits(load(base, adapter=str(tmp_path / "adapter")), IDS))
    assert loading.resolve(tmp_path / "adapter") == base and loading.config(tmp_path / "adapter").hidden_size == 64
    assert "with the adapter" in network.config._name_or_path  # what is saved over it does not name the bare model
    with pytest.raises(loading.ModelError, match="is an adapter itself"):
        load(tmp_path / "adapter", adapter=tmp_path / "other")
    shutil.copytree(tmp_path / "adapter", tmp_path / "second")
    edit(tmp_path / "second", base_model_name_or_path=str(tmp_path / "adapter"))
    with pytest.raises(loading.ModelError, match="is an adapter over another one"):
        load(tmp_path / "second")


def test_the_packaged_adapter_is_that_of_the_default_model_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "WRITER", tmp_path / "writer")
    for name in (None, loading.DEFAULT):
        assert loading.apart(name, "default") == (name, None)  # none is packaged
    made_by_peft(tmp_path / "writer")
    for name in (None, loading.DEFAULT):
        assert loading.apart(name, "default") == (name, tmp_path / "writer")
        assert loading.apart(name, "none") == loading.apart(name) == (name, None)
    assert loading.apart("some/other", "default") == ("some/other", None)
    assert loading.apart("some/other", "mine") == ("some/other", loading.Path("mine"))


OTHERS = [
    (lambda f: edit(f, use_dora=True), "sets use_dora .*only plain LoRA is read"),
    (lambda f: edit(f, r=4), r"layers\.0\.mlp\.down_proj: expected A, B of \(\(4, 80\)"),
    (lambda f: rewrite(f, lambda t: {k: v[:, :60] if k.endswith("q_proj.lora_A.weight") else v for k, v in t.items()}),
     "expected A, B of .*made for"),
    (lambda f: rewrite(f, lambda t: {k: v for k, v in t.items() if "2.mlp.up_proj.lora_B" not in k}), "only lora_A of"),
    (lambda f: rewrite(f, lambda t: {k: v for k, v in t.items() if "up_proj" not in k}), "lacks .*up_proj"),
    (lambda f: rewrite(f, lambda t: {k.replace("layers.3", "layers.4"): v for k, v in t.items()}), "no linear layer of this"),
    (lambda f: rewrite(f, lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2)}), "no factor of a plain LoRA"),
    (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "is a pickle"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), "is damaged"),
    (lambda f: shutil.rmtree(f), "is missing"),
]  # fmt: skip


@pytest.mark.parametrize("damage, sentence", OTHERS, ids=[sentence for _, sentence in OTHERS])
def test_what_does_not_fit_is_refused_in_one_sentence_and_changes_nothing(tmp_path, base, damage, sentence):
    made_by_peft(tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        load(base, adapter=tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_other_weights_is_refused_where_its_file_says_which(tmp_path, base):
    other = folder_of(tmp_path / "other", seed=1)
    network = load(base)
    pairs = {n: (torch.ones(1, 64), torch.ones(m.out_features, 1)) for n, m in network.named_modules() if n.endswith("q_proj")}
    save_lora(tmp_path / "mine", Lora(pairs, 1, 1.0, fingerprint(network)), str(base))
    load(tmp_path / "mine")
    with pytest.raises(ValueError, match="was trained over weights with the fingerprint"):
        load(other, adapter=tmp_path / "mine")


def test_a_head_that_is_the_embeddings_is_not_adapted(tmp_path, base):
    made_by_peft(tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="lm_head"):
        load(base, adapter=tmp_path / "adapter")
