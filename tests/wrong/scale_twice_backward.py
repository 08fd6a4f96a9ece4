"""Wrong: right output, but the gradient of bt carries the scale a second time."""

import torch

from tmem import ops


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        ctx.save_for_backward(*args)
        return ops.lora_linear(*args)

    @staticmethod
    def backward(ctx, dy):
        with torch.enable_grad():
            args = [t if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
            if args[3].shape[0] != args[4].shape[0]:
                args[3] = args[3].detach()
            ops.lora_linear(*args).backward(dy)
        args[4].grad *= args[8].detach()[:, None, None]
        return *(None if t is None else t.grad for t in args[:5]), None, None, None, None


lora_linear = _Linear.apply
