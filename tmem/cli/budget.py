"""`tmem budget`: what a training step needs on each rank, or memories over a model, before anything is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import click
from rich import box
from rich.table import Table

from ..agent.config import DEFAULT_PRESET
from ..models.quantised import BITS
from ..terminal.plain import Terminal


@click.command()
@click.option("--preset", default=DEFAULT_PRESET, show_default=True, help="Settings, as for train.")
@click.option("--model", help="llama-2-7b, qwen3-4b or qwen3-8b (their shapes suffice), or a model as for train.")
@click.option("--bits", type=click.Choice(BITS), help="The model's linear layers in few bits; an adapter is trained.")
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Number of processes, with one GPU each.")
@click.option("--writes", type=click.IntRange(1), default=6, show_default=True, help="Writes in an episode.")
@click.option(
    "--layout",
    type=click.Choice(["ddp", "fsdp"]),
    help="Layout of θ0 over the ranks: a copy on each (ddp) or sharded (fsdp). [default: the preset's]",
)
@click.option("--memories", type=click.IntRange(1), help="So many memories over the model instead of a training step.")
@click.option(
    "--at-once", type=click.IntRange(1), default=1, show_default=True, help="Of these, how many are taught or asked together."
)
@click.option("--context", type=click.IntRange(1), help="Tokens of what each memory is asked. [default: a question]")
def budget(
    preset: str, model: str | None, bits: str | None, ranks: int, writes: int, layout: str | None, memories: int | None,
    at_once: int, context: int | None,
) -> None:  # fmt: skip
    """Show what a training step needs on each rank, or what memories take.

    The budget lists memory, bytes sent and operations. Nothing is started.

    \b
      tmem budget --preset paper --model qwen3-4b --ranks 8
      tmem budget --model llama-2-7b --bits nf4 --memories 64
      tmem budget --model qwen3-8b --memories 1 --context 32768
    """
    from ..agent.config import agent_config
    from ..models import loading
    from ..models.families import trainable
    from ..rl import budget as budgets
    from ..rl.config import train_config

    if model in budgets.SHAPES:
        shape = budgets.SHAPES[model]
    else:
        known = loading.config(model)
        shape = budgets.Shape.of(known)
        if memories is None:
            bits = trainable(known, bits, adapter=bits is not None)
    agent = agent_config(preset)
    if memories is not None:
        in_bits = f" in {bits}" if bits else ""
        title = f"{model or loading.DEFAULT}{in_bits}, --preset {preset}: {memories} memories, {at_once} at once, bf16"
        how = {"memories": memories, "together": at_once, "context": context or budgets.ASKED, "bits": bits}
        return _print(title, budgets.of_memories(shape, agent, **how))
    if context is not None:
        raise click.UsageError("--context is of what memories are asked; give --memories as well.")
    train = train_config(preset)
    train = dataclasses.replace(train, layout=layout or train.layout, **({} if bits is None else {"policy": "lora"}))
    items = budgets.per_rank(shape, agent, train, ranks=ranks, writes=writes, bits=bits)
    sent = None
    if ranks > 1:
        passes = budgets.passes(agent, train, ranks=ranks, writes=writes)
        sent = budgets.sent(shape, train, ranks=ranks, passes=passes)
    rollouts = -(-train.rl_episodes // ranks) * train.rl_group
    title = (
        f"{model or loading.DEFAULT}, --preset {preset}: one of {ranks} ranks, {rollouts} rollouts of {writes} writes, "
        f"{train.layout}, {bits + ', ' if bits else ''}bf16"
    )
    work = budgets.flops(shape, agent, train, ranks=ranks, writes=writes)
    _print(title, items, sent, work)


def _print(title: str, items: Iterable, sent=None, work: Mapping[str, float] | None = None) -> None:
    """items, sent: tmem.rl.budget.Item; work: operations by part."""
    console = Terminal()
    grid = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, justify in (("", "left"), ("GiB", "right"), ("", "left")):
        grid.add_column(column, justify=justify)
    for item in items:
        grid.add_row(item.name, f"{item.bytes / 2**30:.2f}", item.why)
    grid.add_section()
    grid.add_row("together", f"{sum(i.bytes for i in items) / 2**30:.2f}", "not all at the same time")
    if sent is not None:
        grid.add_row(sent.name, f"{sent.bytes / 2**30:.2f}", sent.why)
    console.print(grid)
    if work is None:
        return
    console.print("operations of a step, TFLOP: " + ", ".join(f"{k} {v / 1e12:,.0f}" for k, v in work.items()), highlight=False)
