"""`tmem study`: trainings of several seeds under progress bars, then what RL gained and which half it changed."""

from __future__ import annotations

from pathlib import Path

import click

from .. import machine
from . import live


@click.command()
@click.option("--preset", default="study", show_default=True, help="Settings, as for train.")
@click.option("--model", help="The model to train, as for train.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/study",
    show_default=True,
    help="Folder for the results.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of trainings, with the seeds 0, 1, ...",
)
@click.option(
    "--only",
    type=click.IntRange(0),
    metavar="N",
    help="Train and dissect seed N alone, for instance one seed on each machine. Nothing is compared.",
)
@click.option("--episodes", type=click.IntRange(2), default=24, show_default=True, help="Streams that a dissection uses.")
def study(preset: str, out: Path, seeds: int, only: int | None, **options) -> None:
    """Train from several seeds and compare the phases.

    A study finds out which half learned: writing or answering. Each seed is a run of `tmem train` in --out/seed-N. Then
    every seed's warm start and RL model are dissected on streams that nothing else uses.

    \b
    A dissection measures how well questions are answered
      by each model, from the pairs that either model wrote
      from gold pairs
      without fast weights
      with the fast weights of another episode
      with the pairs in the prompt instead of in the weights
      with all pairs of the log learned in one write
    It also measures what later writes destroy, and general ability.

    Intervals are t-intervals over seeds and bootstrap intervals over episodes. The same command goes on with what --out
    holds.
    """
    machine.keep_memory()
    made_on = machine.provenance()  # at the start: the commit that runs, not the one checked out when it ends
    if only is None:
        _leave(out, seeds, _watched(preset, out, seeds, None, **options) | {"machine": made_on})
    else:
        _watched(preset, out, seeds, only, **options)
        live.console.print(f"Seed {only} is in {out}/seed-{only}; without --only the seeds are compared.")


def _watched(preset: str, out: Path, seeds: int, only: int | None, **options) -> dict | None:
    """Do the seeds, or one of them, under bars; the summary of several."""
    from ..rl.trainer import Interrupted, Progress
    from ..study import study as studies

    at = [only or 0]
    with live.stop_on_ctrl_c() as asked, live.bars(out if only is None else out / f"seed-{only}") as tell:

        def phase(name: str, done: int, total: int, note: str) -> None:
            tell(f"{at[0]}: {name}", done, total, note)

        def warn(sentence: str) -> None:
            live.warn(f"seed {at[0]}: {sentence}")

        options.update(progress=Progress(phase=phase, warn=warn), stop=lambda: bool(asked))
        try:
            if only is None:
                return studies.run_seeds(preset, out, seeds=seeds, seed_starts=lambda s: at.__setitem__(0, s), **options)
            studies.one(preset, out / f"seed-{only}", only, **options)
        except Interrupted:
            live.console.print("stopped; the same command goes on")
            raise live.ended(asked) from None


def _leave(out: Path, seeds: int, summary: dict) -> None:
    """Write what follows from the seeds, and say what there is."""
    from ..files.objects import write_json
    from ..report import charts
    from ..report.study_tables import study_tables
    from ..rl import record

    write_json(out / "study.json", summary)
    charts.study_chart(out / "study.png", summary, [record.read_run(out / f"seed-{n}") for n in range(seeds)])
    for grid in study_tables(summary):
        live.console.print(grid)
    live.console.print(f"Everything is in {out}/study.json, curves in study.png; one seed to look at: tmem report {out}/seed-0")
