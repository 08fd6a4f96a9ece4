"""What must hold of the ops that a decoder's layer is made of in a pass over labels. Each check takes an object with the
ops, those of backward too, as attributes; gradients are held against autograd of the formula in fp64."""

from functools import partial

import torch

from tmem import reference
from tmem.testing import TOLERANCES, assert_close

DTYPES = list(TOLERANCES)
NAN = float("nan")


def rows(*shape, dtype):
    return torch.randn(shape).to(dtype)


def exact(formula, leaves, grad):
    """What a formula gives in fp64, and the gradients of its leaves."""
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        out = formula(*wide)
    return out.detach(), torch.autograd.grad(out, wide, grad.double())


def norms(ops) -> None:
    """y, dx and dw of rows of every tail, of no rows, of several blocks of them; rows that are large, small and strided."""
    for dtype in DTYPES:
        sums = TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32]
        for shape in ((3, 5, 576), (7, 130), (1, 6), (300, 33), (2, 0, 16), (0, 3)):
            for plus in (0.0, 1.0):
                x, dy = (rows(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., : shape[-1]] for _ in range(2))
                weight = rows(2 * shape[-1], dtype=dtype)[::2]
                if len(shape) == 2 and shape[0]:
                    x[0], x[-1] = 100 * x[0], x[-1] / 100
                y, want = ops.rms_norm(x, weight, 1e-5, plus), (x.double(), weight.double())
                expected, (dx, dw) = exact(lambda x, w, plus=plus: reference.rms_norm(x, w, 1e-5, plus), want, dy)
                got = ops.rms_norm_backward(dy, x, weight, 1e-5, plus, True)
                assert y.dtype == got[0].dtype == dtype and y.is_contiguous()
                assert_close("y", y, expected, TOLERANCES[dtype])
                assert_close("dx", got[0], dx, TOLERANCES[dtype])
                assert_close("dw", got[1], dw, sums)
                assert len(ops.rms_norm_backward(dy, x, weight, 1e-5, plus, False)[1]) == 0


def products(ops) -> None:
    """o, d_gate and d_up of both kinds, of small gates and of large ones, of any number of elements."""
    for dtype in DTYPES:
        for shape in ((3, 5, 96), (7, 33), (13,), (0, 4), (), (2000, 19)):
            gate, up, grad = (rows(*shape, dtype=dtype) for _ in range(3))
            gate = 3 * gate if shape else gate.fill_(0.5)
            if shape == (7, 33):
                gate[:, :4] = torch.tensor([-200.0, 200.0, 1e-6, 0.0])
            for gelu in (False, True):
                want, gradients = exact(lambda g, u, gelu=gelu: reference.gated_product(g, u, gelu), (gate, up), grad)
                got = ops.gated_product(gate, up, gelu), *ops.gated_product_backward(grad, gate, up, gelu)
                for name, one, other in zip(("o", "d_gate", "d_up"), got, (want, *gradients)):
                    assert one.dtype == dtype and one.shape == gate.shape
                    assert_close(name, one, other, TOLERANCES[dtype])
        far = torch.finfo(dtype).max / 2  # where e^-x is nothing, however large x is
        gate, one = torch.tensor([-far, far], dtype=dtype), torch.ones(2, dtype=dtype)
        for got, want in zip(
            (ops.gated_product(gate, one, False), *ops.gated_product_backward(one, gate, one, False)),
            ([0, far], [0, 1], [0, far]),
        ):
            assert torch.equal(got, torch.tensor(want, dtype=dtype))
    deep = torch.tensor([-100.0, -600.0]).double()  # where fp32 has nothing left
    for one in deep:
        o = ops.gated_product(one[None], torch.ones(1).double(), False)
        assert_close("o of a low gate", o, reference.gated_product(one[None], torch.ones(1).double(), False), 1e-12)
    strided = rows(5, 80, dtype=torch.float32)
    gate, up = strided[:, ::2], strided[:, 1::2]
    want = reference.gated_product(gate.double(), up.double(), False)
    assert_close("o of strided rows", ops.gated_product(gate, up, False), want, TOLERANCES[torch.float32])


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * cos[:, :, None] + turned * sin[:, :, None]).transpose(1, 2)


