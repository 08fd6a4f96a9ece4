"""`tmem train`: the trainer under a progress bar, then a table of its phases, the summary and the curve."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import click
from rich import box
from rich.table import Table

from .. import machine
from ..agent.config import DEFAULT_PRESET
from ..models.quantised import BITS
from ..rl.track import TRACKERS, library, tracked
from . import live


@click.command()
@click.option(
    "--preset",
    default=DEFAULT_PRESET,
    show_default=True,
    help="Settings: default, a writer from --data; stream, a first look; search, with a tool; verifiers, an --environment; "
    "study, paper, or the path of a .toml file.",
)
@click.option(
    "--model", help="The model to train: a Hugging Face folder, a .gguf file or a hub id. [default: SmolLM2-135M-Instruct]"
)
@click.option(
    "--adapter",
    help="A PEFT LoRA folder over the model to start from. default: the one that comes with the default model. [default: none]",
)
@click.option(
    "--bits",
    type=click.Choice(BITS),
    help="The model's linear layers in few bits, frozen, and an adapter over them trained. [default: as the preset says]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/train",
    show_default=True,
    help="Folder for the results.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option(
    "--task",
    help="stream (generated talks), passages (real text with questions, see --data), search (questions and a search engine, "
    "see --data and --corpus), verifiers (see --environment), or file.py:Class, a task of your own. [default: the preset's]",
)
@click.option(
    "--data",
    multiple=True,
    metavar="FILE[:WEIGHT]",
    help="passages: a file of passages with questions; search: of questions. Give it several times to mix files: a.json:3 "
    "is drawn from three times as often as b.json. [default: the preset's]",
)
@click.option(
    "--corpus",
    multiple=True,
    metavar="FILE",
    help="search: a file of documents to search in. Give it several times for several. [default: the preset's, or the "
    "questions' own contexts]",
)
@click.option(
    "--environment",
    metavar="NAME",
    help="verifiers: an installed environment of the verifiers package, or a .py file of one, which is imported. Needs "
    "tmem[verifiers]. [default: the preset's]",
)
@click.option("--objectives", type=click.IntRange(1), help="search: questions of an episode at most. [default: the preset's]")
@click.option("--seed", type=int, help="Seed of episodes, sampling noise and batches. [default: the preset's]")
@click.option("--warm-steps", type=click.IntRange(0), help="Supervised steps before RL. [default: the preset's]")
@click.option("--rl-steps", type=click.IntRange(0), help="GRPO steps. [default: the preset's]")
@click.option("--eval-episodes", type=click.IntRange(1), help="Held-out episodes of each evaluation. [default: the preset's]")
@click.option(
    "--track",
    type=click.Choice(list(TRACKERS)),
    help="Also send the fields of metrics.jsonl and sample episodes to this tracker, an extra: pip install 'tmem[NAME]'. "
    "tensorboard writes into --out; trackio keeps its runs on this machine; wandb works offline with WANDB_MODE=offline.",
)
@live.quiet
def train(
    preset: str, model: str | None, adapter: str | None, bits: str | None, out: Path, resume: bool, track: str | None,
    quiet: bool, **overrides,
) -> None:  # fmt: skip
    """Train the model to write the facts that later questions ask for.

    \b
      tmem train --data train-v1.1.json --data mine.json:0.5   # a writer
      tmem train --preset stream                               # a look
      tmem train --preset search --data q.json --corpus docs.json   # a tool
      tmem train --preset verifiers --environment NAME   # an environment

    A file is SQuAD's, or a list of {title, context, questions: [{question, answer}]}. Nine documents of ten are trained on,
    the others are held out for the evaluations. The preset stream needs no file: its conversations are generated.

    \b
    Training goes through three phases:
      warm start   supervised steps: write the gold pairs of episodes
      RL           GRPO on the score of the answers; each rollout has fast weights
                   of its own
      control      again from the warm start: supervised steps for as many
                   seconds as RL took

    --rl-steps 0 leaves out RL, and also the control, unless the preset's control_steps says how many steps it takes.

    The model as it came and the model after each phase are evaluated on held-out episodes, greedy and at T=1.

    Ctrl-C or SIGTERM stops with a checkpoint. --resume goes on.

    The output folder holds summary.json, metrics.jsonl, curve.png and readable episodes. It also holds the trained models
    (warm/, rl/, sft/), which --model takes, and log.txt, which shows the progress. Where the preset says policy = "lora", and
    with --bits, the models are adapters in PEFT's format, which --adapter takes as well.
    """
    from ..rl.trainer import Trainer
    from ..rl.world import World

    if track:
        library(track)
    machine.keep_memory()
    made_on = machine.provenance()  # at the start: the commit that runs, not the one checked out when it ends
    world = World.join()
    live.console.quiet = not world.first  # under torchrun rank 0 alone shows and writes
    overrides = {k: v for k, v in overrides.items() if v is not None and v != ()}
    said = {"preset": preset, "out": out, "model": model, "adapter": adapter, "bits": bits, "track": track, **overrides}
    if bits is not None:
        overrides["policy"] = "lora"
    if overrides.get("task") == "verifiers":
        overrides["reward"] = "score"  # that alone is one of every environment
    trainer = Trainer(preset, out, model=model, adapter=adapter, bits=bits, resume=resume, world=world, **overrides)
    again = shlex.join(["tmem", "train", *_said(said), "--resume"])
    sends = track and world.first
    with tracked(track, out, _settings(trainer), live.warn) if sends else nullcontext(lambda row: None) as send:
        summary = _watched(trainer, again, send, quiet)
    world.leave()
    if world.first:
        _leave(trainer, summary | {"machine": {**made_on, "ranks": world.size}})


def _settings(trainer) -> dict:
    """What a tracker shows of how the run was started."""
    configs = {"train": trainer.config, "agent": trainer.agent_config}
    return {"preset": trainer.preset, "model": trainer.model_name, **{k: dataclasses.asdict(v) for k, v in configs.items()}}


def _said(options: dict) -> list[str]:
    """Options as they are typed."""
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in options.items() if value is not None}
    return [word for name, several in values.items() for v in several for word in (f"--{name.replace('_', '-')}", str(v))]


def _watched(trainer, again: str, send: Callable[[dict], None], quiet: bool) -> dict:
    """Run the trainer under bars and a live table of RL's steps; `again`: the command that goes on after a stop; `send`: what
    gets every line of metrics.jsonl."""
    from ..rl.trainer import Interrupted, Progress

    steps = live.Steps()
    with live.stop_on_ctrl_c() as asked, live.bars(trainer.out, steps, each=True, quiet=quiet) as tell:

        def row(values: dict) -> None:
            send(values)
            if values["phase"] == "rl":
                steps.rows.append(values)

        try:
            return trainer.run(Progress(row, tell, live.warn), stop=lambda: bool(asked))
        except Interrupted:
            live.console.print(f"stopped; go on with: {again}", soft_wrap=True, markup=False)
            raise live.ended(asked) from None


def _leave(trainer, summary: dict) -> None:
    """Write what follows from the run, and say what there is."""
    from ..files.objects import write_json
    from ..report import charts
    from ..rl import record

    out, config = trainer.out, trainer.config
    write_json(out / "summary.json", summary)
    title = f"tmem train --preset {Path(trainer.preset).name}, {summary['n_episodes']} held-out episodes"
    charts.curve(out / "curve.png", record.read_run(out), title=title)
    _print_phases(summary, config.reward, record.after_warm(config.rl_steps, config.control_steps))
    live.console.print(
        f"{summary['wall_seconds']:.0f} s. Files in {out}: summary.json, metrics.jsonl, timings.jsonl, curve.png, episodes/, "
        f"{_models(out, list(summary['evaluations']), trainer.bits)}; see it all with: tmem report {out}"
    )


def _models(out: Path, phases: list[str], bits: str | None) -> str:
    """The folders of trained models, and how to evaluate the one that matters: RL's, or else the last."""
    *before, last = [f"{phase}/" for phase in phases if phase != "base"]
    names = f"models {', '.join(before)} and {last}" if before else f"the model {last}"
    which = f"{out}/{'rl' if 'rl' in phases else phases[-1]}" + (f" --bits {bits}" if bits else "")
    return f"{names} (tmem eval --model {which})"


