"""A server on loopback with a tiny model, in a thread of this process."""

from contextlib import contextmanager

import httpx
from tiny_store import SETTINGS, store_at

from tmem.bench.servers import listening
from tmem.serve.app import application

MODEL = "tiny"


@contextmanager
def serving(folder, *, slots=3, queue=64, settings=SETTINGS, tenants=None, **sizes):
    """(client, store) of a server while the block runs."""
    with store_at(folder, slots, settings, **sizes) as store:
        app = application(store, MODEL, queue=queue, tenants=tenants)
        with listening(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client, store
