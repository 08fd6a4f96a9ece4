"""Two hundred regressions learned at once, each by an adapter of its own on one frozen layer: python examples/ops_only.py

Needs torch and tmem.ops, nothing else: what another project would import.
"""

import torch

from tmem import ops

SLOTS, ROWS, K, N, RANK = 200, 16, 64, 48, 4
torch.manual_seed(0)
w = torch.randn(N, K) / K**0.5  # frozen, one for all
a = torch.randn(1, RANK, K) / K**0.5  # the subspace, shared and frozen
truth = torch.randn(SLOTS, RANK, N) / RANK**0.5  # what each adapter is to find

seg_off = torch.arange(SLOTS + 1, dtype=torch.int32) * ROWS  # rows 16·s .. 16·s + 15 belong to slot s
seg_slot = torch.arange(SLOTS, dtype=torch.int32)
rank, scale = torch.full((SLOTS,), RANK, dtype=torch.int32), torch.ones(SLOTS)

param = torch.zeros(SLOTS, RANK * N)  # the bank: a slot is a row
grad, m, v = (torch.zeros_like(param) for _ in range(3))
step, active = torch.zeros(SLOTS, dtype=torch.int32), torch.ones(SLOTS, dtype=torch.bool)
hyper = torch.tensor([[0.05, 0.9, 0.999, 1e-8, 0.0, 0.0]]).repeat(SLOTS, 1)  # ops.HYPER, one line per slot

for i in range(101):
    x = torch.randn(SLOTS * ROWS, K)
    y = ops.lora_linear(x, w, None, a, truth, seg_off, seg_slot, rank, scale)
    bt = param.view(SLOTS, RANK, N).requires_grad_()
    loss = (ops.lora_linear(x, w, None, a, bt, seg_off, seg_slot, rank, scale) - y).square().mean()
    grad.copy_(torch.autograd.grad(loss * SLOTS, bt)[0].view_as(grad))
    param = param.detach()
    ops.bank_step_(param, grad, m, v, step, hyper, active)
    if i % 25 == 0:
        print(f"step {i:3}  loss {loss:.5f}  served by {ops.kernel_for('lora_linear', 'cpu')}")
