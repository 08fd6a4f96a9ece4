"""Study `rsvd`: truncated decompositions of all of a model's weights, time against accuracy.

A way that is fast because it stops early is not fast. Every way is run at several settings; each gets its time and, for
every matrix, the captured energy E = ‖A V_r‖² / ‖A_r‖² against fp64. Comparisons are made between settings whose median E
reaches AIM.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import batched_rsvd
from .measure import Provider, Settings, _in_turns, ceilings, timer_of

RANK = 16
AIM = 0.995  # median captured energy
OURS = ("tmem", "krylov 6")  # the default


@dataclass(frozen=True)
class Way:
    """call: the matrices -> V [n,RANK] of each. slow: seconds a call, timed in fewer rounds."""

    name: str
    setting: str
    call: Callable[[list[Tensor]], list[Tensor]]
    slow: bool = False


@dataclass(frozen=True)
class Work:
    """Matrices to decompose, on their device; `judged`: the indices of those whose energy is looked at."""

    name: str
    matrices: list[Tensor]
    judged: Sequence[int]


def ways(device: str, quick: bool) -> list[Way]:
    some = [Way(*OURS, functools.partial(_ours, method="krylov", iters=6))]
    some += [Way("tmem", f"{method} {i}", functools.partial(_ours, method=method, iters=i))
             for method, counts in (("krylov", (2, 3, 4, 5, 8)), ("subspace", (2, 8))) for i in counts]  # fmt: skip
    # On a GPU each takes seconds: the two that are fastest at AIM on a CPU, and the usual setting.
    tuned = [(24, 2), (24, 4), (24, 8), (32, 6), (40, 5), (48, 4), (64, 3)] if device == "cpu" else [(24, 2), (24, 8), (32, 6)]
    some += [Way("svd_lowrank loop", f"q={q} niter={n}", functools.partial(_lowrank, q=q, niter=n)) for q, n in tuned]
    # What PEFT does for init_lora_weights="pissa_niter_N", without its residual.
    some += [Way("pissa", f"niter={n}", functools.partial(_lowrank, q=RANK, niter=n)) for n in (4, 16)]
    some += [Way("svd_lowrank batched", f"q={q} niter={n}", functools.partial(_lowrank_batched, q=q, niter=n))
             for q, n in ((24, 4), (24, 8), (40, 5))]  # fmt: skip
    if device == "cpu":  # on a GPU these take minutes
        some += [Way("Gram and eigh loop", "exact", _gram_eigh, slow=True), Way("linalg.svd loop", "exact", _exact, slow=True)]
        some += [Way("scikit-learn loop", f"p={p} n_iter={n}", functools.partial(_sklearn, oversample=p, iters=n), slow=True)
                 for p, n in ((10, 4), (8, 8), (24, 5))]  # fmt: skip
    return some[:1] + some[7:9] + some[15:] if quick else some


def _ours(matrices, method, iters):
    oversample = 0 if method == "krylov" else 8
    found = batched_rsvd(matrices, RANK, method=method, oversample=oversample, iters=iters, compute=("S", "V"))
    return [one.V for one in found]


def _lowrank(matrices, q, niter):
    return [torch.svd_lowrank(a.float(), q=q, niter=niter)[2][:, :RANK] for a in matrices]


def _lowrank_batched(matrices, q, niter):
    """One call for all matrices of a shape; stacking them, which doubles the memory, is part of the way."""
    shapes: dict[torch.Size, list[int]] = {}
    for i, a in enumerate(matrices):
        shapes.setdefault(a.shape, []).append(i)
    out: list[Tensor | None] = [None] * len(matrices)
    for members in shapes.values():
        v = torch.svd_lowrank(torch.stack([matrices[i].float() for i in members]), q=q, niter=niter)[2]
        for i, one in zip(members, v):
            out[i] = one[:, :RANK]
    return out


def _gram_eigh(matrices):
    out = []
    for a in matrices:
        a = a.float()
        if a.shape[0] < a.shape[1]:
            u = torch.linalg.eigh(a @ a.T)[1][:, -RANK:].flip(1)
            v = a.T @ u
            out.append(v / v.norm(dim=0).clamp(min=1e-30))
        else:
            out.append(torch.linalg.eigh(a.T @ a)[1][:, -RANK:].flip(1))
    return out


def _exact(matrices):
    return [torch.linalg.svd(a.float(), full_matrices=False)[2][:RANK].T for a in matrices]


def _sklearn(matrices, oversample, iters):
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    options = {"n_oversamples": oversample, "n_iter": iters, "random_state": 0}
    with threadpool_limits(1, user_api="blas"):  # four times faster than with two threads of the OpenBLAS it comes with
        found = [randomized_svd(a.numpy(), RANK, **options)[2] for a in matrices]
    return [torch.from_numpy(vh.copy()).T for vh in found]


def works(device: str, quick: bool) -> Iterator[Work]:
    """On the CPU the default model's own linear layers; on a GPU random matrices with weight-like spectra of the shapes of
    two layers of Llama-3.1-8B, and the paper's scope: the MLP of the last 4 layers of Qwen3-4B."""
    if device == "cpu":
        from ..models import loading

        model, _ = loading.load_model(dtype=torch.float32, device="cpu")
        found = [p.detach() for n, p in model.named_parameters() if n.endswith("_proj.weight")]
        if quick:
            found = found[:2] + found[-2:]
        yield Work(f"{len(found)} matrices of SmolLM2-135M", found, range(len(found)))
        return
    layers = 1 if quick else 2
    llama = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)] * layers
    qwen = [(9728, 2560), (9728, 2560), (2560, 9728)] * (1 if quick else 4)
    for name, shapes in ((f"{len(llama)} shapes of Llama-3.1-8B", llama), (f"{len(qwen)} shapes of Qwen3-4B", qwen)):
        yield Work(name, [weight_like(m, n, seed) for seed, (m, n) in enumerate(shapes)], range(min(7, len(shapes))))


