"""θ0 under training: fp32 parameters, their optimizer, and the gradients of all ranks, in one of two layouts; a third one,
an adapter over frozen weights, is in low_rank.py.

Replicated  every rank holds everything; gradients are averaged by DDP. 2 (bf16 model) + 16 bytes a parameter.
Sharded     FSDP2: parameters, gradients and moments are spread over ranks, 16/N bytes a parameter, and while rollouts and
            online updates run the whole model is gathered on every rank in its compute dtype, 2 bytes more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..agent.graphs import outdate
from ..models import forward as fw
from ..models import loading
from ..models.shards import Readable, fill_
from .world import ALONE, World


class _Pieces(nn.Module):
    """fw.token_logits as a module around the model: parameters can only be gathered where a module's forward begins."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *where) -> Tensor:
        return fw.token_logits(self.model, *where, narrow=True)


def falling(left: float, share: float) -> float:
    """What a learning rate is multiplied by with `left` of a phase still to do: 1, and in its last `share` left / share."""
    return min(1.0, left / share) if share else 1.0


class Policy:
    """What both layouts share: AdamW on `self.params`, named as in the model.

    The model itself needs gradients only inside `updating()`: rollouts and online updates leave it frozen.
    """

    betas, weight_decay = (0.9, 0.99), 0.0

    def __init__(self, model: nn.Module, names: list[str], params: list[nn.Parameter], world: World):
        self.names, self.params, self.world = names, params, world
        self.optimizer = torch.optim.AdamW(
            params, lr=0.0, betas=self.betas, weight_decay=self.weight_decay, fused=params[0].device.type != "mps"
        )
        self.model, self.pieces = model, _Pieces(model)
        self.checkpointing = False  # of activations: layers are computed again in backward instead of kept
        self.reference: list[Tensor] = []

    def logits(self, ids: Tensor, rows: list[int], columns: list[int], *layout: Tensor) -> Tensor:
        """Logits [len(rows), V] at positions of `ids` int64 [B, T], differentiable in θ0; see forward.token_logits. Open routes
        must serve [len(rows), 1, K] as well: see Route.narrow."""
        return self.pieces(ids, rows, columns, *layout)

    @contextmanager
    def updating(self, passes: int) -> Iterator[None]:
        """Forward and backward passes that reach θ0 belong into this block, `passes` of them. All ranks must enter together."""
        more = self._more_passes(passes)
        self._thaw()
        if self.checkpointing:
            self.model.train()
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            yield
            for _ in range(more):
                ids = torch.zeros(1, 1, dtype=torch.int64, device=self.params[0].device)
                (0.0 * self.logits(ids, [0], [0]).sum()).backward()
        finally:
            if self.checkpointing:
                self.model.gradient_checkpointing_disable()
                self.model.eval()
            self._freeze()

    def _more_passes(self, passes: int) -> int:
        """Empty passes that this rank must add to its own, where ranks must go in step."""
        return 0

    @contextmanager
    def referring(self) -> Iterator[None]:
        """In this block the model computes with the parameters that `remember` kept."""
        raise NotImplementedError

    def remember(self) -> None:
        """Keep θ0 as it is now as the frozen reference."""
        raise NotImplementedError

    def step(self, lr: float, clip: float = 1.0) -> float:
        """One AdamW step at `lr` on the gradients of all ranks, their global norm limited to `clip`; returns the norm before.

        Gradients are summed over ranks: every rank divides its loss by what all ranks have. A step whose gradient is not
        finite is skipped; its norm says so.
        """
        self._collect()
        norm = torch.nn.utils.clip_grad_norm_(self.params, clip)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if norm < float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.publish()
        self.drop()
        return norm

    def drop(self) -> None:
        """Forget what backward has accumulated."""
        self.optimizer.zero_grad(set_to_none=True)

    def _collect(self) -> None:
        """Leave the sum of all ranks' gradients in `param.grad`."""

    def publish(self) -> None:
        """Make the model that rollouts use the same as the parameters."""

    def restart(self) -> None:
        """Forget moments and step counts: a new phase starts."""
        self.optimizer.state.clear()

    def save(self, tokenizer, path: Path, weights: dict[str, Tensor] | None) -> None:
        """Write θ0 as a folder that `load_model` takes. weights: what `full_state` gave."""
        loading.save_model(self.model, tokenizer, path, weights)

    def full_state(self) -> dict[str, Tensor] | None:
        """The whole state dict, on rank 0, where the model itself holds only a part of it. To be called by all ranks."""

    # what a checkpoint holds ---------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, and moments if a step was taken, by name; each a view of the state itself. Step counts: `steps`."""
        out = {f"param/{n}": p.detach() for n, p in zip(self.names, self.params)}
        for name, param in zip(self.names, self.params):
            state = self.optimizer.state.get(param, {})
            out |= {f"{key}/{name}": state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
        return out

    @property
    def steps(self) -> int:
        """Optimizer steps since `restart`."""
        return int(next(iter(self.optimizer.state.values()))["step"]) if self.optimizer.state else 0

    def blank(self, steps: int) -> dict[str, Tensor]:
        """The tensors of a checkpoint taken after `steps` steps, to be filled in; `publish` afterwards."""
        self.restart()
        for param in self.params if steps else ():
            self.optimizer.state[param] = {
                "step": torch.tensor(float(steps), device=param.device),
                "exp_avg": torch.zeros_like(param.detach()),
                "exp_avg_sq": torch.zeros_like(param.detach()),
            }
        return self.tensors()


class Averaged(Policy):
    """Every rank holds all of `params`, and DDP averages their gradients once, in fp32 buckets, however many micro-batches
    each rank had."""

    def __init__(self, model: nn.Module, names: list[str], params: list[nn.Parameter], world: World):
        super().__init__(model, names, params, world)
        self.reducer = nn.parallel.DistributedDataParallel(_Dot(params)) if world.size > 1 else None

    def _collect(self) -> None:
        if self.reducer is None:
            return
        sums = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        self.optimizer.zero_grad(set_to_none=True)
        (self.world.size * self.reducer(sums)).backward()  # DDP averages; the losses of the ranks are parts of one


class Replicated(Averaged):
    """fp32 copies beside a model that computes in bf16 (a step of 1e-6 would vanish in bf16) or fp32.

    Gradients of micro-batches are added up in fp32 as soon as autograd has finished with a parameter.
    """

    def __init__(self, model: nn.Module, world: World = ALONE):
        named = list(model.named_parameters())  # tied parameters appear once
        copies = [nn.Parameter(p.detach().to(torch.float32, copy=True)) for _, p in named]
        super().__init__(model, [n for n, _ in named], copies, world)
        self.working = [p for _, p in named]
        for param, copy in zip(self.working, copies):
            param.requires_grad_(True).register_post_accumulate_grad_hook(self._collector(copy))
        self._freeze()

    @staticmethod
    def _collector(copy: nn.Parameter):
        def collect(param: Tensor) -> None:
            copy.grad = param.grad.float() if copy.grad is None else copy.grad.add_(param.grad)
            param.grad = None

        return collect

    def _thaw(self) -> None:
        self.model.requires_grad_(True)

    def _freeze(self) -> None:
        self.model.requires_grad_(False)

    def remember(self) -> None:
        self.reference = [p.detach().clone() for p in self.working]

    @contextmanager
    def referring(self) -> Iterator[None]:
        with torch.no_grad():
            torch._foreach_copy_(self.working, self.reference)
        try:
            yield
        finally:
            self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        torch._foreach_copy_(self.working, self.params)


class _Dot(nn.Module):
    """Σ <p, g>: its gradient in p is g, which hands gradients that were summed elsewhere to DDP."""

    def __init__(self, params: list[nn.Parameter]):
        super().__init__()
        self.params = nn.ParameterList(params)

    def forward(self, sums: list[Tensor]) -> Tensor:
        return torch.stack([p.flatten() @ g.flatten() for p, g in zip(self.params, sums)]).sum()


@torch.no_grad()
def _read_(model: nn.Module, weights: Mapping[str, Readable], world: World, device: torch.device) -> None:
    """Fill a model that was sharded without its weights: of every parameter the rows that FSDP gives this rank."""
    model.to_empty(device=device)
    model.tie_weights()
    for module in model.modules():
        if module._buffers:  # computed from the configuration, and in no file
            model._init_weights(module)
    parts = [(name, param.to_local(), world.rank * -(-len(param) // world.size)) for name, param in model.named_parameters()]
    fill_(parts, weights)


class Sharded(Policy):
    """FSDP2 over the decoder's layers. The model must be in fp32; it computes in `compute`.

    weights: those of a model without any, on torch's meta device; each rank reads its own rows of them alone, to `device`.
    """

    def __init__(
        self, model: nn.Module, world: World, compute: torch.dtype = torch.float32,
        weights: Mapping[str, Readable] | None = None, device: torch.device | None = None,
    ):  # fmt: skip
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        named = list(model.named_parameters())
        if any(p.dtype != torch.float32 for _, p in named):
            raise ValueError(f"Sharded: expected an fp32 model, got {named[0][1].dtype}; load it with dtype=torch.float32.")
        pieces = _Pieces(model)
        device = named[0][1].device if weights is None else device or torch.device("cpu")
        mesh = init_device_mesh(device.type, (world.size,))
        mixed = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        for module in (*fw.parts(model).layers, pieces):
            fully_shard(module, mesh=mesh, mp_policy=mixed)
        if weights is not None:
            _read_(model, weights, world, device)
        super().__init__(model, [n for n, _ in named], list(model.parameters()), world)
        self.pieces, self.compute = pieces, compute
        self.modules = [m for m in pieces.modules() if isinstance(m, FSDPModule)]
        layers = fw.parts(model).layers
        for module, before in zip((pieces, *reversed(layers)), (*reversed(layers), pieces)):
            # By itself FSDP gathers ahead what the last forward passes say, those of rollouts too, which differ between ranks.
            module.set_modules_to_backward_prefetch([before])
        model.requires_grad_(True)
        with torch.no_grad():  # FSDP looks for its root and for what is trained
            pieces(torch.zeros(1, 1, dtype=torch.int64, device=device), [0], [0])
        self._freeze()

    # FSDP has two parameters for each of the model's: the shard, which the optimizer moves, and the gathered one, which takes
    # over from the shard whether it wants a gradient. Whenever it gathers it also reads, from what is trained at that time, in
    # which dtype gradients are and are summed: nothing while the model is frozen, and then a backward pass in bf16 fails.

    def _thaw(self) -> None:
        self._gather_again(True)
        for module in self.modules:
            module.reshard()
        self.model.requires_grad_(True)  # the shards
        for module in self.modules:
            module.unshard()
            module.reshard()
        self.model.requires_grad_(True)  # what gathering made of them

    def _freeze(self) -> None:
        for module in self.modules:
            module.reshard()
        self.model.requires_grad_(False)
        self.publish()

    def _more_passes(self, passes: int) -> int:
        return int(self.world.most(passes)[0]) - passes  # each gathers parameters and scatters gradients on all ranks

    def publish(self) -> None:
        outdate(self.model)
        self._gather_again(False)
        for module in self.modules:
            module.reshard()
            module.unshard()

    def _collect(self) -> None:
        for param in self.params:
            if param.grad is not None:
                param.grad.mul_(self.world.size)  # FSDP averages; the losses of the ranks are parts of one

    def _gather_again(self, on: bool) -> None:
        """Whether a layer gives its gathered parameters back after use: in updates, not while rollouts run, when the ranks
        go their own ways and none may wait for another."""
        for module in self.modules:
            module.set_reshard_after_forward(on, recurse=False)
            module.set_reshard_after_backward(on, recurse=False)

    def remember(self) -> None:
        self.reference = [p.detach().clone() for p in self.params]

    @contextmanager
    def referring(self) -> Iterator[None]:
        current = [p.detach().clone() for p in self.params]
        try:
            self._fill(self.reference)
            yield
        finally:
            self._fill(current)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for param, value in zip(self.params, values):
            param.copy_(value)
        self.publish()

    def full_state(self) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        for module in self.modules:
            module.reshard()
        out = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        self.publish()
        return {k: v.to(self.compute) for k, v in out.items()}
