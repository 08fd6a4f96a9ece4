"""Draws docs/kernels.png: python tools/picture.py"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

SHADES = ["#4c78a8", "#f58518", "#54a24b"]
BASE = "#d0d0d0"


def box(axes, place, text="", shade="white", size=8.5, alpha=None):
    """A box with text in it; place: x, y of its lower left corner, width, height."""
    x, y, w, h = place
    axes.add_patch(Rectangle((x, y), w, h, facecolor=shade, edgecolor="0.25", linewidth=0.8, alpha=alpha))
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def arrow(axes, start, end, text="", dy=0.12):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="0.3", linewidth=1))
    axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + dy, text, ha="center", va="bottom", fontsize=7.5)


def batch(axes):
    """Rows cut into segments, and tiles that never straddle them."""
    axes.text(0.9, 7.55, "x [M, K]: the batch", ha="center", fontsize=9, weight="bold")
    segments = [(SHADES[1], 1.5, "slot 1"), (BASE, 0.6, "−1"), (SHADES[0], 0.9, "slot 0"), (SHADES[1], 0.6, "slot 1"),
                (SHADES[2], 2.1, "slot 2")]  # fmt: skip
    y = 7.2
    for shade, height, name in segments:
        y -= height
        box(axes, (0.2, y, 1.4, height), name, shade, alpha=0.85)
        if name != "−1":
            at = y + height
            while at > y + 1e-6:
                step = min(0.6, at - y)
                axes.add_patch(Rectangle((1.68, at - step), 0.16, step - 0.04, facecolor=shade, edgecolor="none"))
                at -= step
    axes.text(1.9, 1.2, "tiles: at most 64 rows,\nnever two segments", fontsize=7.5, ha="left")
    axes.text(0.2, 0.55, "plan: tiles of segments, segments of slots;\nmade on the device once a batch, used by all layers",
              fontsize=7.5, ha="left")  # fmt: skip


def forward(axes):
    axes.text(5.2, 7.55, "forward", ha="center", fontsize=9, weight="bold")
    arrow(axes, (2.0, 6.1), (3.5, 6.1), "shrink")
    box(axes, (3.6, 5.4, 0.5, 1.4), "z", "#eeeeee")
    arrow(axes, (4.2, 6.1), (5.7, 6.1), "expand, in place")
    box(axes, (5.8, 5.2, 1.5, 1.8), "y = x Wᵀ\n+ z B", "#eeeeee")
    axes.text(3.85, 5.1, "[M, R] fp32", ha="center", fontsize=7.5)


def backward(axes):
    axes.text(5.2, 4.35, "backward", ha="center", fontsize=9, weight="bold")
    box(axes, (5.8, 1.9, 1.5, 1.8), "dy", "#eeeeee")
    arrow(axes, (5.7, 3.2), (4.2, 3.2), "shrink")
    box(axes, (3.6, 2.4, 0.5, 1.4), "dz", "#eeeeee")
    arrow(axes, (3.5, 3.2), (2.0, 3.2), "expand")
    axes.text(2.55, 2.35, "dx = dy W + dz A", ha="center", fontsize=7.5)
    arrow(axes, (7.4, 2.6), (9.3, 4.1), "gram: dB += zᵀ dy", dy=-0.95)


def bank(axes):
    """A row a slot; the optimizer step writes the copy that decoding reads."""
    axes.text(12.0, 7.55, "the bank: a slot is a row", ha="center", fontsize=9, weight="bold")
    for i, name in enumerate(("parameters", "gradients", "m, v", "bf16 copy")):
        x = 9.4 + 1.4 * i
        axes.text(x + 0.6, 6.95, name, ha="center", fontsize=8)
        for row in range(5):
            shade = SHADES[row] if row < 3 else "white"
            box(axes, (x, 6.3 - 0.5 * row, 1.2, 0.42), f"row {row}" if i == 0 else "", shade, 7.5, alpha=0.85)
    arrow(axes, (9.3, 6.1), (7.4, 6.1), "A, B: strided views", dy=0.1)
    axes.text(9.4, 3.75, "rows 3 and 4 are idle: no kernel touches them", fontsize=7.5)
    box(axes, (9.4, 2.3, 5.4, 1.1), "bank_step_: one launch for all rows and layers\nnorm, clip, AdamW or SGD, zero, bf16 copy",
        "#f4efe6", 8)  # fmt: skip
    arrow(axes, (12.1, 3.65), (12.1, 3.45))
    box(axes, (9.4, 0.9, 5.4, 1.0), "lora_decode_: a row of x, a slot of its own\nreads the copy that the step just wrote",
        "#f4efe6", 8)  # fmt: skip
    arrow(axes, (12.1, 2.25), (12.1, 1.95))


def main():
    figure = Figure(figsize=(10, 5.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 15), ylim=(0, 8))
    axes.axis("off")
    for part in (batch, forward, backward, bank):
        part(axes)
    figure.savefig(Path(__file__).parents[1] / "docs" / "kernels.png")


if __name__ == "__main__":
    main()