def rotations(ops) -> None:
    """Heads of every tail rotated, and their gradients rotated back; halves of cos and sin that differ; any strides."""
    for dtype in DTYPES:
        for sizes in ((2, 5, 3, 64), (1, 1, 1, 2), (3, 40, 4, 20), (2, 3, 1, 128), (0, 3, 2, 4), (2, 0, 2, 4)):
            batch, length, heads, size = sizes
            x = rows(batch, heads, length, 2 * size, dtype=dtype)[..., :size].transpose(1, 2)
            cos, sin = rows(1, length, size, dtype=dtype), rows(1, length, size, dtype=dtype)
            if length == 40:
                cos, sin = rows(batch, length, size, dtype=dtype), rows(1, length, size, dtype=dtype).expand(batch, -1, -1)
            grad = rows(batch, length, heads, size, dtype=dtype).transpose(1, 2)
            want, (dx,) = exact(partial(rotated, cos=cos.double(), sin=sin.double()), [x], grad)
            got, back = ops.rotate(x, cos, sin, False), ops.rotate(grad, cos, sin, True)
            assert got.dtype == dtype and got.is_contiguous() and back.is_contiguous()
            assert_close("o", got, want, TOLERANCES[dtype])
            assert_close("dx", back, dx, TOLERANCES[dtype])


TEXTS = (  # tokens of a beginning, and of the texts behind it: heads of q and of k, width, window
    ((5, 9, 3, 1), 9, 3, 64, 0), ((0, 4, 7), 2, 2, 20, 0), ((13,), 6, 1, 16, 0), ((40, 70, 0, 35), 4, 2, 33, 0),
    ((20, 30, 9), 6, 2, 64, 11), ((150, 140, 1), 4, 4, 8, 130), ((3, 2), 100, 1, 4, 0),
    ((2, 3), 2, 1, 0, 0), ((0,), 2, 1, 8, 0),
)  # fmt: skip


def runs_of(*rows):
    """Of rows of runs by their lengths."""
    count = max(map(len, rows))
    ends = [[0, *torch.tensor([*row, *[0] * (count - len(row))]).cumsum(0).tolist()] for row in rows]
    return torch.tensor(ends, dtype=torch.int32)


def attended(q, k, v, runs, scale, window):
    """By torch's attention, text after text: each with its beginning in front of it, alone."""
    repeated = [x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v)]
    out = torch.zeros(len(q), q.shape[2], *q.shape[1::2], dtype=q.dtype)
    for row, ends in enumerate(runs.expand(len(q), -1).tolist()):
        begun = list(range(ends[1]))
        for run, (first, end) in enumerate(zip(ends, ends[1:])):
            text = begun * (run > 0) + list(range(first, end))
            at = torch.arange(len(text))
            seen = (at <= at[:, None]) & (at > at[:, None] - (window or len(text)))
            alone = [x[row : row + 1, :, text] for x in (q, *repeated)]
            found = torch.nn.functional.scaled_dot_product_attention(*alone, attn_mask=seen, scale=scale)[0].transpose(0, 1)
            out[row, first:end] = found[len(text) - (end - first) :]
    return out


