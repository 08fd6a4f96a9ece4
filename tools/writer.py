"""The adapter that comes with tmem, from a training run: python tools/writer.py runs/writer

It takes the adapter of the run's warm start, rounds it to bf16, which halves the file, and writes it to tmem/writer. The card
there, README.md, stays as it is.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load, save

from tmem.models.lora import CONFIG, WEIGHTS, read_folder, write_folder
from tmem.models.merge import BASE, stated

WRITER, CARD = Path(__file__).parents[1] / "tmem" / "writer", "README.md"


def main(run: str) -> None:
    files = read_folder(Path(run) / "warm", (CONFIG, WEIGHTS))
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in load(files[WEIGHTS]).items()}
    files[WEIGHTS] = save(rounded, metadata={"format": "pt", **stated(files[WEIGHTS])})
    if (WRITER / CARD).exists():
        files[CARD] = (WRITER / CARD).read_bytes()
    write_folder(WRITER, files)
    print(f"{WRITER}: {len(files[WEIGHTS]) / 2**20:.1f} MiB, over weights {stated(files[WEIGHTS])[BASE]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