_PHASES = {"base": "base", "warm": "warm start", "rl": "RL", "sft": "control"}


def _print_phases(summary: dict, reward: str, after_warm: str) -> None:
    """Fits 80 columns. Of a task without F1 the score that is the reward is shown."""
    found = [cells for modes in summary["evaluations"].values() for cells in modes.values()]
    compared = any("f1" in cells for cells in found)
    table = Table(
        title=f"{summary['n_episodes']} held-out episodes: mean and 95 % interval (bootstrap over episodes)",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for column in ("model", "decoding", *(("F1", "EM", "intrusions") if compared else (reward, "turns")), "facts", "pairs"):
        table.add_column(column, no_wrap=True)
    for phase, name in _PHASES.items():
        for mode, cells in summary["evaluations"].get(phase, {}).items():
            table.add_row(
                name if mode == "greedy" else "",
                {"greedy": "greedy", "sampled": "T=1"}[mode],
                *(
                    (_interval(cells.get("f1")), _mean(cells.get("em"), 2), _interval(cells.get("intrusion")))
                    if compared
                    else (_interval(cells.get(reward)), _mean(cells.get("turns"), 1))
                ),
                _mean(cells["recall"], 2),
                _mean(cells["pairs_per_write"], 1),
            )
    live.console.print(table)
    intrusions = "Intrusions: answers that belong to somebody else. " if compared else ""
    live.console.print(
        f"{after_warm} {intrusions}Facts: share of the stream's facts that were written as they are. Pairs: per write.".lstrip()
    )


def _mean(cell: dict | None, digits: int) -> str:
    return "" if cell is None else f"{cell['mean']:.{digits}f}"


def _interval(cell: dict | None) -> str:
    """ "" for a score that the task does not have."""
    return "" if cell is None else f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"
