"""Adapters on disk: what PEFT writes is read as PEFT computes it or refused by name, and a memory's files belong together."""

import dataclasses
import json
import threading

import peft
import pytest
import tiny_memory
import torch
from safetensors.torch import load, load_file, save_file
from tiny import model, pairs
from tiny_bank import IDS, bank_of, logits
from tiny_memory import PRESET

from tmem import Memory
from tmem.adapters.memory_file import read_memory
from tmem.adapters.peft import load_adapter
from tmem.agent.teach import Lesson
from tmem.episode import Pair
from tmem.models import loading
from tmem.models import lora as peft_files
from tmem.models.lora import fingerprint
from tmem.testing import assert_close

TARGETS = ["q_proj", "down_proj"]


def made_by_peft(folder, size=0.1, **options):
    """A trained-looking adapter of PEFT, saved; returns PEFT's logits."""
    torch.manual_seed(3)
    network = peft.get_peft_model(model(), peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": TARGETS, **options}))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_" in name:
                weight.normal_(0, size)
    network.save_pretrained(folder)
    return logits(network.eval(), IDS)


def edit(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(folder, change):
    """Have `change` turn the adapter's tensors into others."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: v.contiguous() for k, v in change(tensors).items()}, file)


def refused(folder, sentence):
    bank = bank_of(model(), train_a=True)
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        load_adapter(bank, folder)
    assert not any(bank.used) and "\n" not in str(caught.value)


# --- fields of the config


def test_every_field_of_peft_is_known():
    """A new release with a new field fails here until the field is classified."""
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    known = [peft_files.READ, peft_files.IGNORED, peft_files.REFUSED.keys()]
    assert set().union(*known) == fields and sum(map(len, known)) == len(fields)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"use_rslora": True}, {"lora_dropout": 0.5}, {"lora_alpha": 0.5}, {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal", "r": 4}, {"init_lora_weights": False}, {"layers_to_transform": [1, 2]},
        {"layers_to_transform": [0], "layers_pattern": "layers"}, {"exclude_modules": ["down_proj"]},
        {"target_modules": "all-linear"}, {"target_modules": r".*\.1\.mlp\.up_proj"}, {"ensure_weight_tying": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_read_computes_what_peft_computes(tmp_path, options):
    theirs = made_by_peft(tmp_path, **options)
    network = model()
    bank = bank_of(network, train_a=True)
    slot = load_adapter(bank, tmp_path)
    with bank.route([slot] * 3, learn=False):
        assert_close("logits", logits(network, IDS), theirs, 1e-5)
    assert (theirs - logits(model(), IDS)).abs().max() > 0.01


@pytest.mark.parametrize("fields", [{"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, {"init_lora_weights": "mica"},
                                    {"peft_version": "9.9", "auto_mapping": {"a": 1}, "revision": "x"}], ids=str)  # fmt: skip
def test_how_an_adapter_began_does_not_matter_where_the_base_stays(tmp_path, fields):
    """EVA and MiCA choose a beginning of A or B alone: PEFT's logits of the trained factors are those of plain LoRA."""
    theirs = made_by_peft(tmp_path)
    edit(tmp_path, **fields)
    network = model()
    bank = bank_of(network, train_a=True)
    with bank.route([load_adapter(bank, tmp_path)] * 3, learn=False):
        assert_close("logits", logits(network, IDS), theirs, 1e-5)


SET = {
    "use_dora": True, "alora_invocation_tokens": [33, 41], "lora_bias": True, "use_qalora": True, "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1.0}, "monteclora_config": {"a": 1}, "arrow_config": {"top_k": 2}, "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 9}, "modules_to_save": ["lm_head"], "trainable_token_indices": [1], "megatron_config": {"a": 1},
    "target_parameters": ["experts.down_proj"], "layer_replication": [[0, 2], [1, 3]], "fan_in_fan_out": True,
}  # fmt: skip


@pytest.mark.parametrize("field", [*peft_files.REFUSED, "use_tomorrows_lora"])
def test_a_field_that_changes_what_is_computed_is_named(tmp_path, field):
    made_by_peft(tmp_path)
    edit(tmp_path, **{field: SET.get(field, 1)})
    refused(tmp_path, f"sets {field} .*only plain LoRA is read")


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "tomorrow", 1, ["eva"]])
def test_an_adapter_of_a_changed_base_is_shown_the_way_out(tmp_path, init):
    made_by_peft(tmp_path)
    edit(tmp_path, init_lora_weights=init)
    refused(tmp_path, "init_lora_weights is .*path_initial_model_for_weight_conversion")


