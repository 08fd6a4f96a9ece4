"""A GGUF file is converted to what it says, or refused by the name of what it says; damaged files end in time."""

import multiprocessing
import os
import random
import struct
import time

import numpy as np
import pytest
import tiny
import torch
from tiny_gguf import ARCHS, Q8, SCORES, WORDS, bytes_vocabulary, tensors_of, write

from tmem.models import loading
from tmem.models.gguf import convert
from tmem.models.gguf.config import config_of
from tmem.models.gguf.file import read

IDS = torch.tensor([[5, 9, 200, 3, 77, 130, 41, 8] * 12])  # long enough that wrong positions show
SIZES = {"vocab_size": 272, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def model(family="llama", **sizes):
    return tiny.model(family, **{**SIZES, **sizes})


def logits(network):
    with torch.no_grad():
        return network(IDS).logits


def reads_right(file, network):
    loaded, tokenizer = loading.load_model(file, dtype=torch.float32, device="cpu")
    assert torch.equal(logits(loaded), logits(network)), (logits(loaded) - logits(network)).abs().max()
    return loaded, tokenizer


def refused(file, words, cache):
    with pytest.raises(loading.ModelError, match=words) as caught:
        loading.load_model(file)
    assert "\n" not in str(caught.value) and file.name in str(caught.value)
    assert not cache.exists() or os.listdir(cache) == []  # nothing half-read stays


# What a file can state of a family whose tiny model is otherwise.
STATED = {
    "smollm3": {"no_rope_layer_interval": 4, "num_hidden_layers": 5},
    "gemma3_text": {"query_pre_attn_scalar": 16, "num_hidden_layers": 4},
}
READ = sorted({*ARCHS, "mistral+window", "phi3+window"})


def stated(family, **sizes):
    """A model of which norms and biases are as random as the rest."""
    network = model(family, **{**STATED.get(family, {}), **sizes})
    for weight in network.parameters():
        if weight.ndim == 1:
            weight.data += 0.3 * torch.randn(weight.shape)
    return network


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", READ)
def test_every_family_computes_what_the_folder_computes(family, tied, tmp_path):
    network = stated(family, tie_word_embeddings=tied)
    loaded, _ = reads_right(write(tmp_path / "m.gguf", network), network)
    assert loaded.config.tie_word_embeddings == tied
    assert loaded.config.model_type == ("llama" if family == "mistral" else family.partition("+")[0])


@pytest.mark.parametrize("family, head", [("llama", 32), ("mistral", 8), ("qwen3", 64), ("gemma", 64)])
def test_heads_of_another_length_than_the_width_over_their_number(family, head, tmp_path):
    network = model(family, head_dim=head)
    assert reads_right(write(tmp_path / "m.gguf", network), network)[0].config.head_dim == head


BIASED = ("llama", "qwen3", "qwen3_moe", "gemma", "gemma3_text", "granite", "smollm3", "olmo2", "glm4")


@pytest.mark.parametrize("family", BIASED)
def test_biases(family, tmp_path):
    more = {"mlp_bias": True} if family in ("llama", "granite", "smollm3") else {}
    network = stated(family, attention_bias=True, **more)
    for name, bias in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    reads_right(write(tmp_path / "m.gguf", network), network)
    del network


def test_quantised_weights_are_the_files_and_heads_follow_the_older_rule(tmp_path):
    """A file of before `attention.key_length`; Q8_0 is off by 2^-8 of a block's largest."""
    network = model(intermediate_size=96)
    older = ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base", "vocab_size")
    file = write(tmp_path / "m.gguf", network, kinds=Q8, fields=dict.fromkeys(older))
    loaded, _ = loading.load_model(file, dtype=torch.float32, device="cpu")
    for (name, mine), theirs in zip(sorted(loaded.named_parameters()), (p for _, p in sorted(network.named_parameters()))):
        assert (mine - theirs).abs().max() <= theirs.abs().max() / 100, name


def test_a_quantised_mixture_takes_the_room_of_one_whose_router_is_quantised_too(tmp_path):
    """llama.cpp leaves routers in fp32, which says nothing about the rest."""
    network = stated("qwen3_moe", intermediate_size=96, moe_intermediate_size=32)
    folder = convert.converted(write(tmp_path / "m.gguf", network, kinds=Q8))
    assert loading.config(folder).dtype == torch.bfloat16
    loaded, _ = loading.load_model(folder, dtype=torch.float32, device="cpu")
    for (name, mine), theirs in zip(sorted(loaded.named_parameters()), (p for _, p in sorted(network.named_parameters()))):
        assert (mine - theirs).abs().max() <= theirs.abs().max() / 100, name


def llama3(head, theta, **rope):
    """Divisors as llama.cpp's converter writes them."""
    low, high = (rope["original_max_position_embeddings"] / rope[f"{x}_freq_factor"] for x in ("low", "high"))
    factors = []
    for i in range(0, head, 2):
        length = 2 * np.pi * theta ** (i / head)
        smooth = (rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        factors.append(1 if length < high else rope["factor"] if length > low else 1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(
    "head, theta, rope",
    [
        (64, 500000.0, (32.0, 1.0, 4.0, 8192)),  # Llama 3.2
        (128, 500000.0, (8.0, 1.0, 4.0, 8192)),  # Llama 3.1
        (16, 10000.0, (4.0, 1.0, 4.0, 64)),
        (64, 10000.0, (8.0, 1.5, 6.0, 96)),  # what nobody has published
        (16, 10000.0, (1.0, 1.0, 4.0, 64)),
    ],
)
def test_llama_3s_divisors_are_read(head, theta, rope, tmp_path):
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    rope = {"rope_type": "llama3", "rope_theta": theta, **dict(zip(names, rope))}
    network = model(head_dim=head, rope_parameters=rope)
    plain = model(head_dim=head, rope_parameters={"rope_type": "default", "rope_theta": theta})
    assert rope["factor"] == 1.0 or not torch.allclose(logits(network), logits(plain), atol=1e-2) or head == 64 or head == 128
    file = write(tmp_path / "m.gguf", network, tensors={"rope_freqs.weight": llama3(head, theta, **rope)})
    loaded, _ = loading.load_model(file, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(loaded.model.rotary_emb.inv_freq, network.model.rotary_emb.inv_freq, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits(loaded), logits(network), rtol=0, atol=1e-3)


@pytest.mark.parametrize("keys", [{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope.scaling.factor": 4.0},
                                  {"rope.scale_linear": 4.0}, {"rope.scaling.type": "linear", "rope.scale_linear": 4.0},
                                  {"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}])  # fmt: skip
def test_linear_scaling_is_read_in_every_form(keys, tmp_path):
    network = model("qwen2", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    assert not torch.allclose(logits(network), logits(model("qwen2")), atol=1e-2)
    reads_right(write(tmp_path / "m.gguf", network, fields=keys), network)


def test_yarn_is_read(tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    network = model("qwen2", rope_parameters=rope)
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128,
            "rope.scaling.finetuned": True}  # fmt: skip
    loaded, _ = loading.load_model(write(tmp_path / "m.gguf", network, fields=keys), dtype=torch.float32, device="cpu")
    torch.testing.assert_close(logits(loaded), logits(network), rtol=0, atol=1e-4)
    assert not torch.allclose(logits(network), logits(model("qwen2")), atol=1e-2)


def longrope(family, **sizes):
    """Short factors to 64 tokens; of heads of 16 Phi-3 turns three quarters."""
    count = int(16 * (0.75 if family == "phi3" else 1)) // 2
    short, long = ([first + by * i for i in range(count)] for first, by in ((1.0, 0.125), (2.0, 1.5)))
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long}
    rope["original_max_position_embeddings"] = 64
    if family == "phi3":
        rope["partial_rotary_factor"] = 0.75
        sizes["original_max_position_embeddings"] = 64
    return stated(family, rope_parameters=rope, **sizes)


@pytest.mark.parametrize("kind", [None, "longrope"])
@pytest.mark.parametrize("family", ["phi3", "llama", "granite", "smollm3", "olmo2"])
def test_longrope_is_read(family, kind, tmp_path):
    network = longrope(family)
    short = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75 if family == "phi3" else 1.0}
    assert not torch.allclose(logits(network), logits(stated(family, rope_parameters=short)), atol=1e-2)
    file = write(tmp_path / "m.gguf", network, fields={"rope.scaling.type": kind})
    loaded, _ = loading.load_model(file, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(logits(loaded), logits(network), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["granite", "smollm3", "olmo2", "qwen3_moe", "glm", "glm4"])
def test_other_families_scale_positions_by_the_same_laws(family, tmp_path):
    share = 0.5 if family.startswith("glm") else 1.0
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0, "partial_rotary_factor": share}
    network = stated(family, rope_parameters=linear)
    reads_right(write(tmp_path / "l.gguf", network), network)
    yarn = {**linear, "rope_type": "yarn", "original_max_position_embeddings": 128}
    network = stated(family, rope_parameters=yarn)
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
    loaded, _ = loading.load_model(write(tmp_path / "y.gguf", network, fields=keys), dtype=torch.float32, device="cpu")
    torch.testing.assert_close(logits(loaded), logits(network), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["glm", "glm4", "phi3"])
def test_projections_lie_as_one_tensor_or_as_three(family, tmp_path):
    network = stated(family)
    whole = tensors_of(network)
    parts = [f"blk.{i}.attn_{part}.{kind}" for i in range(2) for part in ("q", "k", "v", "qkv") for kind in ("weight", "bias")]
    other = {}
    for name in (name for name in parts if name.endswith(("qkv.weight", "qkv.bias"))):
        if family == "phi3" and name in whole:
            cuts = np.split(whole[name], [64, 96])
            other |= {name.replace("qkv", part): np.ascontiguousarray(cut) for part, cut in zip("qkv", cuts)}
        elif family != "phi3":
            other[name] = np.concatenate([whole[name.replace("qkv", part)] for part in "qkv"])
    assert len(other) == (6 if family == "phi3" else 4)
    file = write(tmp_path / "m.gguf", network, tensors=other, without=[n for n in parts if n in whole])
    reads_right(file, network)


def test_a_part_of_a_head_is_the_one_that_the_file_states(tmp_path):
    """30 of 44 elements: 30 / 44 times 44 is a little less than 30."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": np.nextafter(30 / 44, 1).item()}
    network = stated("glm", head_dim=44, rope_parameters=rope)
    assert network.model.rotary_emb.inv_freq.shape == (15,)
    reads_right(write(tmp_path / "m.gguf", network, fields={"rope.dimension_count": 30}), network)


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    network = stated("mistral")
    loaded, _ = reads_right(write(tmp_path / "m.gguf", network, fields={"attention.sliding_window": 512}), network)
    assert loaded.config.model_type == "llama"


@pytest.mark.parametrize("pattern, kinds", [
    (None, "sssssfs"), (3, "ssfssfs"), (0, "sssssss"), ([1, 0, 0, 1, 1, 1, 0], "sffsssf"),
])  # fmt: skip
def test_windows_of_a_gemma_3_are_those_that_are_stated_or_llama_cpps(pattern, kinds, tmp_path):
    kinds = ["sliding_attention" if kind == "s" else "full_attention" for kind in kinds]
    ropes = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    network = stated("gemma3_text", num_hidden_layers=7, layer_types=kinds, rope_parameters=ropes)
    pattern = [bool(near) for near in pattern] if isinstance(pattern, list) else pattern
    fields = {"attention.sliding_window_pattern": pattern, "rope.freq_base_swa": None}
    reads_right(write(tmp_path / "m.gguf", network, fields=fields), network)


def test_the_largest_gemma_3_scales_attention_by_the_width_over_its_heads(tmp_path):
    """As 27B has it: 168 with heads of 128. No key states it."""
    sizes = {"num_hidden_layers": 62, "head_dim": 16, "hidden_size": 96, "query_pre_attn_scalar": 24, "intermediate_size": 32,
             "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10 + ["sliding_attention"] * 2}  # fmt: skip
    found = config_of(read(write(tmp_path / "m.gguf", stated("gemma3_text", **sizes))))
    assert found.query_pre_attn_scalar == 24 and found.layer_types == sizes["layer_types"]


def test_what_a_granite_does_not_state_is_not_scaled(tmp_path):
    keys = ("embedding_scale", "residual_scale", "logit_scale", "attention.scale")
    plain = dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0)
    network = stated("granite", attention_multiplier=0.25, **plain)
    reads_right(write(tmp_path / "m.gguf", network, fields=dict.fromkeys(keys)), network)


def test_experts_widths_and_weights_are_llama_cpps_where_none_are_stated(tmp_path):
    network = stated("qwen3_moe", intermediate_size=144)
    reads_right(write(tmp_path / "m.gguf", network, fields={"expert_feed_forward_length": None}), network)
    network = stated("qwen3_moe", norm_topk_prob=False)
    reads_right(write(tmp_path / "n.gguf", network, fields={"expert_weights_norm": False, "expert_gating_func": 1}), network)


SCALED = {"rope_factors_long.weight": np.full(8, 2, np.float32), "rope_factors_short.weight": np.ones(8, np.float32)}
ORIGINAL = {"rope.scaling.original_context_length": 64}
LAWLESS = {"rope_freqs.weight": np.array([1, 5, 2, 3, 9, 1, 4, 2], np.float32)}
REFUSED = {
    "divisors of no law": ({"tensors": LAWLESS}, "rope_freqs.weight"),
    "a longrope from nowhere": ({"tensors": SCALED}, "original_context_length, which longrope starts from"),
    "a longrope in words": ({"fields": {"rope.scaling.type": "longrope", **ORIGINAL}}, "rope_factors_short"),
    "a longrope by half": ({"tensors": dict([*SCALED.items()][1:]), "fields": ORIGINAL}, "rope_factors_long"),
    "a longrope of other heads": ({"tensors": {name: x[:4] for name, x in SCALED.items()}, "fields": ORIGINAL}, "4 divisors"),
    "a longrope that is linear": ({"tensors": SCALED, "fields": {"rope.scaling.factor": 2.0, **ORIGINAL}}, "twice"),
    "an unknown scaling": ({"fields": {"rope.scaling.type": "dynamic", "rope.scaling.factor": 2.0}}, "dynamic"),
    "yarn from nowhere": ({"fields": {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}}, "original_context_length"),
    "partial rotary": ({"fields": {"rope.dimension_count": 8}}, "rope.dimension_count"),
    "values of another length": ({"fields": {"attention.value_length": 8}}, "value_length"),
    "a cap on attention": ({"fields": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping"),
    "a cap on logits": ({"fields": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping"),
    "experts": ({"fields": {"expert_count": 8, "expert_used_count": 2}}, "expert_count"),
    "a factor on what turns": ({"fields": {"rope.scaling.attn_factor": 1.2}}, "attn_factor"),
    "attention to what follows": ({"fields": {"attention.causal": False}}, "attention.causal"),
    "a scale": ({"fields": {"attention.scale": 0.5}}, "attention.scale"),
    "a key of tomorrow": ({"fields": {"attention.wobble": "sometimes"}}, "attention.wobble"),
    "layers of several widths": ({"fields": {"feed_forward_length": [80, 96]}}, "feed_forward_length"),
    "no such epsilon": ({"fields": {"attention.layer_norm_rms_epsilon": None}}, "layer_norm_rms_epsilon"),
    "a missing matrix": ({"without": ["blk.1.ffn_up.weight"]}, "model.layers.1.mlp.up_proj.weight"),
    "a missing norm": ({"without": ["output_norm.weight"]}, "model.norm.weight"),
    "no embedding": ({"without": ["token_embd.weight"]}, "token_embd"),
    "fewer blocks than it has": ({"fields": {"block_count": 1}}, "blk.1"),
    "more blocks than it has": ({"fields": {"block_count": 3}}, "layers.2"),
    "a tensor too many": ({"tensors": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}}, "attn_sinks"),
    "some biases": ({"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "bias"),
    "other shapes than stated": ({"fields": {"feed_forward_length": 96}}, "shape"),
    "other heads than stated": ({"fields": {"attention.head_count_kv": 4}}, "shape"),
    "heads that do not share": ({"fields": {"attention.head_count_kv": 3}}, "head_count_kv"),
    "an infinite weight": ({"tensors": {"output_norm.weight": np.full(64, np.inf, np.float32)}}, "not finite"),
    "another architecture": ({"top": {"general.architecture": "gemma3"}}, "gemma3"),
    "an adapter": ({"top": {"general.type": "adapter"}}, "adapter"),
    "an end out of range": ({"top": {"tokenizer.ggml.eos_token_id": 5000}}, "eos_token_id is 5000"),
    "no end": ({"top": {"tokenizer.ggml.eos_token_id": 2**32 - 1}}, "tokenizer.ggml.eos_token_id, .* is not in it"),
    "a flag that is none": ({"top": {"tokenizer.ggml.add_bos_token": 1}}, "add_bos_token is 1, expected true or false"),
    "an unknown way to cut": ({"top": {"tokenizer.ggml.pre": "klingon"}}, "klingon"),
    "an unknown tokenizer": ({"kind": "bert"}, "bert"),
}  # fmt: skip


OTHERS = {
    "a window": ("qwen2", {"attention.sliding_window": 64}, "sliding_window"),
    "a window of an OLMo 3": ("olmo2", {"attention.sliding_window": 64}, "sliding_window"),
    "a Phi-3 with yarn": ("phi3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, **ORIGINAL}, "by yarn"),
    "a Gemma 3 with yarn": ("gemma3_text", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, **ORIGINAL}, "by yarn"),
    "a Gemma 3 without a window": ("gemma3_text", {"attention.sliding_window": None}, "attention.sliding_window"),
    "windows of other layers": ("gemma3_text", {"attention.sliding_window_pattern": [True, False]}, "sliding_window_pattern"),
    "a cap of Gemma": ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "a Granite without positions": ("granite", {"rope.scaling.finetuned": False}, "rope.scaling.finetuned"),
    "experts by a sigmoid": ("qwen3_moe", {"expert_gating_func": 2}, "expert_gating_func"),
    "experts that all see": ("qwen3_moe", {"expert_shared_count": 1}, "expert_shared_count"),
    "dense layers before experts": ("qwen3_moe", {"leading_dense_block_count": 1}, "leading_dense_block_count"),
    "other experts than stated": ("qwen3_moe", {"expert_feed_forward_length": 32}, "ffn_gate_exps.weight and .*ffn_up_exps"),
    "a layer to guess ahead": ("glm4", {"nextn_predict_layers": 1}, "nextn_predict_layers"),
    "more than a head": ("phi3", {"rope.dimension_count": 32}, "rope.dimension_count"),
    "heads wider than the model": ("phi3", {"attention.key_length": 32, "attention.value_length": 32}, "do not make up"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_not_computed_of_a_family_is_refused_by_its_name(case, tmp_path, cache):
    family, fields, words = OTHERS[case]
    refused(write(tmp_path / "m.gguf", stated(family), fields=fields), words, cache)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_its_name(case, tmp_path, cache):
    options, words = REFUSED[case]
    if case == "another architecture":
        file = write(tmp_path / "m.gguf", model())
        file.write_bytes(file.read_bytes().replace(b"llama", b"wamba"))
        words = "wamba"
    elif case == "an unknown tokenizer":
        file = write(tmp_path / "m.gguf", model())
        file.write_bytes(file.read_bytes().replace(b"gpt2", b"bert"))
    else:
        file = write(tmp_path / "m.gguf", model(), **options)
    refused(file, words, cache)


def test_keys_that_say_nothing_about_the_computation_are_no_reason_to_refuse(tmp_path):
    top = {
        "general.author": "a", "general.file_type": 15, "general.tags": ["a", "b"], "general.sampling.temp": 0.5,
        "general.base_model.0.name": "b", "quantize.imatrix.file": "x", "quantize.imatrix.entries_count": 3,
        "tokenizer.ggml.fim_pre_token_id": 2, "tokenizer.ggml.mask_token_id": 2, "tokenizer.ggml.add_sep_token": False,
        "tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ x }}", "split.count": 0,
        "tokenizer.ggml.padding_token_id": 2**32 - 1,
    }  # fmt: skip
    fields = {
        "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_ext_factor": -1.0, "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.finetuned": False, "attention.causal": True, "expert_count": 0, "logit_scale": 1.0,
    }  # fmt: skip
    network = model()
    _, tokenizer = reads_right(write(tmp_path / "m.gguf", network, top=top, fields=fields), network)
    assert tokenizer.pad_token is None


def test_more_tokens_than_embeddings_are_refused_before_anything_is_kept(tmp_path, cache):
    refused(write(tmp_path / "m.gguf", model(vocab_size=200)), "261 tokens and embeds 200", cache)


@pytest.mark.parametrize("top, ends", [
    ({"eot_token_id": 260}, {1, 260}), ({"eos_token_id": 2**32 - 1, "eot_token_id": 2}, {2}),
])  # fmt: skip
def test_what_the_file_calls_an_end_is_one_whatever_type_its_token_has(top, ends, tmp_path):
    from tmem.models.chat import Chat

    file = write(tmp_path / "m.gguf", model(), top={f"tokenizer.ggml.{key}": index for key, index in top.items()})
    network, tokenizer = loading.load_model(file)
    assert Chat(tokenizer, network).ends == ends


def split(whole, tmp_path, count=2):
    """The parts of a set, of half of the tensors each."""
    from gguf import GGUFWriter

    contents, names = read(whole), []
    order = list(contents.tensors)
    for number in range(count):
        path = tmp_path / f"s-{number + 1:05}-of-{count:05}.gguf"
        writer = GGUFWriter(path, "llama")
        if number == 0:
            for key, value in contents.fields.items():
                if key == "general.architecture":
                    continue
                if isinstance(value, bool):
                    writer.add_bool(key, value)
                elif isinstance(value, int):
                    writer.add_uint32(key, value)
                elif isinstance(value, float):
                    writer.add_float32(key, value)
                elif isinstance(value, str):
                    writer.add_string(key, value)
                else:
                    writer.add_array(key, value)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(order))
        for name in order[number::count]:
            writer.add_tensor(name, contents.tensors[name].values())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        names.append(path)
    return names


def test_a_set_of_files_is_read_whole_or_refused_by_the_first_that_is_missing(tmp_path, cache):
    network = model()
    whole = write(tmp_path / "m.gguf", network)
    parts = split(whole, tmp_path, 3)
    third = parts[2].rename(tmp_path / "away")
    refused(parts[0], "s-00003-of-00003.gguf is not beside it", cache)
    third.rename(parts[2])
    for part in parts:  # whichever is named
        reads_right(part, network)
    (folder,) = {convert.folder_of(p).name.split("-")[-1] for p in parts}
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(loading.ModelError, match="00002-of-00003.gguf says that it is another part"):
        loading.load_model(parts[0])
    assert {convert.folder_of(p).name.split("-")[-1] for p in parts} != {folder}
    parts[1].write_bytes(parts[2].read_bytes()[:40])
    with pytest.raises(loading.ModelError, match="in s-00002-of-00003.gguf, its header is damaged"):
        loading.load_model(parts[0])
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(loading.ModelError, match="found by their names"):
        loading.load_model(tmp_path / "renamed.gguf")


def test_a_folder_of_an_older_recipe_is_not_used(tmp_path, monkeypatch):
    file = write(tmp_path / "m.gguf", model())
    now = convert.folder_of(file)
    monkeypatch.setattr(convert, "_RECIPE", 1)
    assert convert.folder_of(file) != now


def test_special_tokens_and_ends_are_the_files(tmp_path):
    top = {"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.padding_token_id": 0}
    loaded, tokenizer = loading.load_model(write(tmp_path / "m.gguf", model(), top=top, template="{{ messages }}"))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "<|im_end|>", "<s>")
    assert loaded.generation_config.eos_token_id == [1, 2] and tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.model_max_length == 512 and tokenizer("<s>he").input_ids[-1] == len(bytes_vocabulary()[0]) - 2


def test_a_sentencepiece_vocabulary_cuts_by_its_scores(tmp_path):
    network = model()
    _, tokenizer = loading.load_model(write(tmp_path / "m.gguf", network, kind="llama"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab é", add_special_tokens=False).input_ids) == [
        "▁ab", "▁", "<0xC3>", "<0xA9>"]  # fmt: skip
    ids = tokenizer("ab  é").input_ids
    assert ids[0] == 1 and tokenizer.decode(ids, skip_special_tokens=True) == "ab  é"
    assert len(WORDS) == len(SCORES) == len(tokenizer)


@pytest.mark.parametrize("cut, pieces", [
    ("gpt-4o", ["Mc", "Donald's", "Ġ", "123", "45", "/Ċ/"]),
    ("chatglm-bpe", ["McDonald", "'s", "Ġ", "123", "45", "/Ċ", "/"]),
    ("glm4", ["McDonald", "'s", "Ġ", "123", "45", "/Ċ", "/"]),
])  # fmt: skip
def test_text_is_cut_as_the_file_says(cut, pieces, tmp_path):
    """By case, in groups of digits, and with what follows a word."""
    file = write(tmp_path / "m.gguf", model(), top={"tokenizer.ggml.pre": cut})
    tokenizer = loading.load_model(file)[1]
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("McDonald's 12345/\n/")
    assert [piece for piece, _ in found] == pieces


def header(file):
    """Bytes before the first tensor's values."""
    return min(t.start for t in read(file).tensors.values())


def _load(path):
    try:
        loading.load_model(path)
    except loading.ModelError as error:
        assert "\n" not in str(error)
        return str(error)
    return "converted"


def test_mutated_headers_end_in_time_in_a_model_or_a_sentence(tmp_path):
    """Flipped bits, numbers replaced by extreme ones, cuts and doubled pieces, anywhere in the header; seeded."""
    file = write(tmp_path / "m.gguf", model())
    whole, end, rng = file.read_bytes(), header(file), random.Random(0)
    said, slowest = [], 0.0
    for number in range(300):
        data, at = bytearray(whole), rng.randrange(4, end)
        match number % 4:
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                value = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
                at = rng.choice([8, 16, at])  # the counts of tensors and keys too
                data[at : at + 8] = struct.pack("<Q", value)
            case 2:
                data = data[:at]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
        mutated = tmp_path / f"x{number}.gguf"
        mutated.write_bytes(data)
        start = time.perf_counter()
        said.append(_load(mutated))
        slowest = max(slowest, time.perf_counter() - start)
        mutated.unlink()
    assert said.count("converted") < 100 and slowest < 10, (said.count("converted"), slowest)


@pytest.mark.parametrize("bad, words", [
    (b"", "letters GGUF"), (b"GGUF", "ends early"), (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
    (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1"), (b"GGUF" + struct.pack("<I", 9) + bytes(100), "version 9"),
])  # fmt: skip
def test_files_of_another_kind_are_named(bad, words, tmp_path, cache):
    (tmp_path / "m.gguf").write_bytes(bad)
    refused(tmp_path / "m.gguf", words, cache)


def test_two_processes_that_convert_at_once_make_one_whole_folder(tmp_path, cache):
    file = write(tmp_path / "m.gguf", model())
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_load, [file, file]) == ["converted", "converted"]
    assert len(os.listdir(cache)) == 1