def branches(ops) -> None:
    """o, lse, dq, dk and dv of texts that share a beginning, with padding behind them, windows and any strides."""
    for dtype in DTYPES:
        for texts, heads, shared, size, window in TEXTS:
            length = sum(texts) + 3
            runs = runs_of(texts, texts[:1]) if len(texts) > 2 else runs_of(texts)
            q = rows(2, length, heads, size + 1, dtype=dtype)[..., :size].transpose(1, 2)
            k, v = rows(2, 2, length, shared, size, dtype=dtype).transpose(2, 3)
            grad = rows(2, heads, length, size, dtype=dtype).transpose(1, 2)
            arguments = runs, 0.3, window
            want, gradients = exact(lambda q, k, v, arguments=arguments: attended(q, k, v, *arguments), (q, k, v), grad)
            o, lse = ops.attend_branches(q, k, v, *arguments)
            _, expected = reference.attend_branches(q.double(), k.double(), v.double(), *arguments)
            got = ops.attend_branches_backward(grad, q, k, v, o, lse, *arguments)
            assert o.dtype == dtype and o.is_contiguous() and lse.dtype == (dtype if dtype == torch.float64 else torch.float32)
            assert_close("o", o, want, TOLERANCES[dtype])
            assert_close("lse", lse, expected, TOLERANCES[lse.dtype])
            for name, one, other in zip(("dq", "dk", "dv"), got, gradients):
                assert one.dtype == dtype and one.shape == other.shape
                assert_close(name, one, other, 2 * TOLERANCES[dtype])  # o, which it reads, was rounded
            joined = behind(q), behind(k), behind(v)
            arguments = (runs.expand(2, -1) + torch.tensor([[0], [length]])).int(), 0.3, window
            o, lse = ops.attend_branches(*joined, *arguments)
            assert_close("o of rows one behind another", o, behind(want, 1), TOLERANCES[dtype])
            assert_close("lse of rows one behind another", lse, behind(expected), TOLERANCES[lse.dtype])
            for name, one, other in zip(
                ("dq", "dk", "dv"), ops.attend_branches_backward(behind(grad, 1), *joined, o, lse, *arguments), gradients
            ):
                assert_close(f"{name} of rows one behind another", one, behind(other), 2 * TOLERANCES[dtype])


def behind(x, dim=2):
    """Rows [B,...] one behind another along the dimension of tokens, in a batch of one."""
    return torch.cat(list(x.split(1)), dim)


def company(ops) -> None:
    """A text has the bits that it has alone, beside texts and padding of NaN, however much of its beginning is shared."""
    for dtype in DTYPES:
        for window in (0, 140):
            q, k, v = rows(1, 6, 170, 20, dtype=dtype), *rows(2, 1, 2, 170, 20, dtype=dtype)

            def texts(x, beginning, first, end, gap):
                """Tokens of x as a row: the beginning, a text of NaN, the text, and padding."""
                nan = torch.full_like(x[:, :, :gap], NAN)
                return torch.cat([x[:, :, :beginning], nan, x[:, :, first:end], nan], 2)

            alone, _ = ops.attend_branches(q, k, v, runs_of((170,)), 0.3, window)
            for beginning, gap in ((1, 5), (40, 3), (131, 60)):
                row = [texts(x, beginning, beginning, 170, gap) for x in (q, k, v)]
                o, _ = ops.attend_branches(*row, runs_of((beginning, gap, 170 - beginning)), 0.3, window)
                real = [*range(beginning), *range(beginning + gap, 170 + gap)]
                assert torch.equal(o[:, real], alone), "a text depends on its row"
            part, _ = ops.attend_branches(*(x[:, :, :90] for x in (q, k, v)), runs_of((30, 60)), 0.3, window)
            assert torch.equal(part, alone[:, :90])
            nan = torch.full_like(alone[:, :7].transpose(1, 2), NAN)
            row = [torch.cat([nan[:, : x.shape[1]], x[:, :, :50], x, nan[:, : x.shape[1]]], 2) for x in (q, k, v)]
            runs = torch.tensor([[0, 2, 7], [7, 17, 57], [57, 87, 227]]).int()
            o, _ = ops.attend_branches(*row, runs, 0.3, window)
            assert torch.equal(o[:, 57:227], alone), "a text depends on the rows before its own"
            assert torch.equal(o[:, 7:57], alone[:, :50]) and not o[:, 227:].any()