def test_a_converted_pissa_adapter_is_read(tmp_path):
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, init_lora_weights="pissa")
    network = peft.get_peft_model(model(), config)
    network.peft_config["default"].init_lora_weights = True
    network.save_pretrained(tmp_path / "began")
    network.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    theirs = logits(network.eval(), IDS)
    network.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "began"))
    ours = model()
    bank = bank_of(ours, train_a=True)
    with bank.route([load_adapter(bank, tmp_path / "a")] * 3, learn=False):
        assert_close("logits", logits(ours, IDS), theirs, 1e-4)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"), ({"peft_type": None}, "peft_type is None"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"), ({"use_rslora": "false"}, "use_rslora is 'false'"),
        ({"r": 10**30}, "has rank 1000"), *(({"r": r}, "expected r >= 1") for r in (0, -3, True, 3.0, "3", None, [3])),
        *(({"lora_alpha": a}, "number lora_alpha > 0")
          for a in (0, -1, True, None, "5", float("nan"), float("inf"), 10**400, 1e39, {})),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_out_of_range_is_named(tmp_path, fields, sentence):
    made_by_peft(tmp_path)
    edit(tmp_path, **fields)
    refused(tmp_path, sentence)


# --- tensors


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def poisoned(value):
    def change(tensors):
        tensors[f"{Q0}.lora_B.weight"][5, 1] = value
        return tensors

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_that_are_not_finite_are_named(tmp_path, value, dtype):
    made_by_peft(tmp_path)
    rewrite(tmp_path, lambda tensors: {k: v.to(dtype) for k, v in poisoned(value)(tensors).items()})
    refused(tmp_path, f"{Q0}.lora_B.weight holds values that are not finite")


def test_a_double_beyond_fp32_is_not_finite_either(tmp_path):
    made_by_peft(tmp_path)
    rewrite(tmp_path, lambda tensors: poisoned(1e300)({k: v.double() for k, v in tensors.items()}))
    refused(tmp_path, "not finite")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_that_are_no_weights_are_named(tmp_path, dtype):
    made_by_peft(tmp_path)
    rewrite(tmp_path, lambda tensors: {k: v.to(dtype) if k == f"{Q0}.lora_A.weight" else v for k, v in tensors.items()})
    refused(tmp_path, f"{Q0}.lora_A.weight is {dtype}, expected float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(tmp_path, dtype):
    theirs = made_by_peft(tmp_path)
    rewrite(tmp_path, lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    network = model()
    bank = bank_of(network, train_a=True)
    with bank.route([load_adapter(bank, tmp_path)] * 3, learn=False):
        assert_close("logits", logits(network, IDS), theirs, 2e-2)


def renamed(old, new):
    return lambda tensors: {k.replace(old, new): v for k, v in tensors.items()}


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: {k: v for k, v in t.items() if k != f"{Q0}.lora_B.weight"}, f"holds {Q0}.lora_A.weight but no {Q0}.lora_B"),
        (lambda t: {k: v for k, v in t.items() if k != f"{Q0}.lora_A.weight"}, f"holds {Q0}.lora_B.weight but no {Q0}.lora_A"),
        (lambda t: {k: v.T for k, v in t.items()}, "expected A, B of"),
        (lambda t: {k: v[..., None] for k, v in t.items()}, "expected A, B of"),
        (lambda t: {}, "holds no weights"),
        (lambda t: t | {f"{Q0}.lora_magnitude_vector": torch.ones(3)}, f"{Q0}.lora_magnitude_vector, which is no factor"),
        (lambda t: t | {f"{Q0}.lora_magnitude_vector.weight": torch.ones(3)}, "vector.weight, which is no"),
        (lambda t: t | {f"{Q0}.base_layer.weight": torch.ones(3)}, "base_layer.weight, which is no factor"),
        (lambda t: t | {"base_model.model.model.embed_tokens.weight": torch.ones(3)}, "embed_tokens.weight, which is no"),
        (lambda t: t | {f"{Q0}.lora_B.bias": torch.ones(3)}, "lora_B.bias, which is no factor"),
        (lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(3)}, "lora_embedding_A"),
        (lambda t: t | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(3)}, "layers.9.*does not"),
        (lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.ones(3)}, "adapts base_model.model.lm_head.*does not"),
        (renamed("base_model.model.", ""), f"names a tensor model.layers.0.mlp.down_proj.lora_A.weight, .*say {Q0[:32]}"),
        (renamed("base_model.model.model.", "base_model.model."), f"say {Q0[:32]}.*rename"),
        (renamed("base_model.model.model.", "layers_of.model."), f"say {Q0[:32]}.*rename"),
        (renamed("base_model.", "module.base_model."), "names a tensor module.base_model.*rename"),
        (renamed("base_model.", "_orig_mod.base_model."), "names a tensor _orig_mod.base_model.*rename"),
        (renamed(".weight", ".default.weight"), "lora_A.default.weight, where PEFT's own files say .*lora_A.weight; rename"),
        (renamed(".weight", ""), "lora_A, where PEFT's own files say .*lora_A.weight; rename"),
    ],
)  # fmt: skip
def test_what_does_not_belong_is_told_for_what_it_is(tmp_path, change, sentence):
    made_by_peft(tmp_path)
    rewrite(tmp_path, change)
    refused(tmp_path, sentence)