def weight_like(m: int, n: int, seed: int, device: str = "cuda", dtype=torch.bfloat16) -> Tensor:
    """Random, of the spectrum that weights have: a few larger singular values above a flat rest. A Gaussian matrix, whose
    spectrum is flat at its edge √m + √n, plus 64 directions that stand out by 60 % of the edge at most, falling as i^-½."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    u, v = (torch.linalg.qr(normal(size, 64))[0] for size in (m, n))
    edge = m**0.5 + n**0.5
    s = edge * (0.7 + 0.9 * torch.arange(1, 65, device=device).float().rsqrt())
    return ((normal(m, n) + (u * s) @ v.T) / edge).to(dtype)


def compare_svds(quick: bool, watch: Callable[[str, int, int], None], kept: Callable) -> dict:
    """{"rows", "ceilings", "aims"}: one row for every work, way and setting.

    ms: median of the rounds, each of which runs every way once; ratio: median of the rounds' ratios to OURS. energy and
    sigma: [median, worst] over the matrices of E and of the largest error of a singular value over s_r. reads: how often
    OURS passes over the matrices; least_ms: those bytes at the copy rate of the run or their flops at its GEMM rate,
    whichever takes longer. Nothing is `kept`: times are compared within one run.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = ceilings(quick, device)
    rows: list[dict] = []
    for work in works(device, quick):
        some = ways(device, quick)
        watch(f"{work.name}: exact, fp64", 0, len(some) + 2)
        exact = [_singular_values(work.matrices[i]) for i in work.judged]
        judged = []
        for done, way in enumerate(some):
            watch(f"{way.name}, {way.setting}: accuracy", 1 + done, len(some) + 2)
            judged.append(_accuracy(way, work, exact))
        watch(f"{work.name}: time", len(some) + 1, len(some) + 2)
        times = {}
        for slow, rounds in ((False, 7 if device == "cpu" else 3), (True, 3)):
            group = [way for way in some if way.slow == slow or (way.name, way.setting) == OURS]
            found = _in_turns(
                {f"{way.name}, {way.setting}": Provider(functools.partial(way.call, work.matrices), dict, {}) for way in group},
                Settings(rounds=2 if quick else rounds, warmup=0 if slow else 1), timer_of(device),
            )  # fmt: skip
            ours = found[", ".join(OURS)]
            for name, ms in found.items():
                if name not in times:
                    times[name] = {
                        "ms": statistics.median(ms), "min": min(ms),
                        "ratio": statistics.median(a / b for a, b in zip(ms, ours)), "rounds": len(ms),
                    }  # fmt: skip
        about = {"work": work.name, "device": device, "dtype": _name(work)}
        rows += [
            {**about, "way": way.name, "setting": way.setting, **times[f"{way.name}, {way.setting}"], **accuracy}
            for way, accuracy in zip(some, judged)
        ]
        rows[-len(some)] |= _least(work, limits)
    return {"ceilings": limits, "rows": rows, "aims": aims(rows)}


