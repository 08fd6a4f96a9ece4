"""`tmem bench`: the options of the benches, which lie in the folder bench/."""

from __future__ import annotations

from pathlib import Path

import click

from .. import machine
from ..agent.config import DEFAULT_PRESET
from .group import refuse

OPS = ("lora", "step", "decode", "forward", "branches")
ALONE = ("rsvd", "init", "train", "eval", "serve", "soak", "promises")
OF = {"soak": ("preset", "settings", "chains", "writes"), "serve": ("users", "requests", "seed", "slots")}  # whose an option is


class Counts(click.ParamType):
    """Numbers of 1 or more, between commas."""

    name = "numbers"

    def convert(self, value, param, ctx) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"expected numbers of 1 or more such as 1,4,8, got {value!r}.", param, ctx)
        return tuple(int(part) for part in parts)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*OPS, *ALONE]))
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    is_flag=False,
    flag_value="bench.json",
    metavar="[FILE]",
    help="Also write the figures to FILE, and two pictures beside it. [default: bench.json]",
)
@click.option(
    "--quick", is_flag=True, help="Tiny shapes and three rounds. Shows that everything runs, and nothing about speed."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch on the CPU. [default: torch's]")
@click.option(
    "--preset", default=DEFAULT_PRESET, show_default=True, help="soak: the preset whose settings are compared with others."
)
@click.option(
    "--with",
    "settings",
    multiple=True,
    metavar="KEY=VALUE[,...]",
    help="soak: other [learn] settings, such as rehearse=0,lr=0.02. Each --with makes a line of the table.",
)
@click.option("--chains", type=click.IntRange(1), default=6, show_default=True, help="soak: memories that learn in parallel.")
@click.option("--writes", type=click.IntRange(1), default=24, show_default=True, help="soak: writes into each memory.")
@click.option(
    "--users",
    type=Counts(),
    default="1,4,8,16,32",
    show_default=True,
    help="serve: users at once, each number a point of a curve.",
)
@click.option("--requests", type=click.IntRange(3, 20), default=5, show_default=True, help="serve: requests of each user.")
@click.option("--seed", type=int, default=0, show_default=True, help="serve: of facts, turns and arrivals.")
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True, help="serve: memories that have room at once.")
def bench(names: tuple[str, ...], json_file: Path | None, quick: bool, threads: int | None, **of_one) -> None:
    """Time the ops against other ways to do the same.

    With no name: lora, step, decode, forward and branches, about 9 minutes on 2 cores.

    \b
    Each of these runs by itself:
      rsvd      about 5 minutes
      init      about 45 minutes
      train     about 20 minutes
      eval      about 10 minutes
      serve     about 15 minutes
      soak      hours
      promises  half a minute

    All ways are first compared with an oracle. Then they are timed in turns in one process, on the GPU where there is one.

    lora: forward and backward of one linear layer, and of a whole decoder, under many adapters. It is compared with the
    frozen model alone, a loop over adapters as PEFT does it, a padded bmm, and torch's grouped GEMM. It also times one
    online update with and without its fast paths.

    step: one AdamW step of all adapters, compared with torch's fused AdamW.

    decode: one token for every episode.

    forward: adapters of one layer, forward alone. On a GPU it is also compared with the kernels of vLLM and SGLang, where
    these are installed.

    branches: attention of texts that share the beginning of a row, forward and backward, compared with torch's under a mask
    and text by text.

    rsvd: truncated decompositions of all of a model's weights, as time against captured energy. They are compared with
    torch's, PEFT's and scikit-learn's.

    init: the inits of the adapters' subspace, compared at equal steps of ΔW: loss, recall, pictures.

    train: one GRPO step by its parts, compared with transformers and PEFT, one rollout after another.

    eval: tmem's episodes in parallel, compared with one after another.

    serve: users of `tmem serve` over HTTP, compared with transformers and PEFT, one request at a time, and with the model
    without memories. It says requests a second with all users busy, and times under Poisson arrivals (docs/serving.md).

    soak: many writes into one memory: what is forgotten, and when.

    promises: what a call of the ops promises, tried on tmem and on other ways to do the same. Nothing is timed
    (docs/kernels.md).

    \b
    Compare two versions of the code:
      pytest bench/speed.py --benchmark-save=before
      pytest bench/speed.py --benchmark-compare
    """
    from ..bench.show import bench as watch

    if names == ("train",):
        machine.keep_memory()  # as `tmem train` does
    own = OF.get(names[0], ()) if len(names) == 1 else ()
    refuse(f"bench {' '.join(names)}".strip(), [option for option in of_one if option not in own])
    watch(names, json_file, quick=quick, threads=threads, **{option: of_one[option] for option in own})
