"""Loading takes little more memory than the model: weights come from the files one after another, when they are asked for."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import model
from tiny_bank import IDS, logits
from tiny_folder import folder_of, words

from tmem.models import loading, quantised
from tmem.models.quantised import BITS, quantise_
from tmem.models.shards import common_dtype, stored

HERE = [bits for bits in BITS if find_spec(quantised.LIBRARY[bits])]
MOST = 1.2  # of the bytes that the model takes when it is loaded
DTYPES = ["float32", "bfloat16"]
AT_WORK = {"int8": 4, "fp8": 4}  # times the largest linear layer in fp32, while torchao puts that into few bits
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_hidden_layers": 16}

LOADED = """
import gc, itertools, json, os, sys
from pathlib import Path
import torch
from transformers.models.llama import modeling_llama
from tmem.models import loading
from tmem.models.bases import tensors_of

def resident(name):
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line[:5] == name)

def told(bits, dtype):
    wanted = {"bits": bits or None, "dtype": getattr(torch, dtype), "device": "cpu"}
    loading.load_model(small, **wanted)  # whatever is imported or set up once
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident("VmRSS")
    model, _ = loading.load_model(big, **wanted)
    held = {tensor.data_ptr(): tensor for tensor in tensors_of(model)}
    sum(float(tensor.view(-1)[::512].float().sum()) for tensor in held.values())  # every page of what is mapped
    found = [resident("VmHWM") - before, sum(tensor.nbytes for tensor in held.values())]
    print(json.dumps([bits, dtype, *found]), flush=True)

small, big, bits, dtypes = sys.argv[1:]
for case in itertools.product(bits.split(","), dtypes.split(",")):
    if os.fork() == 0:  # with all that is imported, and no memory of another case
        told(*case)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model and one of 200 MB in some files, with the tokenizer of three words. No layer is a large part of it."""
    out = tmp_path_factory.mktemp("models")
    big = model(**SIZES, num_key_value_heads=6, dtype=torch.bfloat16)
    assert sum(p.nbytes for p in big.parameters()) > 200e6
    big.save_pretrained(out / "big", max_shard_size="40MB")
    words().save_pretrained(out / "big")
    assert len(list((out / "big").glob("*.safetensors"))) >= 5
    folder_of(out / "small")
    return out


@pytest.fixture(scope="module")
def loaded(folders):
    """(bits, dtype): the peak of loading the large model above what was resident before, and the model's bytes."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux to measure a peak")
    # glibc keeps what was freed in small pieces, here all pieces; weights of real models are above its threshold.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", LOADED, folders / "small", folders / "big", ",".join(["", *HERE]), ",".join(DTYPES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = {(bits, dtype): numbers for bits, dtype, *numbers in map(json.loads, done.stdout.splitlines())}
    assert len(found) == len(DTYPES) * (1 + len(HERE)), done.stderr
    return found


@pytest.mark.parametrize("bits", ["", *HERE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_peak_of_loading_is_little_above_the_model(loaded, bits, dtype):
    peak, size = loaded[bits, dtype]
    most = MOST * size + AT_WORK.get(bits, 0) * 4 * SIZES["hidden_size"] * SIZES["intermediate_size"]
    assert size > 20e6 and peak <= most, f"peak {peak / 1e6:.1f} MB, model {size / 1e6:.1f} MB"


@pytest.mark.parametrize("bits", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "phi3"])
def test_weights_that_come_one_after_another_are_those_of_the_whole_model(tmp_path, bits, dtype, family):
    folder = folder_of(tmp_path / "m", family=family)
    one, _ = loading.load_model(folder, bits=bits, dtype=dtype, device="cpu")
    whole, _ = loading.load_model(folder, dtype=dtype, device="cpu")
    want = quantise_(whole, bits, "cpu")
    ids = IDS.clamp(max=100)
    with torch.no_grad():
        assert torch.equal(logits(one, ids), logits(want, ids))
    for (name, mine), theirs in zip(one.named_parameters(), want.parameters()):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, name
    assert one.dtype == dtype and not any(p.requires_grad for p in one.parameters())


def test_the_files_that_count_are_the_single_one_or_those_of_the_index(tmp_path):
    folder = folder_of(tmp_path / "m")
    assert common_dtype(stored(folder)) == torch.float32
    network = model()
    network.model.norm.weight.data = network.model.norm.weight.data.to(torch.bfloat16)
    network.save_pretrained(tmp_path / "n", max_shard_size="100KB")
    assert common_dtype(stored(tmp_path / "n")) is None and stored(tmp_path / "n").keys() == stored(folder).keys()
    found, want = stored(folder)["model.norm.weight"], dict(model().named_parameters())["model.norm.weight"]
    assert torch.equal(found[...], want) and found.get_dtype() == "F32"
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
        stored(folder)
