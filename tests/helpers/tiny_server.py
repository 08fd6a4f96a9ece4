"""A server on loopback with a tiny model, in a thread of this process."""

import threading
import time
from contextlib import contextmanager

import httpx
import uvicorn
from tiny_store import SETTINGS, store_at

from tmem.serve.app import application

MODEL = "tiny"


@contextmanager
def serving(folder, *, slots=3, queue=64, settings=SETTINGS, tenants=None, **sizes):
    """(client, store) of a server while the block runs."""
    with store_at(folder, slots, settings, **sizes) as store:
        app = application(store, MODEL, queue=queue, tenants=tenants)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield client, store
        finally:
            server.should_exit = True
            thread.join()
