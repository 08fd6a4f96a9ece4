"""Backward passes that are differentiated once: what asks for more is refused, instead of left out of the sum."""

from collections.abc import Callable

import torch
from torch import Tensor

from tmem.ops._registry import without_autocast


class _Refusal(torch.autograd.Function):
    """Gradients as they are, which depend on `count` of the tensors given and cannot be differentiated."""

    @staticmethod
    def forward(ctx, what, count, *tensors):
        ctx.what = what
        ctx.set_materialize_grads(False)
        return tuple(grad.view_as(grad) for grad in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.what}: only first derivatives are defined, and one of a higher order was asked for; detach the gradient"
        )


def once_differentiable(what: str) -> Callable:
    """Decorates backward(ctx, saved, *grads) of an autograd function; saved: ctx.saved_tensors, read once.

    Under create_graph the gradients stay attached to what they depend on, `ctx.also` included, by a node that refuses.
    """

    def decorate(backward: Callable) -> Callable:
        def run(ctx, *grads):
            saved = ctx.saved_tensors
            if not torch.is_grad_enabled():
                if not torch._C._is_any_autocast_enabled():
                    return backward(ctx, saved, *grads)  # the usual case: two contexts less for every layer
                with without_autocast():  # in the dtypes of forward
                    return backward(ctx, saved, *grads)
            with torch.no_grad(), without_autocast():
                found = backward(ctx, saved, *grads)
            made = [x for x in found if x is not None]
            depends = [x for x in (*grads, *saved, *getattr(ctx, "also", ())) if isinstance(x, Tensor)]
            attached = iter(_Refusal.apply(what, len(made), *made, *depends))
            return tuple(None if x is None else next(attached) for x in found)

        return run

    return decorate
