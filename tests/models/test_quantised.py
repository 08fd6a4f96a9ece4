"""A base model in few bits: adapters over it are those over the weights it computes with, for one memory and for many."""

from importlib.util import find_spec

import bitsandbytes
import pytest
import tiny_memory
import torch
from tiny import Letters, model, pairs
from tiny_agent import CONFIG
from tiny_bank import ALL, IDS, bank_of, fill, logits
from torch import nn
from transformers import BitsAndBytesConfig

from tmem import Memory
from tmem.agent.agent import Agent
from tmem.agent.teach import Lesson
from tmem.files.objects import read_object
from tmem.models import loading, quantised
from tmem.models.bases import tensors_of, weight_of
from tmem.models.families import passed, trainable
from tmem.models.lora import fingerprint
from tmem.models.merge import Lora, save_lora
from tmem.models.quantised import BITS, quantise_
from tmem.testing import assert_close

HERE = [bits for bits in BITS if find_spec(quantised.LIBRARY[bits])]
TOLERANCE = {"int8": 1e-5}  # it multiplies by the scale after the product, the dense weight before
BYTES = {"int8": 1.1, "fp8": 1.1, "nf4": 0.65}  # a weight with its scales, at most; nf4's are few numbers in fp32 here


def dense(bits):
    """The model whose weights are those that the one in `bits` computes with."""
    network = quantise_(model(), bits, "cpu")
    for layer in network.model.layers:
        for name, module in list(layer.named_modules()):
            if hasattr(module, "in_features"):
                parent, _, last = name.rpartition(".")
                plain = nn.Linear(module.in_features, module.out_features, bias=False).requires_grad_(False)
                plain.weight.copy_(weight_of(module, torch.float32))
                setattr(layer.get_submodule(parent), last, plain)
    return network


def test_nf4_is_tried_here():
    assert "nf4" in HERE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outer, inner", [(1, 64), (1, 63), (33, 41), (64, 64), (37, 320), (300, 257)])
def test_nf4_in_pieces_is_that_of_the_whole_weight_to_the_bit(monkeypatch, outer, inner, dtype):
    """Codes, scales and what these are made of, as bitsandbytes makes them; ragged sizes end within a block or a byte."""
    monkeypatch.setattr(quantised, "_PIECE", 256)
    linear = nn.Linear(inner, outer)
    whole = bitsandbytes.nn.Linear4bit(inner, outer, compute_dtype=dtype, quant_type="nf4")
    weight = linear.weight.detach().to(dtype, copy=True)
    whole.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=whole)
    whole.bias = nn.Parameter(linear.bias.detach().to(dtype, copy=True), requires_grad=False)
    got, want = quantised.in_bits(linear, "nf4", "cpu", dtype), quantised.settle_(whole.to("cpu"))
    for mine, theirs in zip(tensors_of(got), tensors_of(want), strict=True):
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype and mine.shape == theirs.shape
    assert got.weight.quant_state.dtype == want.weight.quant_state.dtype == dtype
    x = torch.randn(3, inner, dtype=dtype)
    assert torch.equal(got(x), want(x)) and got.state_dict().keys() == want.state_dict().keys()


@pytest.mark.parametrize("bits", HERE)
def test_values_and_gradients_are_those_over_the_weights_it_computes_with(bits):
    found = []
    for network in (dense(bits), quantise_(model(), bits, "cpu")):
        bank = bank_of(network, targets=ALL, init="random")
        a, b = bank.alloc(), bank.alloc(rank=2)
        fill(bank, a, b)
        with torch.no_grad(), bank.route([a, -1, b], learn=False):
            still = logits(network, IDS)  # first without a gradient: libraries may pack weights anew then
        first = network.get_input_embeddings().weight.requires_grad_(True)
        with bank.route([a, -1, b]):
            out = logits(network, IDS)
            out.square().mean().backward()
        found.append((still, out.detach(), bank.grad.clone(), first.grad))
    assert not any(site.plain for site in bank.sites)
    for name, want, got in zip(("logits", "logits under grad", "gradient", "dx"), *found):
        assert want.any()
        assert_close(name, got, want, TOLERANCE.get(bits, 3e-6))


@pytest.mark.parametrize("bits", HERE)
def test_a_memory_has_the_bits_of_a_memory_alone_whoever_learns_beside_it(bits):
    rows, answers = [], []
    for together in (False, True):
        agent = Agent.build(quantise_(model(), bits, "cpu"), Letters(), CONFIG, slots=4)
        slots = agent.bank.claim(3)
        lessons = [pairs(n, tag) for n, tag in ((3, "a"), (5, "b"), (2, "c"))]
        jobs = list(zip(slots, lessons))
        for some in [jobs] if together else [[job] for job in jobs]:
            agent.teach([slot for slot, _ in some], [new for _, new in some], [Lesson() for _ in some])
        rows.append(agent.bank.param[slots].clone())
        asked = [lesson[0].question for lesson in lessons]
        answers.append(agent.answer(asked, slots) if together else [agent.answer([q], [s])[0] for q, s in zip(asked, slots)])
    assert torch.equal(*rows) and rows[0].any(1).all()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("bits", HERE)