def test_a_layer_that_is_named_and_absent_is_told(tmp_path):
    """PEFT would begin it anew, as if nothing had been learned there."""
    made_by_peft(tmp_path)
    rewrite(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if ".layers.1.mlp.down_proj." not in k})
    refused(tmp_path, r"lacks model\.layers\.1\.mlp\.down_proj, which target_modules names")


def test_folders_that_are_none_are_told_where_to_go(tmp_path):
    made_by_peft(tmp_path / "run" / "checkpoint-9")
    refused(tmp_path / "run", "adapter_config.json is missing; .*its subfolder checkpoint-9")
    refused(tmp_path / "absent", "adapter_config.json is missing")
    refused(tmp_path / "run" / "checkpoint-9" / "adapter_config.json", "is a file; expected a PEFT adapter folder")
    (tmp_path / "run" / "checkpoint-9" / "adapter_model.safetensors").rename(tmp_path / "run/checkpoint-9/adapter_model.bin")
    refused(tmp_path / "run" / "checkpoint-9", "adapter_model.safetensors is missing; its adapter_model.bin is a pickle")


# --- a memory's folder


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """opened(path=None): a memory on the tiny model."""
    preset = tmp_path / "tiny.toml"
    preset.write_text(PRESET)
    monkeypatch.setattr(loading, "load_model", tiny_memory.load)
    return lambda path=None: Memory.from_pretrained(preset=str(preset), path=path and str(path))


def fill(memory, seed):
    """Δ and pairs that tell the seed."""
    generator = torch.Generator().manual_seed(seed)
    for site in memory.agent.bank.sites:
        site.bt[memory.slot] = torch.randn(site.bt[memory.slot].shape, generator=generator)
    memory._lesson = Lesson(pairs(2, str(seed)))
    return memory


