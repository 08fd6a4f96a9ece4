"""What was aimed at, as ratios within one run, and what the rows of a run say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Time of `provider` over that of `over` (or the reverse, where more is better) in the case of a bench that fits."""

    work: str
    bench: str
    case: str  # part of its name
    dtype: str
    provider: str
    over: str
    limit: float
    more: bool = False  # over/provider >= limit instead of provider/over <= limit


CPU = (
    Target("whole decoder, forward and backward, over the frozen one, fp32", "model", "8x16..128", "float32", "tmem",
           "base", 1.06),
    Target("the same, fp32 medium", "model", "8x16..128", "float32 medium", "tmem", "base", 1.12),
    Target("the same, bf16", "model", "8x16..128", "bfloat16", "tmem", "base", 1.15),
    Target("mixture, 16 experts x 16 slots of 16 tokens: speed-up over a loop over experts and slots, fp32", "experts",
           "x 16 tokens", "float32", "tmem", "loop", 5.0, True),
    Target("decode step, 16 slots, over the frozen decoder, MLP of the last 8 layers, bf16", "decode", "last 8", "bfloat16",
           "tmem", "base", 1.06),
    Target("the same, all linear layers", "decode", "all linear", "bfloat16", "tmem", "base", 1.12),
    Target("the same over the frozen decoder as transformers runs it", "decode", "all linear", "bfloat16", "tmem",
           "transformers' layers", 1.12),
    Target("AdamW, 32 slots, all linear layers: speed-up over a group per slot", "step", "all linear", "float32",
           "tmem", "group per slot", 2.5, True),
    Target("the same over one flat tensor", "step", "all linear", "float32", "tmem",
           "flat", 0.97, True),
    Target("the same, where that also zeroes its gradients", "step", "all linear", "float32", "tmem",
           "flat, zeroing", 0.95, True),
    Target("online update: speed-up by the fast paths", "update", "5 epochs", "float32", "tmem: both", "plain", 1.8, True),
)  # fmt: skip


def reached(rows: Sequence[dict]) -> list[dict]:
    """work, aim, reached and met of every target that the rows speak of."""
    out = []
    for t in CPU:
        here = [r for r in rows if (r["device"], r["bench"], r["dtype"]) == ("cpu", t.bench, t.dtype)]
        cost = {r["provider"]: r["ratio"] for r in here if t.case in r["case"] and not r["sweep"]}
        if t.provider in cost and t.over in cost:
            ratio = cost[t.over] / cost[t.provider] if t.more else cost[t.provider] / cost[t.over]
            met = ratio >= t.limit if t.more else ratio <= t.limit
            aim = f"{'≥' if t.more else '≤'} {t.limit:.2f}x"
            out.append({"work": t.work, "aim": aim, "reached": ratio, "met": met})
    return out