def test_a_memory_over_it_learns_and_is_kept_and_no_other_base_takes_it(bits, monkeypatch, tmp_path):
    seen = []

    def load(name=None, adapter=None, bits=None):
        seen.append(bits)
        return model() if bits is None else quantise_(model(), bits, "cpu"), Letters()

    monkeypatch.setattr(loading, "load_model", load)
    (tmp_path / "tiny.toml").write_text(tiny_memory.PRESET)
    preset = str(tmp_path / "tiny.toml")
    with Memory.from_pretrained(bits=bits, preset=preset) as memory:
        learned = memory.learn(pairs(4, "a"))
        assert learned.kept and learned.loss_after < learned.loss_before / 2
        memory.save(tmp_path / "m")
        told = [memory.ask(p.question) for p in pairs(4, "a")]
    with Memory.from_pretrained(bits=bits, preset=preset, path=tmp_path / "m") as memory:
        assert [memory.ask(p.question) for p in pairs(4, "a")] == told
    with pytest.raises(ValueError, match="weights"):
        Memory.from_pretrained(preset=preset, path=tmp_path / "m")
    assert seen == [bits, bits, None]


@pytest.mark.parametrize("bits", HERE)
def test_it_takes_the_bytes_that_it_says_and_leaves_embeddings_norms_and_head(bits):
    network, plain = quantise_(model(hidden_size=128, intermediate_size=256), bits, "cpu"), model()
    layer = network.model.layers[1].mlp.down_proj
    held = sum(tensor.nbytes for tensor in tensors_of(layer))
    assert held <= BYTES[bits] * 128 * 256
    for part in ("model.embed_tokens", "model.norm", "model.layers.0.input_layernorm", "lm_head"):
        assert type(network.get_submodule(part)) is type(plain.get_submodule(part))
        assert network.get_submodule(part).weight.dtype == torch.float32
    assert fingerprint(network) != fingerprint(model(hidden_size=128, intermediate_size=256))
    assert not any(p.requires_grad for p in network.parameters())


def test_the_default_model_in_nf4_remembers_what_it_was_told():
    with Memory.from_pretrained(bits="nf4") as memory:
        assert "nf4" in memory.agent.model.config._name_or_path
        # Of a single pair the end of the answer is hardly learned, and whether it is depends on the processor's rounding.
        told = {"Where do I live?": "Ghent", "What is my dog called?": "Biscuit", "Which tea do I like?": "Assam"}
        memory.learn(list(told.items()))
        assert {question: memory.ask(question).strip(".") for question in told} == told


@pytest.fixture(scope="module")
def in_nf4(tmp_path_factory):
    """The folder of a model that transformers wrote in nf4, and that of the same one whole."""
    folder, tokenizer = tmp_path_factory.mktemp("nf4"), loading.load_tokenizer()
    whole = model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, bnb_4bit_use_double_quant=True
    )
    whole.save_pretrained(folder / "whole")
    packed = type(whole).from_pretrained(folder / "whole", quantization_config=settings)
    packed.save_pretrained(folder / "packed")
    for name in ("whole", "packed"):
        tokenizer.save_pretrained(folder / name)
    return folder


def test_a_folder_in_nf4_is_the_whole_one_put_into_nf4(in_nf4):
    packed, _ = loading.load_model(in_nf4 / "packed", dtype=torch.float32, device="cpu")
    made, _ = loading.load_model(in_nf4 / "whole", bits="nf4", dtype=torch.float32, device="cpu")
    with torch.no_grad():
        assert torch.equal(logits(packed, IDS), logits(made, IDS))
    bank = bank_of(packed, targets=ALL, init="random")
    slot = bank.alloc()
    fill(bank, slot)
    with bank.route([slot] * 3):
        logits(packed, IDS).square().mean().backward()
    assert bank.grad[slot].any() and not any(site.plain for site in bank.sites)


def test_a_folder_in_nf4_is_taken_as_it_is_and_its_weights_are_not_trained(in_nf4, tmp_path):
    with pytest.raises(loading.ModelError, match="in nf4 already; leave out bits"):
        loading.load_model(in_nf4 / "packed", bits="nf4")
    save_lora(tmp_path, Lora({"model.layers.0.mlp.up_proj": (torch.ones(2, 64), torch.ones(80, 2))}, 2, 1.0), None)
    with pytest.raises(loading.ModelError, match="an adapter over whole ones is merged into these"):
        loading.load_model(in_nf4 / "packed", adapter=tmp_path)
    with pytest.raises(ValueError, match="few bits are not trained"):
        trainable(loading.config(in_nf4 / "packed"))


def test_a_token_passes_as_many_weights_in_few_bits_as_in_many():
    whole, packed = model(), quantise_(model(), "nf4", "cpu")
    for mine, theirs in zip(whole.model.layers, packed.model.layers):
        assert passed(mine, whole.config) == passed(theirs, packed.config)


def test_what_is_not_known_or_not_installed_is_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="bits: expected int8, fp8, nf4, got 'nf3'"):
        loading.load_model(bits="nf3")
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"bits nf4 needs bitsandbytes.*pip install 'tmem\[bits\]'"):
        loading.load_model(bits="nf4")


def test_eval_records_the_bits(tmem, tmp_path, monkeypatch):
    seen = {}

    def load(name=None, **wanted):
        seen.update(wanted)
        return quantise_(model(max_position_embeddings=2048), wanted["bits"], "cpu"), Letters()

    monkeypatch.setattr(loading, "load_model", load)
    done = tmem("eval", "--task", "stream", "--limit", "1", "--methods", "tmem", "--bits", "nf4", "--out", "OUT")
    assert done.exit_code == 0, done.output
    assert seen["bits"] == "nf4" and read_object(tmp_path / "OUT" / "results.json")["config"]["bits"] == "nf4"