FILES = ("tmem.json", "adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused(opened, tmp_path, name):
    fill(opened(), 1).save(tmp_path / "m")
    file = tmp_path / "m" / name
    whole = file.read_bytes()
    read_memory(tmp_path / "m")
    places = range(len(whole)) if len(whole) < 3000 else [*range(200), *range(200, len(whole), len(whole) // 500)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged") as caught:
            read_memory(tmp_path / "m")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="its files are not those that were saved together|damaged"):
        opened(tmp_path / "m")


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_saves_are_refused(opened, tmp_path, name):
    for seed in (1, 2):
        memory = fill(opened(), seed)
        memory.agent.bank.scale[memory.slot] = seed
        memory.save(tmp_path / str(seed))
    (tmp_path / "1" / name).write_bytes((tmp_path / "2" / name).read_bytes())
    with pytest.raises(ValueError, match="its files are not those that were saved together"):
        opened(tmp_path / "1")


def test_a_memory_of_before_digests_is_read(opened, tmp_path):
    memory = fill(opened(), 1)
    memory.save(tmp_path / "m")
    file = tmp_path / "m" / "tmem.json"
    record = json.loads(file.read_text())
    assert len(record.pop("digest")) == 32
    file.write_text(json.dumps(record))
    again = opened(tmp_path / "m")
    assert again.pairs == memory.pairs
    assert torch.equal(again.agent.bank.param[again.slot], memory.agent.bank.param[memory.slot])


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"pairs": [5]}, r"pairs\[0\] is 5"), ({"pairs": [["a", "b"], ["a"]]}, r"pairs\[1\] is \['a'\]"),
        ({"pairs": [["a", 5]]}, r"pairs\[0\]"), ({"pairs": ["ab"]}, r"pairs\[0\] is 'ab'"), ({"pairs": [None]}, r"pairs\[0\]"),
        ({"pairs": {}}, "`pairs` is dict"), ({"context": [5]}, r"context\[0\] is 5"), ({"context": "text"}, "`context` is str"),
        ({"made_with": []}, "`made_with` is list"), ({"dihest": "x"}, "'dihest' is no field"),
        ({"digest": None}, "saved together"), ({"digest": ""}, "saved together"), ({"digest": 5}, "saved together"),
        ({"digest": ["x"]}, "saved together"),
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_other_types_is_named(opened, tmp_path, fields, sentence):
    fill(opened(), 1).save(tmp_path / "m")
    file = tmp_path / "m" / "tmem.json"
    record = json.loads(file.read_text())
    del record["digest"]
    file.write_text(json.dumps(record | fields))
    with pytest.raises(ValueError, match=sentence):
        opened(tmp_path / "m")


def test_texts_of_any_characters_come_back(opened, tmp_path):
    memory = opened()
    memory._lesson = Lesson([Pair('"digest": "" \ud800 é 漢', "\\ \x00 \U0001f600")])
    memory.save(tmp_path / "m")
    assert opened(tmp_path / "m").pairs == memory.pairs


def test_a_reader_during_saves_sees_one_of_them_whole(opened, tmp_path):
    memories = [fill(opened(), seed) for seed in (1, 2)]
    memories[0].save(tmp_path / "m")
    stop, failed = threading.Event(), []

    def write():
        try:
            for i in range(30):
                memories[i % 2].save(tmp_path / "m")
        except BaseException as error:
            failed.append(error)
        finally:
            stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not stop.is_set():
        try:
            files, _, read, _ = read_memory(tmp_path / "m")
        except FileNotFoundError:
            continue  # between two renames, where the system cannot exchange folders
        weights = load(files["adapter_model.safetensors"])  # its header's order is not fixed, its tensors are
        seen.add((sum(w.sum().item() for name, w in sorted(weights.items())), tuple(read)))
    writer.join()
    assert not failed and 1 <= len(seen) <= 2, "the weights of one save with the pairs of another"


def test_the_same_weights_have_one_fingerprint_in_every_precision_that_holds_them():
    assert fingerprint(model(dtype=torch.bfloat16)) == fingerprint(model(dtype=torch.bfloat16).float())
    assert fingerprint(model()) == fingerprint(model(dtype=torch.bfloat16))
    assert fingerprint(model(seed=1)) != fingerprint(model())


def test_a_fingerprint_of_weights_of_any_shape():
    odd = torch.nn.Module()
    odd.scalar, odd.none = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.empty(0, 4))
    odd.packed = torch.nn.Parameter(torch.ones(3, 1, dtype=torch.uint8), requires_grad=False)
    assert len(fingerprint(odd)) == 16
