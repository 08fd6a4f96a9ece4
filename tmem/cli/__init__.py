"""The `tmem` command: one function per verb. Heavy imports stay inside the verbs, so that help is instant."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..machine import rows_apart


class Verbs(click.Group):
    """Errors that a user can act on become one sentence and exit code 2; Ctrl-C exits 130 without a word, SIGTERM 143,
    SIGHUP 129."""

    def invoke(self, ctx: click.Context):
        try:
            with _terminated():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except (ValueError, OSError) as error:
            if os.environ.get("TMEM_DEBUG") or getattr(error, "errno", None) == errno.EPIPE:
                raise
            sentence = click.ClickException(_sentence(error))
            sentence.exit_code = 2
            raise sentence from error


@contextmanager
def _terminated() -> Iterator[None]:
    """Have SIGTERM, or a terminal that closes, unwind what runs, so that nothing half-written stays, instead of ending the
    process where it is. Under nohup a terminal may close."""
    if threading.current_thread() is not threading.main_thread():  # it cannot choose
        yield
        return
    hung_up = getattr(signal, "SIGHUP", signal.SIGTERM)
    numbers = {signal.SIGTERM, *([hung_up] if signal.getsignal(hung_up) is not signal.SIG_IGN else [])}
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sentence(error: Exception) -> str:
    from ..terminal.plain import printable

    said = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        said = f"{error.filename}: {error.strerror.lower()}."
    return printable(" ".join(said.split())) or type(error).__name__


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tmem", message="tmem %(version)s")
def main() -> None:
    """An LLM agent with memory in its weights.

    While it reads a stream, the model writes down question/answer pairs; a few gradient steps learn them into fast
    weights that belong to this episode alone; the text goes, and answers come from the weights.

    \b
    Examples:
      tmem train                                    warm start, then reinforcement learning, in ten minutes
      tmem report runs/train                        a page to look at: what it learned to write
      tmem eval --task stream --methods none,tmem   methods on a task, with a table and a chart
      tmem eval --task locomo --data locomo10.json --limit 20
      tmem bench lora                               the ops against what else there is
      tmem info                                     versions, devices, and which kernel serves each op
      tmem info --model MODEL                       what was understood of a model
      tmem VERB --help                              what a verb takes

    An error is one sentence and exit code 2; TMEM_DEBUG=1 shows where it arose. TMEM_CACHE says where converted
    models are kept (else ~/.cache/tmem).
    """
    rows_apart()


@main.command()
@click.option("--preset", default="default", show_default=True, help="default, study, paper, or the path of a .toml file.")
@click.option("--model", help="A Hugging Face folder, a .gguf file or a hub id. [default: SmolLM2-135M-Instruct]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="runs/train", show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the run that --out holds.")
@click.option("--seed", type=int, help="Seed of episodes, noise and batches. [default: the preset's]")
@click.option("--warm-steps", type=click.IntRange(0), help="Supervised steps before RL. [default: the preset's]")
@click.option("--rl-steps", type=click.IntRange(0), help="GRPO steps. [default: the preset's]")
@click.option("--eval-episodes", type=click.IntRange(1), help="Held-out episodes. [default: the preset's]")
def train(preset: str, model: str | None, out: Path, resume: bool, **overrides) -> None:
    """Train the model to write what later pays.

    A supervised warm start on generated episodes, then GRPO on the answers' score with fast-weight rollouts, then the
    control: as many seconds of supervised training instead of RL. Each is evaluated on held-out episodes, greedy and at
    T=1. Ctrl-C or SIGTERM stops with a checkpoint; --resume goes on. The output folder holds summary.json, metrics.jsonl,
    curve.png, readable episodes, the trained models (warm/, rl/) for --model, and log.txt, which says how far it is.
    """
    from .console import train as watch

    watch(preset, out, model=model, resume=resume, **{k: v for k, v in overrides.items() if v is not None})


@main.command()
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page. [default: RUN/report.html]")
@click.option(
    "--strip",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Instead of a page: write one evaluation to FOLDER without the data's texts.",
)
def report(runs: tuple[Path, ...], out: Path | None, strip: Path | None) -> None:
    """Make one page of a training run, or of evaluations.

    Training: RUN is the --out of `tmem train`, finished or not, or a seed of `tmem study`. The page shows held-out scores,
    guards against the known ways to collapse, a picture of every measure over the steps, and the same episodes as the model
    wrote and answered them before and after.

    Evaluations: RUN... are the --out of one or several `tmem eval`. The page joins them: scores with intervals beside what each
    method kept and computed, paired differences between runs, pictures of score against what is kept and against where the
    evidence stood, and questions with every method's answer. The tables are also written as Markdown beside the page. Runs of
    different data, limits or protocols get tables of their own. results.json alone gives the tables.

    --strip FOLDER writes one evaluation's results.json, answers.jsonl and readings.jsonl without questions, answers, passages
    or pairs, for benchmarks whose texts may not be passed on: ids, scores, costs, places and counts stay, and report reads it.

    A page is one HTML file without anything outside itself, to look at in a browser or to send.
    """
    from ..terminal.plain import printable

    if strip is not None:
        from ..report.strip import strip as without_texts

        if len(runs) > 1 or out is not None:
            raise click.UsageError("--strip writes one run and no page; give one RUN, without --out.")
        without_texts(runs[0], strip)
        click.echo(printable(f"written to {strip}, without texts"))
        return
    if any((run / "results.json").is_file() for run in runs):
        from ..report.comparison import page

        out = out or runs[0] / "report.html"
        if out.suffix == ".md":
            raise click.UsageError(f"--out is the page, the tables go beside it as .md; give {out.with_suffix('.html')}.")
        click.echo(printable(f"{page(runs, out)}\nwritten to {out} and {out.with_suffix('.md')}"))
        return
    if len(runs) > 1:
        raise click.UsageError("of training runs give one; several can be joined only if they are of tmem eval.")
    from ..report.page import page as training

    out = out or runs[0] / "report.html"
    click.echo(printable(f"{training(runs[0], out)}\nwritten to {out}"))


@main.command()
@click.option("--preset", default="study", show_default=True, help="As for train.")
@click.option("--model", help="As for train.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="runs/study", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="How often to train, from seeds 0, 1, ...")
@click.option("--only", type=click.IntRange(0), metavar="N", help="Do seed N only, say one on each machine; no comparison.")
@click.option("--episodes", type=click.IntRange(2), default=24, show_default=True, help="Streams of a dissection.")
def study(preset: str, out: Path, **options) -> None:
    """Train from several seeds, compare the phases, and tell which half learned.

    Each seed is a run of `tmem train` in --out/seed-N. Then every seed's warm start and RL model are dissected on streams that
    nothing else uses: who writes crossed with who answers, gold pairs, memory off, another episode's memory, pairs in the
    prompt instead of in the weights, memory rebuilt from the log, what later writes destroy, and general ability. Intervals
    are t-intervals over seeds and bootstrap intervals over episodes. The same command goes on with what --out holds.
    """
    from .console import study as watch

    watch(preset, out, **options)


@main.command()
@click.option("--preset", default="default", show_default=True, help="As for train.")
@click.option("--model", help="qwen3-4b or qwen3-8b for their shapes alone, or as for train.")
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Processes, one GPU each.")
@click.option("--writes", type=click.IntRange(1), default=6, show_default=True, help="Writes of an episode.")
@click.option("--layout", type=click.Choice(["ddp", "fsdp"]), help="Of θ0 over ranks. [default: the preset's]")
def plan(preset: str, model: str | None, ranks: int, writes: int, layout: str | None) -> None:
    """What a training step needs on each rank, before anything is started: memory, bytes sent, operations."""
    from .console import plan as show

    show(preset, model, ranks=ranks, writes=writes, layout=layout)


@main.command("eval")
@click.option(
    "--task",
    type=click.Choice(["stream", "locomo", "longmemeval", "squad", "clbench", "search"]),
    default="stream",
    show_default=True,
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="The task's file, e.g. the official locomo10.json; several, each after its own --data, are joined.",
)
@click.option(
    "--methods",
    help="Comma-separated, see below, or all. [default: none,full,retrieval,pairs,tmem; search: none,full,mem1,tmem]",
)
@click.option("--limit", type=click.IntRange(1), help="locomo: questions per conversation; search: sets; else episodes.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Replicates, from --seed on: see below.")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True, help="stream only.")
@click.option("--difficulty", type=click.IntRange(1, 3), default=1, show_default=True, help="stream only.")
@click.option(
    "--adversarial",
    type=click.Choice(["open", "choice"]),
    default="open",
    show_default=True,
    help="locomo, category 5: ask openly, or offer the official choice of two.",
)
@click.option(
    "--leave-out",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Questions not to ask, known wrong golds: a list of their ids, or of records. They are counted.",
)
@click.option("--model", help="A folder (runs/train/rl), a .gguf file or a hub id. [default: SmolLM2-135M-Instruct]")
@click.option("--preset", default="default", show_default=True, help="default, careful, long, paper, or a .toml file.")
@click.option(
    "--context",
    type=click.IntRange(64),
    help="Tokens of text in a prompt; search: of a prompt. [default: 2048, search 4096, or what the model holds]",
)
@click.option(
    "--corpus",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="search: a file of documents, may be given several times. [default: the questions' own contexts]",
)
@click.option(
    "--search-by",
    type=click.Choice(["bm25", "dense"]),
    default="bm25",
    show_default=True,
    help="search: find documents by words, or by embeddings (tmem[dense]).",
)
@click.option(
    "--objectives",
    type=click.IntRange(1),
    help="search: questions at once. [default: 2, or as many as a record of MEM1's asks]",
)
@click.option("--turns", type=click.IntRange(1), help="search: before the answer is asked for. [default: 3 a question]")
@click.option(
    "--answer-tokens",
    type=click.IntRange(1),
    help="Of an answer at most. [default: the preset's; clbench 256; search, of a turn: 128 + 16 a question]",
)
@click.option("--slots", type=click.IntRange(1), help="Episodes at once, each with its own Δ. [default: 32; search 16]")
@click.option("--known", is_flag=True, help="Show each question while the history is read (the paper's protocol): see below.")
@click.option("--probe", is_flag=True, help="Also ask paraphrases and wrong-person questions after each write.")
@click.option("--judge-url", help="Also grade: an OpenAI-compatible address, or local (this model, to try the plumbing).")
@click.option("--judge-model", default="gpt-4o-mini", show_default=True, help="Its name at that address.")
@click.option("--judge-prices", type=(float, float), metavar="IN OUT", help="Of a million tokens each way: shows the cost.")
@click.option("--judge-tokens", type=click.IntRange(1), help="Of a reply at most. [default: the protocol's]")
@click.option("--judge-concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="runs/eval", show_default=True)
@click.option("--resume", is_flag=True, help="Keep the answers that --out already holds, and ask the other questions.")
def evaluate(
    task: str, methods: str | None, probe: bool, out: Path, corpus: tuple[str, ...], search_by: str, objectives: int | None,
    turns: int | None, judge_url: str | None, judge_model: str, judge_prices: tuple[float, float] | None,
    judge_tokens: int | None, judge_concurrency: int, slots: int | None, **options,
) -> None:  # fmt: skip
    """Compare ways of remembering: tmem, its pairs as text, retrieval, the full history, nothing, and more.

    
    none            the question alone            constant        always "it was never said"
    full            the history in the prompt     oracle          the task's own evidence in the prompt
    summary         a text written anew           notes           facts as lines of text, found by BM25
    retrieval       lines found by BM25           dense           lines found by embeddings (tmem[dense])
    pairs           tmem's pairs as text          tmem            fast weights alone
    tmem+retrieval  fast weights and lines

    --task search asks --objectives questions at once with a search engine over --corpus. There full keeps all turns, mem1 the
    last one; with the others what was found leaves the context, and is learned (tmem) or kept as the text named above. none,
    oracle and constant (always "no") answer at once. F1 and EM are sums. --seeds needs a --limit: each seed draws other sets.

    Writes answers.jsonl (every question), readings.jsonl (what each method kept of each episode), results.json, chart.png and
    episodes.md (every pair with the text it came from) into --out, and how far it is into log.txt. Ctrl-C or a kill loses a
    batch of questions at most.

    locomo, longmemeval and clbench can be graded by a judge: --judge-url https://api.openai.com/v1, its key in TMEM_JUDGE_KEY
    (or OPENAI_API_KEY). Replies are kept in judge.sqlite; with --resume a judge can be added later, and only what is missing is
    asked. Answers without a verdict are counted and not scored.

    A seed draws stream's episodes, what --limit leaves, the order of choices and the fast weights' subspace; answers are the
    likeliest ones. So on a whole file seeds are replicates of tmem alone, and only where the preset's init is a random one: the
    other methods give the same answers again.

    Usually a method reads without knowing what will be asked. --known shows it each question beforehand: the history is then
    read once for every question, and the answer can be written down with the evidence in sight. Label such scores.
    """
    from functools import partial

    from .console import evaluate as watch

    at_once = {} if slots is None else {"slots": slots}
    if task == "search":
        from ..evaluation.searching import search
        from ..methods.trajectory import STATES as every

        allowed = ("data", "limit", "seed", "seeds", "leave_out", "model", "preset", "context", "answer_tokens", "resume")
        _only(f"--task {task}", {**options, "probe": probe, "judge_url": judge_url}, allowed)
        options = {k: options[k] for k in allowed}
        work = partial(search, documents=corpus, search_by=search_by, objectives=objectives, turns=turns, **options, **at_once)
        default = "none,full,mem1,tmem"
    else:
        from ..evaluation.evaluate import evaluate as run
        from ..evaluation.evaluate import methods_of

        every = methods_of(task)

        of = {"corpus": "search", "search_by": "search", "objectives": "search", "turns": "search", "split": "stream",
              "difficulty": "stream", "adversarial": "locomo"}  # fmt: skip
        _only(f"--task {task}", dict.fromkeys(of), tuple(k for k, v in of.items() if v == task))
        judging = None
        if judge_url:
            from ..evaluation.grading import Judging

            judging = Judging(judge_url, judge_model, judge_concurrency, judge_tokens, judge_prices)
        else:
            of_judge = ("judge_model", "judge_concurrency", "judge_tokens", "judge_prices")
            _only("answers that nobody grades (no --judge-url)", dict.fromkeys(of_judge), ())
        work = partial(_of_task, run, task, probing=probe, judging=judging, **options, **at_once)
        default = "none,full,retrieval,pairs,tmem"
    names = [m.strip() for m in (default if methods is None else methods).split(",") if m.strip()]
    watch(list(every) if names == ["all"] else names, out, work)


def _of_task(run, task: str, methods: list[str], out: Path, **options) -> dict:
    return run(task, methods, out, **options)


def _only(what: str, given: dict, allowed: tuple[str, ...]) -> None:
    """Refuse options that `what` has no use for, where they were given."""
    context = click.get_current_context()
    for option in context.command.params:
        said = context.get_parameter_source(option.name) == click.core.ParameterSource.COMMANDLINE
        if said and option.name in given and option.name not in allowed:
            raise click.UsageError(f"{option.opts[0]} means nothing for {what}; leave it out.")


@main.command()
@click.argument("names", nargs=-1, type=click.Choice(["lora", "step", "decode", "rsvd", "init", "train", "eval", "soak"]))
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    is_flag=False,
    flag_value="bench.json",
    metavar="[FILE]",
    help="Also write the figures, and two pictures beside them. [default: bench.json]",
)
@click.option("--quick", is_flag=True, help="Tiny shapes, three rounds: shows that it runs, says nothing about speed.")
@click.option("--threads", type=click.IntRange(1), help="Of torch on the CPU. [default: torch's]")
@click.option("--preset", default="default", show_default=True, help="soak: whose settings are compared with others.")
@click.option(
    "--with",
    "settings",
    multiple=True,
    metavar="KEY=VALUE[,...]",
    help="soak: other [learn] settings, once for each line of the table, such as rehearse=0,lr=0.02.",
)
@click.option("--chains", type=click.IntRange(1), default=6, show_default=True, help="soak: memories that learn side by side.")
@click.option("--writes", type=click.IntRange(1), default=24, show_default=True, help="soak: into each of them.")
def bench(names: tuple[str, ...], json_file: Path | None, quick: bool, threads: int | None, **given) -> None:
    """Time the ops against what else there is: lora, step, decode, or all three (about 8 minutes on 2 cores); and five
    studies, each by itself: rsvd (about 5 minutes), init (about 45), train (about 10), eval (about 10), soak (hours).

    lora: forward and backward of one linear layer and of a whole decoder under many adapters, against the frozen model
    alone, a loop over adapters as PEFT does it, a padded bmm and torch's grouped GEMM; and one online update with and
    without its fast paths. step: one AdamW step of all adapters, against torch's fused AdamW. decode: one token for every
    episode. All ways are first compared with an oracle, then timed in turns in one process, on the GPU where there is one.

    rsvd: truncated decompositions of all of a model's weights, time against captured energy, against torch's, PEFT's and
    scikit-learn's. init: what each init of the adapters' subspace is worth at equal steps of ΔW: loss, recall, pictures.
    train: one GRPO step by its parts, against transformers and PEFT one rollout after another. eval: tmem's episodes lived
    at once, against one after another. soak: many writes into one memory: what is forgotten, and when.

    \b
    Compare two versions of the code:
      pytest bench/speed.py --benchmark-save=before
      pytest bench/speed.py --benchmark-compare
    """
    from ..bench.show import bench as watch

    if names != ("soak",):
        _only(f"bench {' '.join(names)}".strip(), given, ())
        given = {}
    watch(names, json_file, quick=quick, threads=threads, **given)


@main.command()
@click.option("--model", help="Say what was understood of this model instead: a folder, a .gguf file or a hub id.")
@click.option("--preset", default="default", show_default=True, help="With --model: whose adapted layers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def info(model: str | None, preset: str, as_json: bool) -> None:
    """Versions, devices, the default model, and which kernel serves each op.

    With --model: what was understood of a model, so that it can be compared with what its makers say: family and sizes,
    positions, end tokens, chat template, number formats, and what the preset adapts. Its weights are not read.
    """
    import json

    if model is None:
        facts, show = _facts(), _print
    else:
        from .understood import show, understood

        facts = understood(model, preset)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        show(facts)


def _facts() -> dict:
    """{"versions", "machine", "model": {"name", "folder", "cached"}, "kernels": {device: {op: kernel}}}."""
    import torch

    from .. import machine, ops
    from ..models import loading

    try:
        folder, cached = loading.default_folder()
    except loading.ModelError:
        folder, cached = None, False
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    return {
        "versions": machine.versions(),
        "machine": machine.machine(),
        "model": {"name": loading.DEFAULT, "folder": folder and str(folder), "cached": cached},
        "kernels": {device: {op: ops.kernel_for(op, device) for op in ops.OPS + ops.SVD_PARTS} for device in devices},
    }


def _print(facts: dict) -> None:
    from rich.table import Table

    from ..terminal.plain import Terminal

    box, model, kernels = facts["machine"], facts["model"], facts["kernels"]
    gpus = [f"{gpu['name']}, sm_{gpu['sm']}, {gpu['memory_gib']} GiB" for gpu in box["gpus"]] or ["none"]
    lines = [
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("CPU", f"{box['cpu']}, {box['cores']} cores, {box['memory_gib']} GiB"),
        ("SIMD", f"{box['simd']}, bf16 {'by ' + box['bf16'].upper() if box['bf16'] else 'not native: fp32 is used'}"),
        *(("GPU", gpu) for gpu in gpus),
        ("model", model["name"]),
        ("kept in", model["folder"] or "not installed; `make` installs it"),
        ("", "" if model["cached"] or not model["folder"] else "not converted yet: happens at its first use"),
        ("", f"tmem info --model {model['name']} says what was understood of it, or of another"),
    ]
    console = Terminal()
    grid = Table.grid(padding=(0, 2))
    for name, value in lines:
        if value:
            grid.add_row(name, value)
    console.print(grid, highlight=False)
    table = Table("op", *kernels, title="\nkernel that serves each op", title_justify="left", title_style="")
    for op in kernels["cpu"]:
        table.add_row(op, *(kernels[device][op] for device in kernels))
    console.print(table)
