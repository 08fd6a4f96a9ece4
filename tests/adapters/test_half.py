"""16 bits under a bank: models loaded in fp16 and bf16, and torch.autocast held against PEFT's layers."""

import peft
import pytest
import torch
from tiny import model
from tiny_bank import IDS, bank_of, fill, logits

from tmem import ops
from tmem.adapters.peft import load_adapter
from tmem.testing import TOLERANCES, assert_close, rel_rms, segments

HALVES = [torch.bfloat16, torch.float16]
TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]


def like(dtype, near=25):
    """What a few layers of this dtype may be off: their roundings add up."""
    return near * TOLERANCES[dtype]


@pytest.mark.parametrize("reads_once", [False, True])
@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_model_in_16_bits_learns_and_decodes_as_in_fp32(dtype, train_a, reads_once):
    found = {}
    for kind in (dtype, torch.float32):
        network = model(dtype=dtype).to(kind)  # of the same weights
        bank = bank_of(network, targets=TARGETS, train_a=train_a)
        bank.reads_once = reads_once
        slots = bank.alloc(), bank.alloc(rank=2)
        fill(bank, *slots)
        with bank.route([slots[0], -1, slots[1]]):
            y = logits(network, IDS)
            y.float().square().mean().backward()
        bank.decodes_rows = reads_once
        with bank.route([slots[0], -1, slots[1]], learn=False):
            one = logits(network, IDS[:, :1])
        assert y.dtype == one.dtype == kind and bank.grad.dtype == torch.float32
        found[kind] = y.detach(), one, bank.grad.clone()
        assert bank.step(list(slots)) is not None and bank.param.isfinite().all()
    for name, got, want in zip(("logits", "one token", "gradient"), found[dtype], found[torch.float32]):
        assert_close(name, got, want, like(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_copy_is_of_the_dtype_of_its_model(dtype):
    network = model(dtype=dtype)
    bank = bank_of(network, copy=True)
    bank.decodes_rows = True
    slot = bank.alloc()
    fill(bank, slot)
    bank.written(slot)
    assert bank.copy.dtype == dtype and torch.equal(bank.copy[slot], bank.param[slot].to(dtype))
    assert all(s.a_copy.dtype == s.bt_copy.dtype == dtype for s in bank.sites)
    with bank.route([slot] * 3, learn=False):
        got = logits(network, IDS[:, :1])
        bank.decodes_rows = False
        assert_close("logits", got, logits(network, IDS[:, :1]), like(dtype))


# --- autocast


def loaded(tmp_path, r=3):
    """PEFT's model with a trained-looking adapter; the same model under a bank with the same adapter, and its slot."""
    torch.manual_seed(3)
    network = model()
    theirs = peft.get_peft_model(model(), peft.LoraConfig(r=r, lora_alpha=5, target_modules=TARGETS))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3 * r**-0.5)
    theirs.save_pretrained(tmp_path)
    bank = bank_of(network, targets=TARGETS, train_a=True)
    return theirs.eval(), network, bank, load_adapter(bank, tmp_path)


def told(network, half, grads):
    """Logits, and the gradients of what goes in and of the factors, under autocast to `half`; None: without."""
    x = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    with torch.autocast("cpu", half, enabled=half is not None):
        y = network(inputs_embeds=x, use_cache=False).logits
        loss = y.float().square().mean()
    loss.backward()
    return {"y": y.detach(), "dx": x.grad, **grads()}


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_autocast_does_what_it_does_to_the_layers_of_peft(tmp_path, half):
    """y of its dtype, gradients of the dtypes of the leaves, and not further from fp32 than PEFT's are."""
    theirs, network, bank, slot = loaded(tmp_path)

    def of_peft():
        found = {n: w.grad.clone() for n, w in theirs.named_parameters() if w.grad is not None}
        theirs.zero_grad()
        part = {x: [g.flatten() if x == "A" else g.T.flatten() for n, g in found.items() if f"lora_{x}" in n] for x in "AB"}
        return {"da": torch.cat(part["A"]), "dbt": torch.cat(part["B"])}

    def of_bank():
        order = [n.split(".lora_A")[0].removeprefix("base_model.model.") for n, _ in theirs.named_parameters() if "lora_A" in n]
        sites = {s.name: s for s in bank.sites}
        found = {
            "da": [sites[n].a_grad[slot, :3].flatten() for n in order],
            "dbt": [sites[n].bt_grad[slot, :3].flatten() for n in order],
        }
        found = {name: torch.cat(parts) for name, parts in found.items()}
        bank.zero_grad([slot])
        return found

    want, peft_half = (told(theirs, h, of_peft) for h in (None, half))
    for reads_once in (False, True):
        bank.reads_once = reads_once
        with bank.route([slot] * 3):
            full, ours = (told(network, h, of_bank) for h in (None, half))
        for name in want:
            assert ours[name].dtype == peft_half[name].dtype, name
            assert_close(name, full[name], want[name], 1e-5)
            off, allowed = rel_rms(ours[name], want[name]), rel_rms(peft_half[name], want[name])
            assert 0 < off <= 1.25 * allowed, f"{name}: off by {off:.3g}, PEFT by {allowed:.3g}"
    assert ours["y"].dtype == half and ours["dx"].dtype == torch.float32


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("weights", [torch.float32, *HALVES], ids=str)
def test_one_layer_under_autocast_and_that_of_peft(weights, half):
    """The op beside PEFT's own module, whatever dtype the base and the input have."""
    torch.manual_seed(0)
    base = torch.nn.Linear(40, 72).to(weights)
    layer = peft.get_peft_model(torch.nn.Sequential(base), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
    lora = layer.base_model.model[0]
    torch.nn.init.normal_(lora.lora_B["default"].weight, std=0.3)
    a, bt = lora.lora_A["default"].weight[None], lora.lora_B["default"].weight.T[None]
    seg = *segments([9], [0]), torch.tensor([4], dtype=torch.int32), torch.tensor([2.0])
    x = torch.randn(9, 40).to(weights)
    mine, yours = (x.clone().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", half):
        got, want = ops.lora_linear(mine, base.weight, base.bias, a, bt, *seg), layer(yours)
    (got.float().square().mean() + want.float().square().mean()).backward()
    assert got.dtype == want.dtype == half and mine.grad.dtype == yours.grad.dtype == weights
    assert_close("y", got, want, 2 * TOLERANCES[half])
    assert_close("dx", mine.grad, yours.grad, 3 * TOLERANCES[half if weights == torch.float32 else torch.bfloat16])
