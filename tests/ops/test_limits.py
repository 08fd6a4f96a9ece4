"""What lies at the edges: offsets beyond 2^31 elements, pointers of any alignment, nothing to do."""

import pytest
import torch

from tmem import ops
from tmem.ops import _triton
from tmem.testing import TOLERANCES, assert_close, make_case, segments


def far_rows(rows, width, dtype, stride):
    """[rows, width] whose rows lie `stride` elements apart; what lies between is never touched, so it takes no memory."""
    return torch.empty((rows - 1) * stride + width, dtype=dtype).as_strided((rows, width), (stride, 1))


def test_offsets_beyond_2_to_31_elements():
    """The last row of an activation and of a gradient bank lies beyond 2^31 elements."""
    case = make_case([1, 1, 1], [0, 1, 0], [4, 3], k=64, n=64, dtype=torch.bfloat16)
    x, o = (far_rows(3, 64, torch.bfloat16, 2**30 + 64) for _ in range(2))
    assert x.stride(0) * 2 > 2**31
    x.copy_(case.x)
    o.copy_(case.x)
    z = ops.lora_shrink(x, case.a, *case.seg, case.scale)
    assert torch.equal(z, ops.lora_shrink(case.x, case.a, *case.seg, case.scale))
    want = case.x.clone()
    ops.lora_expand_(o, z, case.a, *case.seg)
    ops.lora_expand_(want, z, case.a, *case.seg)
    assert torch.equal(o, want)
    bank = far_rows(2, 4 * 64, torch.float32, 2**31 + 64).view(2, 4, 64)
    bank.zero_()
    ops.lora_gram_(bank, z, x, *case.seg)
    assert torch.equal(bank, ops.lora_gram(z, case.x, *case.seg))


def test_ranks_beyond_2_to_31_elements():
    """C++ counts them in int64; Triton's kernels, which do not, are given a copy."""
    case = make_case([1, 1, 1], [0, 1, 0], [128, 128], k=64, n=64, dtype=torch.bfloat16)
    a = torch.empty(127 * (2**24 + 2**18) + 128, dtype=case.a.dtype).as_strided((2, 128, 64), (64, 2**24 + 2**18, 1))
    a.copy_(case.a)
    assert a.stride(1) * 127 > 2**31
    assert torch.equal(
        ops.lora_shrink(case.x, a, *case.seg, case.scale), ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
    )
    lines = _triton._lines(a)
    assert lines.is_contiguous() and torch.equal(lines, case.a) and _triton._lines(case.a) is case.a


def test_rows_of_a_bank_beyond_2_to_31_elements():
    param, grad = (far_rows(3, 100, torch.float32, 2**30 + 64) for _ in range(2))
    for t in (param, grad):
        t.copy_(torch.randn(3, 100))
    plain = [param.contiguous().clone(), grad.contiguous().clone()]
    rest = torch.tensor([[0.1, 0, 0, 0, 0.1, 0.5]]).repeat(3, 1), torch.ones(3, dtype=torch.bool)
    norms = ops.bank_step_(param, grad, None, None, torch.zeros(3, dtype=torch.int32), *rest)
    assert torch.equal(norms, ops.bank_step_(*plain, None, None, torch.zeros(3, dtype=torch.int32), *rest))
    assert torch.equal(param, plain[0]) and not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shift", [1, 3])
def test_pointers_of_any_alignment(dtype, shift):
    """Tensors that begin one or three elements into their memory give the bits of aligned ones."""

    def shifted(t):
        memory = torch.empty(t.numel() + shift, dtype=t.dtype)[shift:].view(t.shape)
        return memory.copy_(t)

    case = make_case([5, 3, 9], [1, -1, 0], [4, 3], k=70, n=90, dtype=dtype, factor_dtype=dtype)
    a, bt = case.a.contiguous(), case.bt.contiguous()
    linear = case.x, case.w, case.bias, a, bt
    y, z = torch.ops.tmem.lora_linear(*linear, *case.seg, case.scale)
    y2, z2 = torch.ops.tmem.lora_linear(*map(shifted, linear), *case.seg, case.scale)
    assert_close("y", y2, y, TOLERANCES[dtype])  # the base product is torch's
    assert torch.equal(z2, z)
    assert torch.equal(ops.lora_gram(z, shifted(case.x), *case.seg), ops.lora_gram(z, case.x, *case.seg))


def test_nothing_to_do():
    """No rows, no segments, no slots, no ranks: empty results of the right shape, nothing written."""
    scale = torch.zeros(0)
    none = *segments([], []), torch.zeros(0, dtype=torch.int32)
    assert ops.lora_shrink(torch.zeros(0, 8), torch.zeros(0, 4, 8), *none, scale).shape == (0, 4)
    assert ops.lora_gram(torch.zeros(0, 4), torch.zeros(0, 8), *none).shape == (0, 4, 8)
    y = ops.lora_linear(torch.zeros(2, 0, 8), torch.zeros(6, 8), None, torch.zeros(0, 4, 8), torch.zeros(0, 4, 6), *none, scale)
    assert y.shape == (2, 0, 6)
    assert ops.bank_step_(*[torch.zeros(0, 9)] * 2, None, None, none[2], torch.zeros(0, 6), torch.zeros(0).bool()).shape == (0,)
    # Slots that are all idle, and rows that name none.
    case = make_case([7], [-1], [4, 4])
    case.rank.zero_()
    y = ops.lora_linear(*case.linear)
    assert torch.equal(y, torch.nn.functional.linear(case.x, case.w, case.bias))
    assert not ops.lora_gram(torch.zeros(7, 4), case.x, *case.seg).any()


def test_a_gpu_tensor_among_cpu_tensors_is_refused_before_any_kernel():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        y, x = torch.empty(2, 8, device="cuda"), torch.empty(2, 8)
        one = torch.empty(2, dtype=torch.int32, device="cuda")
        factor = torch.empty(2, 4, 8, device="cuda")
        with pytest.raises(ValueError, match="lora_decode_: x must be on cuda:0 .* got cpu"):
            ops.lora_decode_(y, x, factor, factor, one, one, torch.empty(2, device="cuda"))
