"""Every op in plain PyTorch: the specification, the oracle of the tests, and the kernel where no other one exists.

Notation. M rows are cut into G contiguous segments, `seg_off` int32 [G+1] from 0 to M; segment g belongs to slot
`seg_slot[g]` (int32 [G], -1 = base only). A slot computes with its own `rank[slot]` (int32 [S], 1..R; 0 = freed) out of
the R stored rows of its factor `f[slot]` [R, D], last dimension contiguous; `f` [1, R, D] is shared by all slots.

Rounding.
  activations and factors fp32, bf16 or fp16 (independently): every operand is widened to fp32 (exact), products
  are summed in fp32, `scale` multiplies the finished fp32 sum, and z and all gradients g stay fp32.
  expand adds its finished fp32 sum to o widened to fp32 and rounds once, to nearest even, to o's dtype.
  lora_linear in 16 bits therefore rounds twice: the base product with its bias, then the sum with the adapter's part.
  all fp64: the same with fp64 in place of fp32; `scale` stays fp32 and is widened.
  bank_step_, lora_gram_step_: scalars (1 - lr·wd, 1 - beta, bias corrections, clip coefficient) are computed in fp64 and
  rounded once to the dtype of the row; the elementwise part runs in that dtype; the squares of the norm are summed in fp64.

Order. A sum never crosses segments, and a slot's segments are added to g one after another. A kernel may choose the
order inside a segment's sum, but only by D, R, the dtype and the segment itself, never by what else is in the batch.
The order here is torch.matmul's, which may also depend on strides and threads; the C++ kernels' does not.

Plan. What kernels on a GPU need to know about the segments, made once per batch by lora_plan and shared by all layers.
Every op builds it by itself where it is not given; the CPU's kernels and these formulas do without.
"""

import itertools
import math

import torch
from torch import Tensor

HYPER = ("lr", "beta1", "beta2", "eps", "weight_decay", "clip")
"""Columns of `hyper`. clip > 0 limits the norm of a row's gradient, 0 = off. SGD reads lr, weight_decay and clip."""

SQUARED = 16
"""Columns of a gradient for each entry of `squares`."""

_MASK = 0xFFFFFFFF
TILE = 64
"""Rows of one tile of a plan."""


