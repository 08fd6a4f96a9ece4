"""`tmem report`: one page of a training run or of evaluations, or an evaluation without its benchmark's texts."""

from __future__ import annotations

from pathlib import Path

import click

from ..terminal.plain import printable


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page to write. [default: RUN/report.html]")
@click.option(
    "--strip",
    "stripped",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Make no page. Write one evaluation to FOLDER, without the benchmark's texts.",
)
def report(runs: tuple[Path, ...], out: Path | None, stripped: Path | None) -> None:
    """Make one page of a training run, or of evaluations.

    A training run: RUN is the --out of `tmem train`, finished or not, or a seed of `tmem study`. The page shows held-out
    scores, checks for known failure modes, and a picture of every measure over the steps. It also shows what the model
    wrote and answered of the same episodes, before and after.

    Evaluations: RUN... are the --out of one or several `tmem eval`. The page shows scores with intervals, beside what each
    method kept and computed. It shows paired differences between runs. Pictures show the score against what is kept, and
    against where the evidence stood. Questions are listed with every method's answer. The tables are also written as
    Markdown beside the page. Runs of different data, limits or protocols get tables of their own. results.json alone is
    enough for the tables.

    --strip FOLDER is for benchmarks whose texts may not be passed on. It writes one evaluation's results.json,
    answers.jsonl and readings.jsonl without questions, answers, passages or pairs. Ids, scores, costs, places and counts
    stay. `tmem report FOLDER` reads the result.

    A page is one HTML file that needs nothing else. Look at it in a browser, or send it.
    """
    if stripped is not None:
        if len(runs) > 1 or out is not None:
            raise click.UsageError("--strip writes one run and no page; give one RUN, without --out.")
        said = _strip(runs[0], stripped)
    elif any((run / "results.json").is_file() for run in runs):
        said = _compare(runs, out or runs[0] / "report.html")
    elif len(runs) > 1:
        raise click.UsageError(
            "Training runs cannot be joined: give one RUN. Several are joined only if they are of tmem eval."
        )
    else:
        said = _training(runs[0], out or runs[0] / "report.html")
    click.echo(printable(said))


def _strip(run: Path, folder: Path) -> str:
    from ..report.strip import strip

    strip(run, folder)
    return f"written to {folder}, without texts"


def _compare(runs: tuple[Path, ...], out: Path) -> str:
    from ..report.comparison import page

    if out.suffix == ".md":
        raise click.UsageError(f"--out is the page, the tables go beside it as .md; give {out.with_suffix('.html')}.")
    return f"{page(runs, out)}\nwritten to {out} and {out.with_suffix('.md')}"


def _training(run: Path, out: Path) -> str:
    from ..report.page import page

    return f"{page(run, out)}\nwritten to {out}"
