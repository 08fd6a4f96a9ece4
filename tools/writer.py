"""The mean of adapters, such as the one that comes with tmem: python tools/writer.py [--out FOLDER] RUN[:WEIGHT] ...

Of each run it takes the adapter of the warm start; "default" is the one that comes with tmem. It writes their mean by weight,
tensor by tensor, to tmem/writer or to FOLDER, rounded to bf16, which halves the file. The mean of a run and one that went on
from it may do better than both (arXiv 2109.01903). The card of tmem/writer, README.md, stays as it is.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from tmem.models.loading import PACKAGED, WRITER
from tmem.models.lora import CONFIG, WEIGHTS, read_folder, write_folder
from tmem.models.merge import BASE, stated
from tmem.tasks.mixture import weighted

CARD = "README.md"


def main(*args: str) -> None:
    out, runs = (Path(args[1]), args[2:]) if args[:1] == ("--out",) else (WRITER, args)
    weights = weighted(runs)
    found = {run: read_folder(WRITER if run == PACKAGED else Path(run) / "warm", (CONFIG, WEIGHTS)) for run in weights}
    files, *others = found.values()
    about = {"format": "pt", **stated(files[WEIGHTS])}
    for run, other in found.items():
        if (other[CONFIG], stated(other[WEIGHTS])) != (files[CONFIG], stated(files[WEIGHTS])):
            raise SystemExit(f"{run}: expected an adapter of the same form over the same weights as the first run's.")
    tensors = mean([load(f[WEIGHTS]) for f in (files, *others)], list(weights.values()))
    files[WEIGHTS] = save({name: t.to(torch.bfloat16) for name, t in tensors.items()}, metadata=about)
    if (out / CARD).exists():
        files[CARD] = (out / CARD).read_bytes()
    write_folder(out, files)
    print(f"{out}: {len(files[WEIGHTS]) / 2**20:.1f} MiB, over weights {about[BASE]}")


def mean(adapters: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Σ w·tensor / Σ w of every name, in fp32."""
    total = sum(weights)
    return {name: sum(a[name].float() * (w / total) for a, w in zip(adapters, weights)) for name in adapters[0]}


if __name__ == "__main__":
    main(*sys.argv[1:])
