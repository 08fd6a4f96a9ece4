"""FSDP: every rank reads its own rows of the files alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import model
from tiny_folder import folder_of, words

from tmem.models import loading
from tmem.models.shards import fill_, stored

SCRIPT = Path(__file__).parents[1] / "helpers" / "loaded_in_parts.py"
MOST = 1.2  # of a rank's share, in fp32
OTHERS = {"qwen2": {"tie_word_embeddings": False}, "gemma3_text": {}, "phi3": {}, "granite": {}}


def test_each_of_two_processes_reads_its_share(tmp_path):
    """Its peak is little above what it holds, and together they hold the model; odd rows are spread unevenly."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux to measure a peak")
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 6}
    big = model(**sizes, num_hidden_layers=8)
    big.save_pretrained(tmp_path / "big", max_shard_size="40MB")
    words().save_pretrained(tmp_path / "big")
    whole = sum(p.nbytes for p in big.parameters())
    del big
    small = folder_of(tmp_path / "small", intermediate_size=81, vocab_size=161)
    others = [folder_of(tmp_path / family, family=family, **how) for family, how in OTHERS.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(SCRIPT), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # see test_shards
    done = subprocess.run([*command, small, tmp_path / "big", *others], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert sum(share for _, share in found) == whole > 200e6
    for peak, share in found:
        assert peak <= MOST * share, f"peak {peak / 1e6:.1f} MB, share {share / 1e6:.1f} MB"


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.MORE])
def test_the_names_in_files_are_those_of_the_parameters(family, tmp_path):
    """Of every family that is trained; a mixture of experts is frozen, and has other names."""
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