def chances(ops) -> None:
    """logp, lse, entropy and d logits of rows of every tail, strided, of no rows, of likely and impossible tokens, and NaN."""
    for dtype in DTYPES:
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        close = 1e-12 if dtype == torch.float64 else 2e-6  # sums are fp32 whatever the logits are
        for count, width in ((7, 33), (5, 1), (3, 2100), (4, 16), (0, 9), (2, 49152)):
            logits, ids, grad = (
                5 * rows(count, 2 * width, dtype=dtype)[:, :width],
                torch.randint(width, (count,)),
                rows(count, dtype=sums),
            )
            if count > 2 and width > 20:
                logits[0] += 90
                logits[1, 3:] -= 300
                logits[2, 5:] = -torch.inf
            want, gradients = exact(lambda x, ids=ids: x.log_softmax(-1).gather(-1, ids[:, None])[:, 0], (logits,), grad)
            p = logits.double().softmax(-1)
            logp, lse, entropy = ops.token_logp(logits, ids)
            assert logp.dtype == lse.dtype == entropy.dtype == sums
            likely = want.isfinite()
            assert torch.equal(logp.isfinite(), likely)
            assert_close("logp", logp[likely], want[likely], close)
            assert_close("lse", lse, logits.double().logsumexp(-1), close)
            assert_close("entropy", entropy, torch.special.entr(p).sum(-1), close)
            got = ops.token_logp_backward(grad, logits, ids, lse)
            assert got.dtype == dtype and got.is_contiguous()
            assert_close("d logits", got, gradients[0], max(10 * close, TOLERANCES[dtype]))
    x = torch.tensor([[1.0, NAN, *[2.0] * 40], [1.0] * 42, [*[2.0] * 41, NAN]])
    found = ops.token_logp(x, torch.tensor([0, 5, 1]))
    assert all(one.isnan().tolist() == [True, False, True] for one in found)


def neighbours(ops) -> None:
    """A row has the bits that it has alone, wherever it lies, beside rows of NaN."""
    for dtype in DTYPES:
        x, dy, weight = rows(9, 83, dtype=dtype), rows(9, 83, dtype=dtype), rows(83, dtype=dtype)
        cos, sin = rows(1, 9, 82, dtype=dtype), rows(1, 9, 82, dtype=dtype)

        def computed(x, dy, cos, sin, weight=weight):
            wave, heads = (cos, sin), x[None, :, None, :82]
            yield from (ops.rms_norm(x, weight, 1e-6, plus) for plus in (0.0, 1.0))
            yield ops.rms_norm_backward(dy, x, weight, 1e-6, 0.0, True)[0]
            for gelu in (False, True):
                yield ops.gated_product(x, dy, gelu)
                yield from ops.gated_product_backward(dy, x, x, gelu)
            ids = torch.arange(len(x)) * 0 + 7
            logp, lse, entropy = ops.token_logp(x, ids)
            yield from (logp, lse, entropy, ops.token_logp_backward(logp, x, ids, lse))
            yield ops.rotate(heads, *wave, False)[0, 0]
            yield ops.rotate(heads.transpose(1, 2), *wave, True)[0, :, 0]

        together = list(computed(x, dy, cos, sin))
        for row in range(9):
            one = slice(row, row + 1)
            alone = computed(x[one].clone(), dy[one].clone(), cos[:, one].clone(), sin[:, one].clone())
            sick = [torch.full_like(t, NAN) for t in (x, dy)]
            for mine, of in zip(sick, (x, dy)):
                mine[row] = of[row]
            beside = computed(*sick, cos, sin)
            for a, b, c in zip(alone, beside, together):
                assert torch.equal(a[0], c[row]) and torch.equal(b[row], c[row]), "a row depends on its neighbours"


FORMULAS = [norms, products, rotations, branches, chances]
PASS = [*FORMULAS, company, neighbours]
