"""Pictures of a run: how near the limits of the machine it comes, and what the cost of adapters depends on."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import NullLocator

from ..report.figure import figure

_SWEEPS = {
    "adapters": "adapters that share 512 tokens",
    "tokens": "tokens of each of 8 adapters",
    "rank": "rank of 8 adapters of 64 tokens",
}


def draw(found: dict, beside: Path) -> list[Path]:
    """Beside `x.json`: x-roofline.png, and x-scaling.png where the run has the sweeps. Returns what was drawn."""
    drawn = [_roofline(found, beside.with_name(f"{beside.stem}-roofline.png"))]
    sweeps = {name: [r for r in found["rows"] if r["sweep"] == name] for name in _SWEEPS}
    if all(sweeps.values()):
        drawn.append(_scaling(sweeps, beside.with_name(f"{beside.stem}-scaling.png")))
    return drawn


def _roofline(found: dict, path: Path) -> Path:
    """GF/s against flops a byte, both as declared by the cases; lines: the copy and GEMM rates of the same run."""
    limits = found["ceilings"]
    copy = limits["copy GB/s"]
    shown = [r for r in found["rows"] if not r["sweep"] and r["bench"] not in ("fused", "idle")]
    ours = [r for r in shown if r["provider"].startswith("tmem")]
    with figure(path, (7.5, 4.6)) as picture:
        axes = picture.subplots()
        shades = {"float32": "C0", "float32 medium": "C2", "bfloat16": "C1"}
        low = min(r["flops"] / r["bytes"] for r in ours) / 2
        high = max(r["flops"] / r["bytes"] for r in ours) * 3
        for dtype, shade in shades.items():
            rate = limits[f"{dtype} GF/s"]
            knee = rate / copy
            axes.plot([low, knee, max(high, knee)], [low * copy, rate, rate], color=shade, linewidth=1, alpha=0.7)
            axes.annotate(f"GEMM {dtype}", (max(high, knee), rate), ha="right", va="bottom", fontsize=8, color=shade)
        marks = {"lora": "o", "model": "s", "update": "D", "step": "^", "decode": "v", "branches": "P"}
        for bench, mark in marks.items():
            rows = [r for r in ours if r["bench"] == bench]
            if rows:
                axes.scatter(
                    [r["flops"] / r["bytes"] for r in rows], [r["flops"] / r["ms"] / 1e6 for r in rows],
                    marker=mark, s=26, label=bench, c=[shades[r["dtype"]] for r in rows], alpha=0.8,
                )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="flops per byte, as declared", ylabel="GF/s",
                 title=f"tmem against this machine's limits (copy {copy:.0f} GB/s)")  # fmt: skip
        legend = axes.legend(loc="lower right", frameon=False)
        for handle in legend.legend_handles:
            handle.set_color("0.3")
    return path


def _scaling(sweeps: dict[str, list[dict]], path: Path) -> Path:
    """Cost of the adapters over the frozen layer, in percent, as one thing grows."""
    with figure(path, (10, 3.8)) as picture:
        panels = picture.subplots(1, 3, sharey=True)
        for axes, (name, rows) in zip(panels, sweeps.items()):
            providers = [p for p in dict.fromkeys(r["provider"] for r in rows) if p != "base"]
            for provider in providers:
                points = [(_at(name, r["case"]), r["ratio"]) for r in rows if r["provider"] == provider]
                ours = provider == "tmem"
                style = {"linewidth": 2.4, "zorder": 3} if ours else {"linewidth": 1.1}
                axes.plot(*zip(*sorted(points)), marker=".", label=provider, **style)
            axes.axhline(1, color="0.6", linewidth=0.8)
            axes.set(xscale="log", xlabel=_SWEEPS[name], yscale="log")
            axes.set_xticks(sorted({_at(name, r["case"]) for r in rows}), minor=False)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}x")
            axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}x" if round(y, 3) in (1.2, 1.5, 2, 3, 5) else "")
        panels[0].set_ylabel("time over the frozen layer alone")
        panels[1].legend(loc="upper right", frameon=False, fontsize=8)
        picture.suptitle(f"one layer {sweeps['rank'][0]['case'].split(' ')[0]}, fp32, forward and backward", fontsize=10)
    return path


def _at(sweep: str, case: str) -> int:
    """576→1536 r=16 8x64 -> 8 adapters, 64 tokens, rank 16."""
    _, rank, episodes = case.split(" ")
    slots, tokens = episodes.split("x")
    return {"adapters": int(slots), "tokens": int(tokens), "rank": int(rank.removeprefix("r="))}[sweep]
