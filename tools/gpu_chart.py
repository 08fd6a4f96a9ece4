"""The picture of a run on a GPU: one layer under many adapters, and one token of every row."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import NullLocator

from tmem.report.figure import figure

LAYER = {"tmem": "C0", "padded bmm": "C1", "grouped bank": "C2"}
TOKEN = {"tmem lora_decode_": "C0", "bmm on one bank": "C1", "base": "0.5"}


def draw(found: dict, path: Path) -> Path:
    """Cost of the adapters over the frozen layer, and microseconds of a decode step of one layer."""
    with figure(path, (11, 4.2)) as picture:
        left, right = picture.subplots(1, 2, width_ratios=(1.5, 1))
        _layer(left, [r for r in found["rows"] if r["bench"] == "lora" and r["provider"] in LAYER])
        _token(right, [r for r in found["rows"] if r["bench"] == "decode"])
    return path


def _layer(axes, rows: list[dict]) -> None:
    cases = list(dict.fromkeys(r["case"] for r in rows))
    for i, (provider, shade) in enumerate(LAYER.items()):
        ratios = [r["ratio"] for r in rows if r["provider"] == provider]
        places = [at + 0.27 * (i - 1) for at in range(len(cases))]
        bars = axes.bar(places, [ratio - 1 for ratio in ratios], 0.25, bottom=1, label=provider, color=shade)
        axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], fontsize=6.5, padding=1)
    axes.set_xticks(range(len(cases)), [f"{r}\n{episodes}" for _, r, episodes in (c.split(" ") for c in cases)], fontsize=8)
    axes.set(ylabel="time over the frozen layer alone", title=f"{cases[0].split(' ')[0]}, bf16, forward and backward")
    axes.legend(frameon=False, fontsize=8)


def _token(axes, rows: list[dict]) -> None:
    for provider, shade in TOKEN.items():
        points = [(int(r["case"].split(" ")[0]), r["ms"] * 1e3) for r in rows if r["provider"] == provider]
        name = "the frozen layer's GEMM" if provider == "base" else provider
        axes.plot(*zip(*points), marker="o", color=shade, label=name)
    axes.set(xscale="log", yscale="log", xlabel="rows, each with an adapter of its own", ylabel="µs",
             title="one token of every row, r=16")  # fmt: skip
    axes.set_xticks([p[0] for p in points], [str(p[0]) for p in points], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8)
