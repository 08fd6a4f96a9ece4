"""`tmem worker`: a model that generates for a training run on another machine."""

from __future__ import annotations

from pathlib import Path

import click

from ..models.quantised import BITS
from .listening import keys_in_file, listening, needs, run, tenants_of

QUEUE = 16  # requests that may wait: each rank of a run has one under way


@click.command()
@click.option("--model", help="That of the training run. [default: the default model]")
@click.option("--bits", type=click.Choice(BITS), help="Those of the training run.")
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True, help="Fast weights that have room at once.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8430, show_default=True, help="Port to listen at.")
@keys_in_file("File of a line NAME KEY, as the run is given it. [default: the line in TMEM_KEYS, else no key]")
def worker(model: str | None, bits: str | None, slots: int, host: str, port: int, keys: Path | None) -> None:
    """Generate for a training run on another machine.

    \b
      tmem worker                                          # one each machine
      tmem train --workers http://HOST:8430,http://HOST2:8430 ...

    The run sends θ0, which is an adapter over the model, and with each request the fast weights that it is about
    (docs/training.md). The worker keeps nothing else. Without a key it listens on this machine alone.
    """
    needs("worker")
    from ..models import loading
    from ..models.families import trainable
    from ..rl.worker import Worker
    from ..serve.door import LOOPBACK
    from ..serve.rollouts import application

    tenants = tenants_of(host, keys, "have it generate for them")
    base, _ = loading.apart(model)
    with listening(host, port) as (place, url):
        network, _ = loading.load_model(base, bits=bits)
        hosts = LOOPBACK if tenants.everybody else ()
        under = trainable(network.config, bits, adapter=True)
        app = application(Worker(network, slots, under), hosts=hosts, tenants=tenants)
        click.echo(f"{base or loading.DEFAULT} for a training run; --workers {url}", err=True)
        run(app, place, QUEUE, "The run asks its other workers.")
