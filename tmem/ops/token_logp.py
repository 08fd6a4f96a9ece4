"""token_logp: the log-probability of a token a row, and the entropy, of logits; differentiable."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._once import once_differentiable
from tmem.ops._registry import define, differentiable


def _fake(logits, ids):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return tuple(logits.new_empty(len(logits), dtype=dtype) for _ in range(3))


def _fake_backward(grad, logits, ids, lse):
    return logits.new_empty(logits.shape)


_op = define("token_logp(Tensor logits, Tensor ids) -> (Tensor, Tensor, Tensor)", reference.token_logp, _fake)
_op_backward = define(
    "token_logp_backward(Tensor grad, Tensor logits, Tensor ids, Tensor lse) -> Tensor",
    reference.token_logp_backward,
    _fake_backward,
)


def _setup_context(ctx, inputs, output):
    logits, ids = inputs
    ctx.save_for_backward(logits, ids, output[1])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


@once_differentiable("token_logp")
def _backward(ctx, saved, grad, *_):
    return None if grad is None else _op_backward(grad, *saved), None


differentiable("token_logp", _setup_context, _backward)


@_checks.public
def token_logp(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(logits)[ids] and, not differentiable, the entropy -Σ p log p in nats, both [M].

    logits [M,V] fp32, bf16, fp16 or fp64, as the head gives them; ids int64 [M]. Results and sums are fp32 (fp64 for fp64); the
    gradient g·(onehot(id) - softmax(logits)) is rounded once, to the dtype of logits. Of [M,V] there are only the logits and
    their gradient: probabilities exist in registers, or where no kernel serves for a few rows at a time. On a CPU a row's bits
    depend on that row alone. Raises ValueError or TypeError before anything is computed.
    """
    op = "token_logp"
    _checks.shape(op, "logits", logits, None, None)
    _checks.dtype(op, "logits", logits, *_checks.ACTIVATION)
    _checks.shape(op, "ids", ids, logits.shape[0])
    _checks.dtype(op, "ids", ids, torch.int64)
    _checks.same_device(op, logits, ids=ids)
    _checks.below(op, "ids", ids, logits.shape[1])
    logp, _, entropy = _op(logits, ids)
    return logp, entropy
