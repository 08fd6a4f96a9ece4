"""`tmem budget`: what a training step needs on each rank, before anything is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import click
from rich import box
from rich.table import Table

from ..agent.config import DEFAULT_PRESET
from ..terminal.plain import Terminal


@click.command()
@click.option("--preset", default=DEFAULT_PRESET, show_default=True, help="Settings, as for train.")
@click.option("--model", help="qwen3-4b or qwen3-8b (their shapes suffice), or a model as for train.")
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Number of processes, with one GPU each.")
@click.option("--writes", type=click.IntRange(1), default=6, show_default=True, help="Writes in an episode.")
@click.option(
    "--layout",
    type=click.Choice(["ddp", "fsdp"]),
    help="Layout of θ0 over the ranks: a copy on each (ddp) or sharded (fsdp). [default: the preset's]",
)
def budget(preset: str, model: str | None, ranks: int, writes: int, layout: str | None) -> None:
    """Show what a training step needs on each rank.

    The budget lists memory, bytes sent and operations. Nothing is started.
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
        trainable(known)
        shape = budgets.Shape.of(known)
    agent = agent_config(preset)
    train = train_config(preset)
    train = dataclasses.replace(train, layout=layout or train.layout)
    items = budgets.per_rank(shape, agent, train, ranks=ranks, writes=writes)
    sent = None
    if ranks > 1:
        passes = budgets.passes(agent, train, ranks=ranks, writes=writes)
        sent = budgets.sent(shape, train, ranks=ranks, passes=passes)
    rollouts = -(-train.rl_episodes // ranks) * train.rl_group
    title = (
        f"{model or loading.DEFAULT}, --preset {preset}: one of {ranks} ranks, {rollouts} rollouts of {writes} writes, "
        f"{train.layout}, bf16"
    )
    work = budgets.flops(shape, agent, train, ranks=ranks, writes=writes)
    _print(title, items, sent, work)


def _print(title: str, items: Iterable, sent, work: Mapping[str, float]) -> None:
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
    console.print("operations of a step, TFLOP: " + ", ".join(f"{k} {v / 1e12:,.0f}" for k, v in work.items()), highlight=False)
