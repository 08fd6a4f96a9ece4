"""fp32 masters for a model that computes in bf16: a step of 1e-6 would vanish in bf16 weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..folders import atomic_file


class Masters:
    """AdamW on fp32 copies of every parameter; the model's own (bf16 or fp32) are refreshed after each step.

    Gradients of micro-batches are added up in fp32 as soon as autograd has finished with a parameter.
    """

    def __init__(self, model: nn.Module, *, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        named = list(model.named_parameters())  # tied parameters appear once
        self.names = [n for n, _ in named]
        self.params = [p for _, p in named]
        self.masters = [p.detach().float().clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=self.masters[0].device.type != "mps"
        )
        for param, master in zip(self.params, self.masters):
            param.requires_grad_(True).register_post_accumulate_grad_hook(self._collector(master))
        self.trainable(False)

    @staticmethod
    def _collector(master: Tensor):
        def collect(param: Tensor) -> None:
            master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
            param.grad = None

        return collect

    def trainable(self, on: bool) -> None:
        """Gradients of the base model are wanted only while it is trained; rollouts and online updates leave it frozen."""
        for param in self.params:
            param.requires_grad_(on)

    def step(self, lr: float, clip: float = 1.0) -> float:
        """One AdamW step at `lr` with the global gradient norm limited to `clip`; returns the norm before clipping.

        A step whose gradient is not finite is skipped; its norm says so.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, clip))
        if norm < float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.publish()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model, rounded to its dtype."""
        torch._foreach_copy_(self.params, self.masters)

    def restart(self) -> None:
        """Forget moments and step counts: a new phase starts."""
        self.optimizer.state.clear()

    def save(self, path: Path) -> None:
        """Masters, moments and step counts as safetensors; atomic."""
        tensors = {}
        for name, master in zip(self.names, self.masters):
            tensors[f"master/{name}"] = master
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}/{name}"] = value
        with atomic_file(path) as work:
            save_file(tensors, work)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Take back what `save` wrote, moments or their absence included. Raises ValueError for another model's file."""
        with safe_open(path, framework="pt", device=str(self.masters[0].device)) as file:
            keys = set(file.keys())
            absent = [n for n in self.names if f"master/{n}" not in keys]
            if absent:
                raise ValueError(f"resume: {path} lacks {absent[0]}; it belongs to another model.")
            self.restart()
            for name, master in zip(self.names, self.masters):
                master.copy_(file.get_tensor(f"master/{name}"))
                state = {k: file.get_tensor(f"{k}/{name}") for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}/{name}" in keys}
                if state:
                    self.optimizer.state[master] = state
        self.publish()
