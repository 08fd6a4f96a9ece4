"""Draws docs/kernels-bytes.png, what the kernels of a layer move: python tools/kernel_bytes.py

Now: counted from their loads and stores by tests/helpers/traffic.py. Before: what the first generation's moved, by arithmetic.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 4096
KERNELS = {"shrink": "#4c78a8", "expand": "#f58518", "backward and gram": "#54a24b", "expand of dz": "#b279a2"}


def before(rank: int, slots: int, rows: int) -> dict[str, float]:
    """MB of the first generation: fp32 factors, dY read by gram and by shrink, gradients added to."""
    activation, factor, z = slots * rows * WIDTH * 2, slots * rank * WIDTH * 4, slots * rows * rank * 4
    parts = (activation + z, 2 * activation + factor + z, 2 * activation + 3 * factor + 2 * z, 2 * activation + z)
    return {name: part / 1e6 for name, part in zip(KERNELS, parts)}


def main():
    script = [sys.executable, str(ROOT / "tests" / "helpers" / "traffic.py")]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    now = json.loads(subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout)
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, (case, parts) in enumerate(now.items()):
        rank, sizes = case.removeprefix("r=").split(" ")
        slots, rows = map(int, sizes.split("x"))
        for side, (kind, found) in enumerate((("before", before(int(rank), slots, rows)), ("now", parts))):
            x, bottom = 3 * place + 1.1 * side, 0.0
            for name, shade in KERNELS.items():
                axes.bar(x, found[name], 1, bottom, color=shade, label=name if place == side == 0 else None)
                bottom += found[name]
            axes.text(x, bottom + 12, f"{kind}\n{bottom:,.0f} MB", ha="center", va="bottom", fontsize=8)
    axes.set_xticks([3 * place + 0.55 for place in range(len(now))])
    axes.set_xticklabels([f"{case.split(' ')[1].replace('x', ' adapters x ')} rows\nrank {case[2:4]}" for case in now])
    axes.set_ylim(0, 1600)
    axes.set_ylabel("MB beside the frozen layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(ROOT / "docs" / "kernels-bytes.png", dpi=130)


if __name__ == "__main__":
    main()