def _name(work: Work) -> str:
    return str(work.matrices[0].dtype).removeprefix("torch.")


def _least(work: Work, limits: dict) -> dict:
    """Of OURS: a scan, 7 Gram steps that read a matrix once each, two half steps."""
    reads = 1 + 7 + 2
    numbers = sum(a.numel() for a in work.matrices)
    bytes_, flops = reads * numbers * work.matrices[0].element_size(), 2 * RANK * numbers * (2 * 7 + 2)
    least = max(bytes_ / limits["copy GB/s"], flops / limits[f"{_name(work)} GF/s"]) / 1e6
    return {"reads": reads, "bytes": bytes_, "flops": flops, "least_ms": least}


def _singular_values(a: Tensor) -> Tensor:
    a = a.double()
    gram = a @ a.T if a.shape[0] < a.shape[1] else a.T @ a
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)[:RANK]


def _accuracy(way: Way, work: Work, exact: list[Tensor]) -> dict:
    torch.manual_seed(0)
    found = way.call(work.matrices)
    energies, sigmas = [], []
    for i, s in zip(work.judged, exact):
        projected = work.matrices[i].double() @ found[i].double()
        energies.append(float(projected.square().sum() / s.square().sum()))
        sigmas.append(float((projected.norm(dim=0).sort(descending=True).values - s).abs().max() / s[-1]))
    return {
        "energy": [statistics.median(energies), min(energies)],
        "sigma": [statistics.median(sigmas), max(sigmas)],
    }


def fastest(rows: Sequence[dict], way: str, aim: float = AIM) -> dict | None:
    """Of a way's settings, the fastest whose median energy reaches `aim`."""
    enough = [r for r in rows if r["way"] == way and r["energy"][0] >= aim]
    return min(enough, key=lambda r: r["ms"], default=None)


def aims(rows: Sequence[dict]) -> list[dict]:
    """What was aimed at: how many times faster OURS is than the others at a median energy of at least AIM."""
    out = []
    wanted = {
        "cpu": {"svd_lowrank loop": 2.0, "linalg.svd loop": 12.0, "Gram and eigh loop": 3.5},
        "cuda": {"svd_lowrank loop": 20.0},
    }
    for work in dict.fromkeys(r["work"] for r in rows):
        here = [r for r in rows if r["work"] == work]
        ours = next(r for r in here if (r["way"], r["setting"]) == OURS)
        for way, times in wanted[here[0]["device"]].items():
            other = fastest(here, way)
            if other:
                met = other["ratio"] >= times and ours["energy"][0] >= AIM
                out.append({"work": f"{work}: over {way} ({other['setting']})", "aim": f"≥ {times:.2f}x",
                            "reached": other["ratio"], "met": met})  # fmt: skip
        if here[0]["device"] == "cuda":
            share = ours["least_ms"] / ours["ms"]
            out.append({"work": f"{work}: share of the limit", "aim": "≥ 0.60x", "reached": share, "met": share >= 0.6})
    return out
