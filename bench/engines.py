"""The LoRA kernels of serving engines, called where the engines are installed. They serve and do not train: forward alone.

Each is imported as its own users import it, when a case needs it, and only on a GPU: an import changes torch's settings and
caches for the whole process. Factors are copied once into the engine's layout, a [S, R, K] and b [S, N, R].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor

Apply = Callable[[Tensor, Tensor], None]  # y [M, N] += what the adapters make of x [M, K]
VERSIONS = {"vllm": "0.33.0", "sglang": "0.5.23"}  # whose sources were read
CHUNK = 16  # rows of a segment: what SGLang's server takes by default


@dataclass(frozen=True)
class Mix:
    """lengths[i] rows of adapter i, one adapter after another, each with its own rank and scale.

    a [S, R, K] and bt [S, R, N], of one 16-bit dtype (SGLang: also fp32); what lies beyond a rank is not read.
    """

    lengths: tuple[int, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    a: Tensor
    bt: Tensor

    def own(self, factor: Tensor) -> Tensor:
        """The factor with zeros beyond each adapter's rank."""
        used = torch.arange(factor.shape[1]) < torch.tensor(self.ranks)[:, None]
        return torch.where(used[..., None].to(factor.device), factor, 0)


def _vllm(mix: Mix) -> Apply:
    """Engine `vllm`: its scale lies in b, and a rank of its own is one with zeros behind."""
    from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink

    slots, ranks, rows, device = len(mix.lengths), mix.a.shape[1], sum(mix.lengths), mix.a.device
    scale = torch.tensor(mix.scales, device=device)[:, None, None]
    a, b = mix.own(mix.a).contiguous(), (mix.own(mix.bt) * scale).to(mix.bt.dtype).mT.contiguous()
    of_row = torch.arange(slots, dtype=torch.int32).repeat_interleave(torch.tensor(mix.lengths)).to(device)
    meta = LoRAKernelMeta.make(slots, rows, device)
    meta.prepare_tensors(of_row)
    described = meta.meta_args(rows, specialize_active_lora=True)

    def apply(y: Tensor, x: Tensor) -> None:
        z = torch.empty(1, rows, ranks, dtype=torch.float32, device=device)
        lora_shrink(x, [a], z, *described, 1.0)
        lora_expand(z, [b], y, *described, offset_start=0, add_inputs=True)

    return apply


def _sglang(mix: Mix) -> Apply:
    """Engine `sglang`, its default backend "csgmv": segments of at most CHUNK rows, rank and scale of each adapter."""
    from sglang.kernels.ops.lora.dense.chunked_sgmv_expand import chunked_sgmv_lora_expand_forward
    from sglang.kernels.ops.lora.dense.chunked_sgmv_shrink import chunked_sgmv_lora_shrink_forward
    from sglang.srt.lora.utils import LoRABatchInfo

    device, width = mix.a.device, mix.bt.shape[2]
    sizes = [(i, min(CHUNK, length - at)) for i, length in enumerate(mix.lengths) for at in range(0, length, CHUNK)]

    def whole(numbers) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    a, b = mix.a.contiguous(), mix.bt.mT.contiguous()
    info = LoRABatchInfo(
        use_cuda_graph=False,
        bs=len(mix.lengths),
        num_segments=len(sizes),
        seg_indptr=whole([0, *(size for _, size in sizes)]).cumsum(0, dtype=torch.int32),
        weight_indices=whole([adapter for adapter, _ in sizes]),
        lora_ranks=whole(mix.ranks),
        scalings=torch.tensor(mix.scales, device=device),
        max_len=CHUNK,
        seg_lens=None,
        permutation=whole(range(sum(mix.lengths))),
    )
    offsets = whole([0, width])

    def apply(y: Tensor, x: Tensor) -> None:
        z = chunked_sgmv_lora_shrink_forward(x, a, info, num_slices=1)
        chunked_sgmv_lora_expand_forward(
            z, b, info, slice_offsets=offsets, max_slice_size=width, base_output=y, slice_offsets_cpu=offsets_on_cpu
        )

    offsets_on_cpu = offsets.cpu()
    return apply


ENGINES: dict[str, Callable[[Mix], Apply]] = {"vllm": _vllm, "sglang": _sglang}


def state(name: str) -> str:
    """The version of an engine, or that it is not installed and how it would be. Imports nothing."""
    if importlib.util.find_spec(name) is None:
        return f"not installed: pip install {name}=={VERSIONS[name]}"
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a folder of sources, as PYTHONPATH may name one
        return "of an unknown version"
