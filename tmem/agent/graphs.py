"""CUDA graphs of a model's work: how one is captured, and when it is outdated.

A graph keeps the addresses of all that it reads and writes. Once the weights lie elsewhere it is captured anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..adapters.bank import AdapterBank


def outdate(model) -> None:
    """To be called when the model's weights are about to lie elsewhere: nothing captured before is replayed again."""
    model._weights_published = object()


def addresses(model, bank: AdapterBank | None) -> tuple:
    """Where everything lies that a graph reads and does not own."""
    tensors = [*model.parameters(), *model.buffers()]
    if bank is not None:
        tensors += [bank.param, bank.rank, bank.scale]
        tensors += [x for site in bank.sites for x in (site.a, site.a_copy, site.bt_copy) if x is not None]
    return vars(model).get("_weights_published"), *((x.data_ptr(), x.dtype, x.shape) for x in tensors)


def captured(run: Callable[[], None], pool: tuple[int, int] | None = None) -> torch.cuda.CUDAGraph:
    """What `run` launches, as a graph. It runs three times before and must do no harm then.

    pool: of memory, see torch.cuda.graph_pool_handle; graphs of one pool may not run at the same time
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are compiled and handles made before anything is recorded
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads may allocate meanwhile
        run()
    return graph
