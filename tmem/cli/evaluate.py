"""`tmem eval`: its options, the work that they ask for, and the work under a progress bar."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from .. import machine
from ..agent.config import DEFAULT_PRESET
from ..models.quantised import BITS
from . import live
from .group import refuse

TASKS = ("stream", "locomo", "longmemeval", "squad", "passages", "clbench", "search")
JUDGED = TASKS[:-1]  # a search is scored without a judge
OF_JUDGE = ("judge_model", "judge_concurrency", "judge_tokens", "judge_prices")


@click.command("eval")
@click.option("--task", type=click.Choice(TASKS), default="stream", show_default=True, help="The benchmark.")
@click.option(
    "--data",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="The task's file, such as the official locomo10.json. Give --data several times to ask of several files at once.",
)
@click.option(
    "--methods",
    help="Names from the list above, separated by commas, or all. "
    "[default: none,full,retrieval,pairs,tmem; search: none,full,mem1,tmem]",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="How much to ask. locomo: questions per conversation; search: sets of questions; else: episodes.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of what is drawn: see above.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of replicates, with the seeds from --seed on: see above.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "dev", "test", "new", "all"]),
    default="test",
    show_default=True,
    help="stream: which names, values and phrasings; new: of topics that nothing is trained on. passages: test and dev are the "
    "twentieths of all documents that tmem train holds out, all is every document.",
)
@click.option(
    "--difficulty",
    type=click.IntRange(1, 3),
    default=1,
    show_default=True,
    help="stream only: more sessions, and facts that change (from 2 on).",
)
@click.option(
    "--adversarial",
    type=click.Choice(["open", "choice"]),
    default="open",
    show_default=True,
    help="locomo, category 5: ask an open question, or offer the official choice of two answers.",
)
@click.option(
    "--leave-out",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A list of questions not to ask, such as known wrong golds: ids or records. They are counted.",
)
@click.option(
    "--model",
    help="The model to evaluate: a folder (runs/train/rl), a .gguf file or a hub id. [default: SmolLM2-135M-Instruct]",
)
@click.option(
    "--adapter",
    default="default",
    show_default=True,
    help="The folder of a PEFT LoRA adapter, such as runs/writer/warm, that is merged into the model. Give the --preset that "
    "it was trained with. default: the one that comes with the default model, where there is one. none: the bare model.",
)
@click.option(
    "--bits",
    type=click.Choice(BITS),
    help="The model's linear layers in few bits, by `pip install 'tmem[bits]'`. [default: as the model is]",
)
@click.option(
    "--preset",
    default=DEFAULT_PRESET,
    show_default=True,
    help="Settings: default, careful, long, paper, or the path of a .toml file.",
)
@click.option(
    "--context",
    type=click.IntRange(64),
    help="Most tokens of text in a prompt; search: of the whole prompt. [default: 2048, search 4096, or what the model holds]",
)
@click.option(
    "--corpus",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="search: a file of documents. Give it several times for several files. "
    "[default: the contexts that come with the questions]",
)
@click.option(
    "--search-by",
    type=click.Choice(["bm25", "dense"]),
    default="bm25",
    show_default=True,
    help="search: find documents by words (bm25) or by embeddings (dense, needs tmem[dense]).",
)
@click.option(
    "--objectives",
    type=click.IntRange(1),
    help="search: questions asked at once. [default: 2, or as many as a record of MEM1's asks]",
)
@click.option(
    "--turns", type=click.IntRange(1), help="search: turns before the answer is asked for. [default: 3 for each question]"
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(1),
    help="Most tokens of an answer; search: of a turn. [default: the preset's; clbench 256; search 128 + 16 for each question]",
)
@click.option(
    "--slots",
    type=click.IntRange(1),
    help="Episodes that run in parallel, each with its own fast weights. [default: 32; search 16]",
)
@click.option(
    "--known",
    is_flag=True,
    help="Show each question while the history is read, as in the paper's protocol: see above. Takes longer, and such "
    "scores have tables of their own.",
)
@click.option(
    "--prompt",
    type=click.Choice(["few-shot", "instruction"]),
    default="few-shot",
    show_default=True,
    help='How methods that show text are asked. few-shot: four worked examples. instruction: "Answer in a few words; if you '
    'do not know, answer: unknown.", for a model trained to read in these words.',
)
@click.option(
    "--each",
    type=click.Choice(["few-shot", "instruction"]),
    help="search: ask each question by itself when the search is over, about text in this form. [default: a turn answers all]",
)
@click.option(
    "--probe", is_flag=True, help="After each write, also ask for its pairs in a paraphrase, and about another person."
)
@click.option(
    "--judge-url", help="Also have answers graded by an OpenAI-compatible address. local: by this model, to try the plumbing."
)
@click.option("--judge-model", default="gpt-4o-mini", show_default=True, help="The judge's name at that address.")
@click.option(
    "--judge-prices",
    type=(float, float),
    metavar="IN OUT",
    help="Prices of a million tokens that the judge reads (IN) and writes (OUT). Shows what it cost.",
)
@click.option("--judge-tokens", type=click.IntRange(1), help="Most tokens of a judge's reply. [default: the protocol's]")
@click.option(
    "--judge-concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests to the judge at the same time."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/eval",
    show_default=True,
    help="Folder for the results.",
)
@click.option("--resume", is_flag=True, help="Keep the answers that are in --out, and ask the other questions.")
@live.quiet
def evaluate(methods: str | None, out: Path, quiet: bool, **options) -> None:
    """Compare ways of remembering.

    \b
    Examples:
      tmem eval
      tmem eval --task passages --data a.json --data b.json --split all
      tmem eval --model runs/train/rl --methods none,constant,oracle,tmem
      tmem eval --adapter my/writer --task squad --data a.json --known

    \b
    The methods:
      none             the question alone
      constant         always abstains: the score to beat
      full             the history in the prompt
      oracle           the task's own evidence in the prompt
      summary          one text, written anew
      notes            noted facts, found by BM25
      retrieval        lines found by BM25
      dense            lines found by embeddings (tmem[dense])
      pairs            the pairs that tmem wrote, as text
      gold             fast weights of the questions themselves with
                       their right answers: a ceiling, no rival
      tmem             fast weights of the pairs it wrote, alone
      tmem+retrieval   the same, and the lines of retrieval

    How they are asked: methods that show text, and none, get four worked examples before the question (search: one), the
    form that serves oracle best. A model that was trained to read is asked as it was trained with --prompt instruction.
    Methods with fast weights are asked as they were taught, whatever --prompt says. results.json names the form of every
    method.

    --task search asks --objectives questions at once and gives the model a search engine over --corpus. There, full keeps
    all turns, and mem1 keeps the last one. The other methods drop from the context what was found. tmem learns it, and the
    text methods keep it in the form named above. none, oracle and constant (always "no") answer at once. F1 and EM are sums
    over the questions. --seeds needs a --limit, because each seed draws other sets of questions.

    \b
    Files in --out:
      answers.jsonl    every question and answer
      readings.jsonl   what each method kept of each episode
      results.json     scores and settings
      chart.png        the scores as a picture
      episodes.md      every pair, with the text it came from
      log.txt          the progress
    Ctrl-C or a kill loses at most one batch of questions.

    A judge can grade locomo, longmemeval and clbench: --judge-url https://api.openai.com/v1. Its key is in TMEM_JUDGE_KEY
    or OPENAI_API_KEY. Replies are kept in judge.sqlite. With --resume a judge can be added later, and only missing replies
    are asked for. Answers without a verdict are counted and not scored.

    A seed draws stream's episodes, the questions that --limit leaves, the order of choices, and the subspace of the fast
    weights. Answers are greedy. So on a whole file other seeds change tmem alone, and only if the preset's init is random.
    All other methods give the same answers again.

    A method usually reads without knowing the questions. --known shows it each question beforehand. The history is then
    read once for every question, and the answer can be written down with the evidence in sight. Say so when you quote such
    scores.
    """
    from ..evaluation.config import EvalConfig

    config = EvalConfig(**{f.name: options[f.name] for f in dataclasses.fields(EvalConfig)})
    judged = [] if config.task in JUDGED else ["judge_url"]
    refuse(f"--task {config.task}", [*config.foreign, *judged])
    if not options["judge_url"]:
        refuse("answers that nobody grades (no --judge-url)", OF_JUDGE)
    from ..evaluation.evaluate import evaluate as run
    from ..methods.methods import methods_of

    names = None if methods is None else [name for name in map(str.strip, methods.split(",")) if name]
    if names == ["all"]:
        names = methods_of(config.task)
    judging = _judging(**options)
    work = partial(run, config, methods=names, judging=judging, slots=options["slots"], resume=options["resume"])
    watched(work, out, quiet=quiet)


Work = Callable[..., dict]  # work(out=..., watch=...): what results.json holds


def _judging(judge_url: str | None, judge_model: str, judge_concurrency: int, judge_tokens: int | None, judge_prices, **_):
    """Who grades, and how; None for nobody."""
    if not judge_url:
        return None
    from ..evaluation.grading import Judging
    from ..evaluation.judge.judge import JudgeConfig

    config = JudgeConfig(concurrency=judge_concurrency, max_tokens=judge_tokens, prices=judge_prices)
    return Judging(judge_url, judge_model, config)


def watched(work: Work, out: Path, *, quiet: bool = False) -> None:
    """Run an evaluation under a progress bar, print its tables and write the chart."""
    from . import scores

    machine.keep_memory()
    start = time.perf_counter()
    with live.bars(out, quiet=quiet) as tell:

        def watch(method: str, phase: str, done: int, total: int) -> None:
            tell(method, done, max(total, 1), "" if done >= total else phase)

        results = work(out=out, watch=watch)
    files = scores.show(results, out)
    peak = machine.peak_memory()
    memory = "" if peak is None else f", {peak / 2**30:.1f} GiB of memory at most"
    live.console.print(f"{time.perf_counter() - start:.0f} s{memory}. Files in {out}: {', '.join(files)}")
