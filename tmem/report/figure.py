"""A matplotlib figure in the project's style."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files.folders import atomic_file

_STYLE = {
    "figure.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "legend.frameon": False,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.8,
    "text.parse_math": False,  # names are shown as they are
}


@contextmanager
def figure(path: str | Path, size: tuple[float, float]) -> Iterator[Any]:
    """A matplotlib figure of `size` inches in the project's style, saved to `path`, a .png or .svg, when the block ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Figure without pyplot draws with Agg and leaves nothing global behind.
    with rc_context(_STYLE), atomic_file(path) as work, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name's; the tables beside show it
        made = Figure(figsize=size, layout="constrained")
        yield made
        made.savefig(work, format=Path(path).suffix[1:])


def wrapped(title: str, figure: Any) -> str:
    """The title broken into three lines at most that fit above the axes, at about 11 characters an inch."""
    return "\n".join(textwrap.wrap(title, int(11 * (figure.get_figwidth() - 0.6)), max_lines=3, placeholder=" …"))