def lora_plan(seg_off: Tensor, seg_slot: Tensor, rank: Tensor, rows: int) -> Tensor:
    """The tiles of all segments and the segments of all slots, in one int32 tensor:

    count [1] | mark [1] | sizes [1] | 0 | tiles [T,4] | slot_ptr [S+1] | spans [G,2],  T = ceil(rows/TILE) + G.
    Tile t < count is (slot, first row, its segment's end, what): it covers TILE rows as far as its segment reaches. What: 1 if
    the segment is the only one of its slot, + 2·min(2, the tile's place in its segment) + 8·the segment. Slot s owns the
    segments spans[slot_ptr[s] : slot_ptr[s+1]], (first row, end) each, in the order of the batch, empty ones left out. The
    rest is zero, and the slot of tiles from `count` on -1. mark: see mark_of; sizes: the same of rows, G and S alone.
    """
    offsets, ranks, slots = seg_off.tolist(), rank.tolist(), seg_slot.tolist()
    owned = [
        [g for g, owner in enumerate(slots) if owner == s and r > 0 and offsets[g + 1] > offsets[g]]
        for s, r in enumerate(ranks)
    ]
    only = {segs[0] for segs in owned if len(segs) == 1}
    tiles = [
        (slots[g], row, offsets[g + 1], (g in only) + 2 * min(2, (row - offsets[g]) // TILE) + 8 * g)
        for g in range(len(slots))
        for row in range(offsets[g], offsets[g + 1], TILE)
    ]
    empty = -(-rows // TILE) + len(slots) - len(tiles)
    sizes = _signed(_mix(_mix(_mix(rows + 1) + len(slots) & _MASK) + len(ranks) & _MASK))
    plan = [len(tiles), mark_of(offsets, slots, ranks, rows), sizes, 0, *itertools.chain(*tiles, *[(-1, 0, 0, 0)] * empty)]
    order = [edge for g in itertools.chain(*owned) for edge in (offsets[g], offsets[g + 1])]
    plan += [sum(map(len, owned[:s])) for s in range(len(ranks) + 1)] + order + [0] * (2 * len(slots) - len(order))
    return torch.tensor(plan, dtype=torch.int32, device=seg_off.device)


def _mix(x: int) -> int:
    """A bijection of 32 bits that spreads every one of them (Wellons 2018, lowbias32)."""
    x = (x ^ x >> 16) * 0x7FEB352D & _MASK
    x = (x ^ x >> 15) * 0x846CA68B & _MASK
    return x ^ x >> 16


def mark_of(offsets: list[int], slots: list[int], ranks: list[int], rows: int) -> int:
    """What tells one descriptor from another in 32 bits, signed: segments, their slots, whether those are in use, sizes."""
    total = 0
    for g, slot in enumerate(slots):
        x = g + 1
        for value in (offsets[g], offsets[g + 1], slot, int(0 <= slot < len(ranks) and ranks[slot] > 0)):
            x = _mix(x) + value & _MASK
        total += _mix(x)
    return _signed(_mix(_mix(total + rows & _MASK) + len(ranks) & _MASK))


def _signed(x: int) -> int:
    return x - (x >> 31 << 32)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _segments(seg_off: Tensor, seg_slot: Tensor, rank: Tensor):
    """(first row, last row + 1, slot, rank) of every segment that has both rows and a slot."""
    offsets, ranks = seg_off.tolist(), rank.tolist()
    for g, slot in enumerate(seg_slot.tolist()):
        if slot >= 0 and offsets[g + 1] > offsets[g]:
            yield offsets[g], offsets[g + 1], slot, ranks[slot]


def rows_of(x: Tensor) -> Tensor:
    """x [..., K] as [M,K]."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _factor(f: Tensor, slot: int, r: int, dtype: torch.dtype) -> Tensor:
    return f[slot if f.shape[0] > 1 else 0, :r].to(dtype)


def lora_shrink(
    v: Tensor, f: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor, plan: Tensor | None = None
) -> Tensor:
    """z[m,j] = scale[slot]·Σ_d v[m,d]·f[slot,j,d] for j < rank[slot], else 0.  v [M,D] -> z [M,R]."""
    acc = _accumulator(v)
    z = v.new_zeros(v.shape[0], f.shape[1], dtype=acc)
    for lo, hi, slot, r in _segments(seg_off, seg_slot, rank):
        z[lo:hi, :r] = (v[lo:hi].to(acc) @ _factor(f, slot, r, acc).T) * scale[slot].to(acc)
    return z


def lora_shrink_multi(
    v: Tensor, f: list[Tensor], seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor,
    plan: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`lora_shrink` through each of P factors that read the same rows.  v [M,D], P times f -> z [P,M,R]."""
    return torch.stack([lora_shrink(v, one, seg_off, seg_slot, rank, scale) for one in f])


def lora_expand_(
    o: Tensor, z: Tensor, f: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None
) -> None:
    """o[m,d] += Σ_{j<rank[slot]} z[m,j]·f[slot,j,d], in place.  z [M,R], o [M,D]."""
    acc = _accumulator(z)
    for lo, hi, slot, r in _segments(seg_off, seg_slot, rank):
        rows = o[lo:hi]
        rows.copy_(rows.to(acc) + z[lo:hi, :r] @ _factor(f, slot, r, acc))


def lora_gram_(
    g: Tensor, z: Tensor, v: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None,
    fresh: bool = False, squares: Tensor | None = None,
) -> None:  # fmt: skip
    """g[slot,j,d] += Σ_{m in slot} z[m,j]·v[m,d] for j < rank[slot], in place.  z [M,R], v [M,D], g [S,R,D].

    fresh: what g holds of slots that have rows counts as zero, whatever it is.
    squares fp64 [S,⌈D/16⌉], if given: of slots that have rows, entries that add up to Σ_{j < rank[slot], d} g[slot,j,d]², each
    of which holds what some of the columns from its 16 on have.
    """
    begun: set[int] = set()
    for lo, hi, slot, r in _segments(seg_off, seg_slot, rank):
        product = z[lo:hi, :r].T @ v[lo:hi].to(z.dtype)
        g[slot, :r] = product if fresh and slot not in begun else g[slot, :r] + product
        begun.add(slot)
    if squares is not None:
        for slot in begun:
            square = g[slot, : int(rank[slot])].double().square().sum(0)
            padded = torch.nn.functional.pad(square, (0, -len(square) % SQUARED))
            squares[slot] = padded.view(-1, SQUARED).sum(1)


def lora_gram(z: Tensor, v: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None) -> Tensor:
    """`lora_gram_` onto zeros.  -> g [S,R,D] in z's dtype."""
    g = z.new_zeros(rank.shape[0], z.shape[1], v.shape[1])
    lora_gram_(g, z, v, seg_off, seg_slot, rank)
    return g


def lora_backward_(
    g: Tensor, z: Tensor, dy: Tensor, bt: Tensor,
    seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor, plan: Tensor | None = None, fresh: bool = False,
    squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What needs dy: g += gram(z, dy) in place, and dz = shrink(dy, bt).  dy [M,N], bt [S,R,N] -> dz [M,R]."""
    lora_gram_(g, z, dy, seg_off, seg_slot, rank, plan, fresh, squares)
    return lora_shrink(dy, bt, seg_off, seg_slot, rank, scale)


def lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, bt: Tensor,
    seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor, plan: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y = x Wᵀ + bias + expand(z, bt) with z = shrink(x, a).  w [N,K], a [S|1,R,K], bt [S,R,N]."""
    y = torch.nn.functional.linear(x, w, bias).contiguous()
    z = lora_shrink(rows_of(x), a, seg_off, seg_slot, rank, scale)
    lora_expand_(rows_of(y), z, bt, seg_off, seg_slot, rank)
    return y, z


def lora_decode_(y: Tensor, x: Tensor, a: Tensor, bt: Tensor, row_slot: Tensor, rank: Tensor, scale: Tensor) -> None:
    """y[m] += expand(shrink(x[m], a), bt) with slot row_slot[m], in place; -1: none.  x [M,K], y [M,N], row_slot [M]."""
    seg_off = torch.arange(len(row_slot) + 1)
    z = lora_shrink(x, a, seg_off, row_slot, rank, scale)
    lora_expand_(y, z, bt, seg_off, row_slot, rank)


def bank_step_(
    param: Tensor, grad: Tensor, m: Tensor | None, v: Tensor | None, step: Tensor, hyper: Tensor, active: Tensor,
    copy: Tensor | None = None, clear: bool = True, squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One optimizer step of the active rows. param, grad, m, v [S,P]; step, active [S]; hyper [S,6] -> norms fp32 [S].

    n = ‖grad‖;  g = grad·min(1, clip/(n + 1e-6)) if clip > 0;  grad = 0 if clear;  t = step + 1
    SGD   (m, v None):  param = param·(1 - lr·wd) - lr·g
    AdamW             :  m = m + (1-β1)(g - m);  v = β2·v + (1-β2)·g²
                         param = param·(1 - lr·wd) - lr/(1-β1ᵗ) · m / (√v/√(1-β2ᵗ) + eps)
    squares fp64 [S,T], if given, add up to ‖grad‖² in every active row, as lora_gram_ leaves them: grad is then read once.
    A row whose norm is not finite in fp32 keeps everything else, step included.
    copy bf16 or fp16 [S,P], if given, receives the new parameters of the rows that moved, rounded to nearest even.
    """
    norms = torch.zeros(param.shape[0], dtype=torch.float32, device=param.device)
    for s in active.nonzero().flatten().tolist():
        g, p = grad[s].clone(), param[s]
        norm = (g.double().square() if squares is None else squares[s]).sum().sqrt()
        norms[s] = norm
        if clear:
            grad[s].zero_()
        if not norms[s].isfinite():
            continue
        step[s] += 1
        clip = float(hyper[s, HYPER.index("clip")])
        if clip > 0:
            g *= min(1.0, clip / (float(norm) + 1e-6))
        _move(p, g, None if m is None else m[s], None if v is None else v[s], int(step[s]), hyper[s])
        if copy is not None:
            copy[s] = p
    return norms


def _move(p: Tensor, g: Tensor, m: Tensor | None, v: Tensor | None, t: int, hyper: Tensor) -> None:
    """The t-th step of p by its gradient g, in place: see bank_step_. m and v None: SGD."""
    lr, beta1, beta2, eps, decay, _ = hyper.tolist()
    p *= 1 - lr * decay
    if m is None or v is None:
        p -= lr * g
    else:
        m += (1 - beta1) * (g - m)
        v *= beta2
        v += (1 - beta2) * (g * g)
        p -= lr / (1 - beta1**t) * (m / (v.sqrt() / (1 - beta2**t) ** 0.5 + eps))


def lora_gram_step_(
    param: Tensor, m: Tensor | None, v: Tensor | None, step: Tensor, hyper: Tensor, z: Tensor, dy: Tensor,
    seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None, copy: Tensor | None = None,
    squares: Tensor | None = None,
) -> None:  # fmt: skip
    """One optimizer step of the slots that have rows by g = gram(z, dy), which nobody keeps. param, m, v [S,R,D], step [S],
    hyper [S,6], z [M,R], dy [M,D].

    param, m, v of j < rank[slot] become what bank_step_ makes of them with this g, t = step + 1 and no clip; step is read, as
    the other layers need it too. An element whose g is not finite keeps everything. copy: as of bank_step_, [S,R,D].
    squares: as of lora_gram_, of this g.
    """
    g = torch.empty_like(param)
    lora_gram_(g, z, dy, seg_off, seg_slot, rank, plan, True, squares)
    for s in {slot for _, _, slot, _ in _segments(seg_off, seg_slot, rank)}:
        r = int(rank[s])
        finite, kept = g[s, :r].isfinite(), [x[s, :r] for x in (param, m, v) if x is not None]
        p, first, second = (*(x.clone() for x in kept), None, None)[:3]
        _move(p, g[s, :r], first, second, int(step[s]) + 1, hyper[s])
        for x, moved in zip(kept, (p, first, second)):
            x.copy_(torch.where(finite, moved, x))
        if copy is not None:
            copy[s, :r] = torch.where(finite, p.to(copy.dtype), copy[s, :r])


def bank_copy_(matrices: list[Tensor], source: Tensor, target: Tensor) -> None:
    """Row target[i] of every matrix becomes its row source[i], or zero where source[i] is -1.  matrices [S,...]."""
    for matrix in matrices:
        for s, t in zip(source.tolist(), target.tolist()):
            matrix[t].copy_(matrix[s]) if s >= 0 else matrix[t].zero_()


# What batched_rsvd is made of. `w` is a list of b matrices [m,n] of one shape and dtype, any strides, or one tensor [b,m,n] in
# a list of its own. fp32 results for fp32, bf16 and fp16 (which are widened), fp64 for fp64.


def _widened(w: list[Tensor]) -> list[Tensor]:
    matrices = w[0].unbind(0) if w[0].dim() == 3 else w
    return [matrix.to(_accumulator(matrix)) for matrix in matrices]


def svd_scan(w: list[Tensor]) -> Tensor:
    """max |w_ij| of every matrix [b]: NaN if it holds a NaN, inf if it holds an infinity and no NaN."""
    return torch.stack([torch.linalg.vector_norm(matrix, torch.inf) for matrix in _widened(w)])


_PHILOX = (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85)  # two multipliers, two steps of the key


def _philox(counter: list[Tensor], key: list[int]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, as in Random123): four words of 32 bits, in int64, from four and a key of two."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p, q = a * _PHILOX[0], c * _PHILOX[1]  # wraps as unsigned; the shift below is made logical by the mask
        a, b, c, d = ((q >> 32) & _MASK) ^ b ^ k0, q & _MASK, ((p >> 32) & _MASK) ^ d ^ k1, p & _MASK
        k0, k1 = (k0 + _PHILOX[2]) & _MASK, (k1 + _PHILOX[3]) & _MASK
    return [a, b, c, d]


SKETCH_SCALE = (4 * (256**2 - 1) / 12) ** -0.5
"""One over the standard deviation of a sum of four bytes."""


def svd_sketch(key: Tensor, seed: int, rows: int, columns: int) -> Tensor:
    """Random x fp32 [b,rows,columns] of mean 0 and variance 1, key int64 [b]; the same bits on every device.

    x[b,i,j] depends on (seed, key[b], i, j) alone: word j%4 of Philox4x32-10 with key (seed's low, high word) and counter
    (i, j//4, key's low, high word); its four bytes are added up and centred, which is nearly a Gaussian.
    """
    i = torch.arange(rows, device=key.device)[None, :, None]
    j = torch.arange(-(-columns // 4), device=key.device)[None, None, :]
    low, high = (key & _MASK)[:, None, None], ((key >> 32) & _MASK)[:, None, None]
    counter = [t.expand(len(key), rows, j.shape[-1]) for t in (i, j, low, high)]
    words = torch.stack(_philox(counter, [seed & _MASK, (seed >> 32) & _MASK]), dim=-1).flatten(2)[:, :, :columns]
    total = sum((words >> shift) & 255 for shift in (0, 8, 16, 24)) - 510
    return total.float() * torch.tensor(SKETCH_SCALE, dtype=torch.float32)


def svd_product(w: list[Tensor], x: Tensor, scale: Tensor | None = None, minus: Tensor | None = None) -> Tensor:
    """scale·W x, or minus - scale·W x.  x [b,n,l], scale [b] powers of two (None = 1), minus [b,m,l] -> [b,m,l].

    x is multiplied by scale before the product, so that W of any magnitude overflows nothing.
    """
    x = x if scale is None else x * scale[:, None, None]
    out = torch.stack([matrix @ one for matrix, one in zip(_widened(w), x)])
    return out if minus is None else minus - out


def svd_gram(w: list[Tensor], x: Tensor, scale: Tensor) -> Tensor:
    """scale²·Wᵀ W x.  x [b,n,l], scale [b] -> [b,n,l]. Both products are scaled as in svd_product."""
    inner = svd_product(w, x, scale)
    return svd_product([matrix.mT for matrix in w], inner, scale)


def svd_factor(g: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """The inverse of g's Cholesky factor.  g [b,l,l] symmetric positive -> (inverse [b,l,l] upper triangular, pivot [b]).

    With D = diag(g)^-1/2:  D g D + shift·I = Rᵀ R,  inverse = D R⁻¹, so y·inverse has orthonormal columns if g = yᵀ y.
    pivot: the smallest R_jj², near 1 for nearly orthogonal columns of any lengths, 0 where g is not positive definite or not
    finite; the inverse is D there.
    """
    diagonal = g.diagonal(dim1=1, dim2=2)
    d = torch.where((diagonal > 0) & diagonal.isfinite(), diagonal, 1).rsqrt()
    scaled = d[:, :, None] * g * d[:, None, :]
    scaled = torch.where(scaled.isfinite(), scaled, 0)
    scaled.diagonal(dim1=1, dim2=2).add_(shift)
    r, failed = torch.linalg.cholesky_ex(scaled, upper=True)
    pivot = r.diagonal(dim1=1, dim2=2).square().amin(1)
    pivot = torch.where((failed == 0) & (diagonal > 0).all(1) & g.isfinite().all(2).all(1), pivot, 0)
    eye = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    r = torch.where((pivot == 0)[:, None, None], eye, r)
    return (d[:, :, None] * torch.linalg.solve_triangular(r, eye, upper=True)).contiguous(), pivot


def svd_eigh(t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, descending, of symmetric positive t [b,k,k], and their vectors: ([b,count], [b,k,count])."""
    values, vectors = torch.linalg.eigh(t)
    return values.flip(1)[:, :count].contiguous(), vectors.flip(2)[:, :, :count].contiguous()


def svd_small(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r [b,l,l] = u diag(s) vᵀ: u [b,l,l], s [b,l] descending, v [b,l,l], to high relative accuracy of every s."""
    u, s, vh = dense_svd(r)
    return u.contiguous(), s, vh.mT.contiguous()


def dense_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """torch.linalg.svd(a, full_matrices=False) by QR iteration: what torch takes on a GPU otherwise, Jacobi's, leaves U and V
    of fp32 matrices 1e-4 off orthonormal."""
    return torch.linalg.svd(a, full_matrices=False, driver="gesvd" if a.is_cuda else None)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, alike: Tensor | None = None) -> Tensor:
    """o[b,h] = Σ_c softmax_c(scale·q[b,h]·k[b,g,c]) v[b,g,c] over the visible columns, g = h // (H/G); zeros if there are none.

    q [B,H,D]; k and v [B,G,L,D]; mask bool [B,L]. alike: where else columns may be read, see ops.attend; here they are not.
    """
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    seen = mask[:, None, :, None]
    k, v = (torch.where(seen, x, 0).to(wide) for x in (k, v))
    rows = q.to(wide).unflatten(1, (k.shape[1], -1))
    scores = (rows @ k.transpose(-1, -2) * scale).masked_fill(~mask[:, None, None], -torch.inf)
    p = scores.softmax(-1).masked_fill(~mask[:, None, None], 0)
    return (p @ v).flatten(1, 2).to(q.dtype)


def attend_branches(q: Tensor, k: Tensor, v: Tensor, runs: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    """o [B,T,H,D] and lse [B,H,T]: attention of texts that share the beginning of a row, and log Σ_c e^(scale·q·k).

    q [B,H,T,D]; k and v [B,G,T,D]; runs int32 [1 or B,N+1]: run r of a row is its tokens [runs[r], runs[r+1]). A token sees
    run 0 and what precedes it in its own run, itself last; with a window of those the last so many. Behind the last run is
    padding: zeros.
    """
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    seen = seen_in_runs(runs, len(q), q.shape[2], window)
    rows = q.to(wide).unflatten(1, (k.shape[1], -1))
    scores = (rows @ k.to(wide).transpose(-1, -2)[:, :, None] * scale).masked_fill(~seen[:, None, None], -torch.inf)
    real = seen.any(-1)[:, None, None]
    lse = torch.where(real, scores.logsumexp(-1), 0)
    p = torch.where(real[..., None], (scores - lse[..., None]).exp(), 0)
    o = (p @ v.to(wide)[:, :, None]).flatten(1, 2)
    return o.transpose(1, 2).contiguous().to(q.dtype), lse.flatten(1, 2)


def attend_branches_backward(
    d_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, runs: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv. With P the softmax and dP = dO Vᵀ: dV = Pᵀ dO, dS = scale P ∘ (dP - rowsum(dO ∘ O)), dQ = dS K,
    dK = dSᵀ Q."""
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    seen = seen_in_runs(runs, len(q), q.shape[2], window)[:, None, None]
    rows, grad, out = (x.to(wide).unflatten(1, (k.shape[1], -1)) for x in (q, d_o.transpose(1, 2), o.transpose(1, 2)))
    keys, values = (x.to(wide)[:, :, None] for x in (k, v))
    scores = rows @ keys.transpose(-1, -2) * scale - lse.unflatten(1, (k.shape[1], -1))[..., None]
    p = torch.where(seen, scores.exp(), 0)
    ds = p * (grad @ values.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True)) * scale
    dq, dk, dv = ds @ keys, (ds.transpose(-1, -2) @ rows).sum(2), (p.transpose(-1, -2) @ grad).sum(2)
    return dq.flatten(1, 2).to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}  # probabilities of token_logp: those of a CPU stay in its cache


def _few(logits: Tensor):
    """Rows at a time, and their logits in the accumulator's dtype."""
    rows = max(1, AT_ONCE.get(logits.device.type, 1 << 24) // max(1, logits.shape[1]))
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows]
        yield slice(start, start + rows), part if part.dtype == torch.float64 else part.float()


def token_logp(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(logits)[ids], log Σ e^logits and -Σ p log p.  logits [M,V], ids int64 [M] -> [M] each."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    chosen, total, entropy = (logits.new_empty(len(logits), dtype=dtype) for _ in range(3))
    for rows, part in _few(logits):
        total[rows] = part.logsumexp(-1)
        chosen[rows] = part.gather(-1, ids[rows, None])[:, 0] - total[rows]
        logp = part - total[rows, None]
        terms = logp.exp().mul_(logp).masked_fill_(logp == -torch.inf, 0.0)  # 0 log 0 = 0
        entropy[rows] = -terms.sum(-1)
    return chosen, total, entropy


def token_logp_backward(grad: Tensor, logits: Tensor, ids: Tensor, lse: Tensor) -> Tensor:
    """d logits = grad (onehot(id) - softmax(logits))."""
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for rows, part in _few(logits):
        p = (part - lse[rows, None]).exp_().mul_(-grad[rows, None])
        out[rows] = p.scatter_add_(-1, ids[rows, None], grad[rows, None]).to(out.dtype)
    return out


def seen_in_runs(runs: Tensor, rows: int, tokens: int, window: int) -> Tensor:
    """bool [1 or rows,T,T]: which tokens (columns) a token (row) sees, of runs [1 or rows,N+1], or of one row any number."""
    at, offsets = torch.arange(tokens, device=runs.device), runs.shape[1]
    table = runs.reshape(1, -1) if rows == 1 else runs
    last = torch.searchsorted(table.contiguous(), at.to(runs.dtype).expand(len(table), -1).contiguous(), right=True) - 1
    own, run = last // offsets, last % offsets  # the rows of runs; those behind the last offset of a row are padding
    alike = (own[:, :, None] == own[:, None, :]) & ((run[:, None, :] == 0) | (run[:, None, :] == run[:, :, None]))
    seen = alike & (at[:, None] >= at) & (run[:, :, None] < offsets - 1)
    if window:
        past = seen.cumsum(-1)
        seen &= past > past[..., -1:] - window
    return seen


# What a decoder's layer does for one new token of every row, beside its products with frozen weights. Sums are those of the
# accumulator's dtype, and every result is rounded once. `x, a, bt, row_slot, rank, scale` are those of lora_decode_, with a
# list of factors for the projections of one x; without adapters the lists are empty and the rest None.


def lora_decode_multi_(
    y: list[Tensor], x: Tensor, a: list[Tensor], bt: list[Tensor], row_slot: Tensor, rank: Tensor, scale: Tensor
) -> None:
    """lora_decode_ of every projection of x, in place."""
    for one, a_one, bt_one in zip(y, a, bt):
        lora_decode_(one, x, a_one, bt_one, row_slot, rank, scale)


def row_linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b.  x [M,K], w [N,K], bias [N] -> [M,N]."""
    return torch.nn.functional.linear(x, w, bias)


def _adapted(y: list[Tensor], x, a, bt, row_slot, rank, scale) -> list[Tensor]:
    """y with their adapters' parts, not rounded."""
    wide = [one.to(_accumulator(one), copy=True) for one in y]
    if a:
        lora_decode_multi_(wide, x.to(wide[0].dtype), a, bt, row_slot, rank, scale)
    return wide


def normed(x: Tensor, weight: Tensor, eps: float, plus: float) -> Tensor:
    """x·(mean(x²) + eps)^-1/2·(plus + weight) over the last dimension, not rounded: RMSNorm (Zhang and Sennrich 2019)."""
    wide = x.to(_accumulator(x))
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * (plus + weight.to(wide.dtype))


def lora_norm(
    y: Tensor, residual: Tensor, before: Tensor | None, weight: Tensor, eps: float, plus: float, x: Tensor | None,
    a: list[Tensor], bt: list[Tensor], row_slot: Tensor | None, rank: Tensor | None, scale: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h = residual + y + Δ(x), and n = normed(h), which reads h as it is rounded.  y, residual [M,N]; weight, before [N].

    With `before`, a norm of its own before the sum: h = residual + normed(y + Δ(x), before), which reads y + Δ(x) rounded.
    """
    (sum_,) = _adapted([y], x, a, bt, row_slot, rank, scale)
    if before is not None:
        sum_ = normed(sum_.to(y.dtype), before, eps, plus)
    h = (residual.to(sum_.dtype) + sum_).to(y.dtype)
    return h, normed(h, weight, eps, plus).to(y.dtype)


def lora_glu(
    gate: Tensor, up: Tensor, gelu: bool, x: Tensor | None, a: list[Tensor], bt: list[Tensor], row_slot: Tensor | None,
    rank: Tensor | None, scale: Tensor | None,
) -> Tensor:  # fmt: skip
    """o = f(gate + Δ0(x))·(up + Δ1(x)), f = silu, or with `gelu` GELU by tanh (Shazeer 2020).  [M,N] each."""
    gated, wide = _adapted([gate, up], x, a, bt, row_slot, rank, scale)
    gated = torch.nn.functional.gelu(gated, approximate="tanh") if gelu else torch.nn.functional.silu(gated)
    return (gated * wide).to(gate.dtype)


def rope_write_(
    keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, at: Tensor,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, plus: float,
) -> Tensor:  # fmt: skip
    """The rotated q [M,H,D]; the rotated k and v are written to column at[m] of keys and values [M,G,L,D].

    q [M,H·D], k and v [M,G·D], cos and sin [M,D], at int64 [M]. Rotated: x·cos + turn(x)·sin with turn(x) = (-x[D/2:], x[:D/2])
    (Su et al. 2021), of q and k that are normed over D by their weights [D] first, where these are given. A column that is not
    there is not written, and the row's q is NaN.
    """
    size = keys.shape[3]
    wide, rows = _accumulator(q), torch.arange(len(at), device=at.device)

    def rotated(x, weight):
        x = x.unflatten(1, (-1, size)).to(wide)
        x = x if weight is None else normed(x, weight, eps, plus)
        turned = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * cos[:, None].to(wide) + turned * sin[:, None].to(wide)

    there = (at >= 0) & (at < keys.shape[2])
    column = torch.where(there, at, 0)
    for cache, new in ((keys, rotated(k, k_weight)), (values, v.unflatten(1, (-1, size)))):
        if keys.shape[2] == 0:
            break  # a cache of no columns
        before = cache[rows, :, column]
        cache[rows, :, column] = torch.where(there[:, None, None], new.to(cache.dtype), before)
    return torch.where(there[:, None, None], rotated(q, q_weight), torch.nan).to(q.dtype)


# What a decoder's layer does in a whole pass, beside its products and attention. Results are rounded where transformers'
# modules round them, gradients once.


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus: float) -> Tensor:
    """normed(x), [..., N]; with `plus` 0 rounded before it is multiplied by the weight, as Llama's is and Gemma's is not."""
    if plus:
        return normed(x, weight, eps, plus).to(x.dtype).contiguous()
    return (normed(x, torch.ones_like(weight), eps, 0.0).to(x.dtype) * weight).contiguous()


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, plus: float, need_dw: bool) -> tuple[Tensor, Tensor]:
    """With r = (mean(x²) + eps)^-1/2 and u = dy·(plus + weight): dx = r·u - x·r³·mean(u·x), and dw = Σ dy·x·r, not rounded."""
    wide, grad = x.to(_accumulator(x)), dy.to(_accumulator(x))
    r = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    u = grad * (plus + weight.to(wide.dtype))
    dx = r * (u - wide * (r.square() * (u * wide).mean(-1, keepdim=True)))
    return dx.to(x.dtype).contiguous(), rows_of(grad * wide * r).sum(0) if need_dw else wide.new_empty(0)


def gated_product(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """o = f(gate)·up, f as in lora_glu."""
    gated = torch.nn.functional.gelu(gate, approximate="tanh") if gelu else torch.nn.functional.silu(gate)
    return (gated * up).contiguous()


def gated_product_backward(grad: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """With f(g) = g·s, s = σ(t): d_gate = grad·up·s·(1 + g·(1 - s)·t'), d_up = grad·f(gate).

    silu: t = g. GELU by tanh: t = 2·(2/π)^1/2·(g + 0.044715·g³), as (1 + tanh z)/2 = σ(2z).
    """
    d, g, u = (x.to(_accumulator(gate)) for x in (grad, gate, up))
    factor = 2 * (2 / math.pi) ** 0.5
    t, slope = (factor * (g + 0.044715 * g**3), factor * (1 + 3 * 0.044715 * g**2)) if gelu else (g, 1.0)
    s, rest = t.sigmoid(), (-t).sigmoid()
    return tuple(x.to(gate.dtype).contiguous() for x in (d * u * s * (1 + g * rest * slope), d * (g * s)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x·cos + turn(x)·sin as in rope_write_, [B,T,H,D] -> [B,H,T,D]; back: its transpose, [B,H,T,D] -> [B,T,H,D]."""
    half = x.shape[-1] // 2
    if back:
        swapped = x * sin[:, None]
        out = x * cos[:, None] + torch.cat([swapped[..., half:], -swapped[..., :half]], -1)
    else:
        out = x * cos[:, :, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, :, None]
    return out.transpose(1, 2).contiguous()
