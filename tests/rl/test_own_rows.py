"""FSDP: every rank reads its own rows of the files alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import model
from tiny_folder import folder_of, words

from tmem.models import loading, shards
from tmem.models.bases import is_linear
from tmem.models.lora import fingerprint, hashed
from tmem.models.merge import Lora, read_lora, save_lora
from tmem.models.shards import fill_, in_pieces, stored
from tmem.rl.trainer import Trainer

SCRIPT = Path(__file__).parents[1] / "helpers" / "loaded_in_parts.py"
MOST = 1.2  # of a rank's share, in fp32
OTHERS = {"qwen2": {"tie_word_embeddings": False}, "gemma3_text": {}, "phi3": {}, "granite": {}}


def adapter_over(folder, network=None):
    """The folder of an adapter of all linear layers, with the fingerprint of what it is over."""
    network = network or loading.load_model(folder, dtype=torch.float32, device="cpu")[0]
    generator = torch.Generator().manual_seed(0)
    pairs = {
        name: tuple(0.1 * torch.randn(shape, generator=generator) for shape in ((3, m.in_features), (m.out_features, 3)))
        for name, m in network.named_modules() if is_linear(m) and name != "lm_head"
    }  # fmt: skip
    save_lora(folder.with_name(f"{folder.name}-lora"), Lora(pairs, 3, 0.5, fingerprint(network)), str(folder))
    return folder.with_name(f"{folder.name}-lora")


def test_each_of_two_processes_reads_its_share(tmp_path):
    """Its peak is little above what it holds, and together they hold the model; odd rows are spread unevenly. The same under an
    adapter that is merged."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux to measure a peak")
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 6}
    big = model(**sizes, num_hidden_layers=8)
    big.save_pretrained(tmp_path / "big", max_shard_size="40MB")
    words().save_pretrained(tmp_path / "big")
    whole = sum(p.nbytes for p in big.parameters())
    over = adapter_over(tmp_path / "big", big)
    del big
    small = folder_of(tmp_path / "small", intermediate_size=81, vocab_size=161)
    others = [folder_of(tmp_path / family, family=family, **how) for family, how in OTHERS.items()]
    others += [adapter_over(folder) for folder in (small, tmp_path / "phi3")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(SCRIPT), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # see test_shards
    done = subprocess.run([*command, small, tmp_path / "big", over, *others], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name, ranks in zip(("whole", "under an adapter"), zip(*found)):
        assert sum(share for _, share in ranks) == whole > 200e6
        for peak, share in ranks:
            assert peak <= MOST * share, f"{name}: peak {peak / 1e6:.1f} MB, share {share / 1e6:.1f} MB"


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.MORE])
def test_the_names_in_files_are_those_of_the_parameters(family, tmp_path):
    """Of every family whose weights are trained; a mixture of experts is none, and has other names."""
    made = loading.unfilled(folder_of(tmp_path / "m", family=family))
    if "moe" in family:
        assert made is None
        return
    network, _, weights = made
    assert all(p.is_meta and p.dtype == torch.float32 for p in network.parameters())
    assert {name for name, _ in network.named_parameters()} <= weights.keys()


def test_rows_are_written_in_the_dtype_of_their_place(tmp_path):
    folder = folder_of(tmp_path / "m", dtype=torch.bfloat16)
    weights, name = stored(folder), "model.layers.0.mlp.up_proj.weight"
    place = torch.full((7, 64), float("nan"))
    fill_([(name, place, 70), (name, place[:0], 80)], weights)
    assert torch.equal(place, weights[name][...][70:77].float()) and weights[name].shape == (80, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fingerprint_of_files_is_that_of_the_model_in_them(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_PIECE", 7)  # given back afterwards
    folder = folder_of(tmp_path / "m", family="qwen2", dtype=dtype)
    network, _ = loading.load_model(folder, dtype=torch.float32, device="cpu")
    names = [name for name, _ in network.named_parameters()]
    for shards._PIECE in (7, 1024):
        assert hashed(in_pieces(names, stored(folder))) == fingerprint(network)


def test_an_adapter_of_other_weights_is_refused_before_any_is_merged(tmp_path):
    folder, other = folder_of(tmp_path / "m"), folder_of(tmp_path / "n", seed=1)
    over = adapter_over(folder)
    with pytest.raises(ValueError, match="was trained over weights with the fingerprint"):
        loading.unfilled(other, over)
    network, _, weights = loading.unfilled(folder, over)
    name = "model.layers.0.mlp.up_proj.weight"
    want, _ = loading.load_model(over, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(weights[name].rows(7, 60), want.get_parameter(name)[7:60], rtol=1e-6, atol=1e-6)
    assert network.config._name_or_path == want.config._name_or_path


@pytest.mark.parametrize("alike", [True, False])
def test_a_head_of_its_own_under_a_config_that_ties_it_is_not_passed_over(tmp_path, alike):
    """transformers keeps the head of such files; ranks that read their own rows would have tied it away."""
    folder = folder_of(tmp_path / "m", tie_word_embeddings=True)
    (file,) = folder.glob("*.safetensors")
    held = load_file(file)
    assert "lm_head.weight" not in held
    held["lm_head.weight"] = held["model.embed_tokens.weight"] + (0.0 if alike else 0.1)
    save_file(held, file, metadata={"format": "pt"})
    assert (loading.unfilled(folder) is not None) == alike


def test_an_adapter_over_few_bits_is_left_to_what_names_the_fault(tmp_path):
    folder = folder_of(tmp_path / "m")
    over = adapter_over(folder)
    network, _ = loading.load_model(folder, dtype=torch.float32, device="cpu")
    save_lora(over, replace(read_lora(over, network), bits="nf4"), None)
    assert loading.unfilled(folder, over) is None


def test_training_asks_for_the_rows_under_the_adapter(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "m")
    over, asked = adapter_over(folder), []
    monkeypatch.setattr(loading, "unfilled", lambda *names: asked.append(names))
    assert Trainer._in_parts(SimpleNamespace(model_name=str(folder), adapter=over)) is None
    assert asked == [(str(folder), over)]


@pytest.mark.parametrize("change", ["missing", "shape", "more"])
def test_files_that_do_not_fit_are_left_to_what_names_the_fault(change, tmp_path):
    file = folder_of(tmp_path / "m") / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "shape":
        weights[name] = weights[name][:40].clone()
    else:
        weights["other.weight"] = torch.ones(3)
    save_file(weights, file, metadata={"format": "pt"})
    assert loading.unfilled(tmp_path / "m") is None
