"""`tmem serve` as a user types it: what it starts, and what it refuses in a sentence."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from tiny import PLAIN

from tmem import cli
from tmem.cli import listening

pytest.importorskip("starlette", reason="needs tmem[serve]")
uvicorn = pytest.importorskip("uvicorn", reason="needs tmem[serve]")

HELPERS = Path(__file__).parents[1] / "helpers"
SERVE = """
import sys
from tiny import Letters, model
from tmem import cli
from tmem.models import loading
loading.load_model = lambda name=None, **_: (model(max_position_embeddings=2048), Letters())
cli.main(["serve", "--slots", "2", "--port", "0", *sys.argv[1:]])
"""
KEY = "acme-key-0123456789"


def test_serve_starts_a_server_on_loopback_alone_on_its_store(tmem, monkeypatch):
    started = []

    def run(self, sockets):
        started.append((self.config, *sockets[0].getsockname()))
        server = self.config.app.state.server
        assert (server.model, server.store.slots, len(server.store)) == ("SmolLM2-135M-Instruct", 2, 0)
        second = tmem("serve", "--store", "OUT", "--slots", "2")
        assert second.exit_code == 2 and "is in use by process" in second.output and second.output.count("\n") == 1
        server.engine.close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    found = tmem("serve", "--store", "OUT", "--slots", "2", "--port", "0")
    assert found.exit_code == 0, found.output
    ((config, host, port),) = started
    assert host == "127.0.0.1" and port and config.access_log is False
    assert f"http://127.0.0.1:{port}/v1" in found.output
    assert {p.name: p.default for p in cli.main.get_command(None, "serve").params}["port"] == 8420


def test_serve_without_its_packages_says_how_to_get_them(tmem, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    found = tmem("serve", "--store", "OUT")
    assert found.exit_code == 2 and "pip install 'tmem[serve]'" in found.output


def heeds_signals():
    """Whoever started the tests in the background has Ctrl-C ignored, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def started(tmp_path):
    """(process, its address) of a server of its own, as a user starts it."""
    command = [sys.executable, "-c", SERVE, "--store", str(tmp_path / "store"), "--preset", str(PLAIN)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=HELPERS, preexec_fn=heeds_signals)
    try:
        yield process, process.stderr.readline().split("; ")[1].strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_server_with_a_sentence_as_it_ends_other_verbs(started, number, code, tmp_path):
    process, url = started
    assert httpx.post(f"{url}/memories", json={"name": "ada"}).status_code == 201
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert said.splitlines()[-1] == "The server has ended. What it acknowledged is on the disk."
    assert "Traceback" not in said and not (tmp_path / "store" / ".lock").exists()


def test_a_signal_ends_the_server_while_it_answers(started):
    process, url = started
    body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1900, "stream": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.splitlines()[-1].startswith("The server has ended"), said
    assert time.monotonic() - began < 30 and "Traceback" not in said, said


def test_a_connection_that_asks_nothing_is_closed_and_one_that_asks_is_not(monkeypatch):
    """Connections are bounded: idle ones would keep others out for as long as they like."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(listening, "SILENT", 0.5)
    settings = uvicorn.Config(app, lifespan="off", log_level="error", http=listening._impatient())
    with listening.listening("127.0.0.1", 0) as (place, url):
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            with socket.create_connection(place.getsockname()) as idle, httpx.Client() as client:
                idle.settimeout(20)
                assert client.get(url).status_code == 204
                assert idle.recv(1) == b""
                assert client.get(url).status_code == 204
        finally:
            server.should_exit = True
            thread.join()


def test_a_place_that_is_taken_is_one_sentence(tmem):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        found = tmem("serve", "--store", "OUT", "--slots", "2", "--port", str(port))
    assert found.exit_code == 2 and f"--port {port}: Address already in use" in found.output, found.output


@pytest.mark.parametrize("how", ["file", "environment"])
def test_with_keys_the_server_may_be_reached_by_others(tmem, monkeypatch, tmp_path, how):
    seen = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: seen.append((self.config.app, *sockets[0].getsockname())))
    words = ["serve", "--store", "OUT", "--slots", "2", "--host", "0.0.0.0", "--port", "0", "--memories", "7"]
    if how == "file":
        (tmp_path / "keys").write_text(f"acme {KEY}\n")
        words += ["--keys", str(tmp_path / "keys")]
    else:
        monkeypatch.setenv("TMEM_KEYS", f"acme {KEY}\n")
    found = tmem(*words)
    assert found.exit_code == 0 and KEY not in found.output, found.output
    ((app, host, _),) = seen
    (door,) = [m for m in app.user_middleware if "tenants" in m.kwargs]
    scope = {"path": "/v1/models", "headers": [(b"authorization", f"Bearer {KEY}".encode())]}
    tenant = door.kwargs["tenants"].caller(scope)
    assert (host, tenant.begins, tenant.most, door.kwargs["hosts"]) == ("0.0.0.0", "acme/", 7, ())
    app.state.server.engine.close()


def test_without_keys_the_server_is_for_this_machine_alone(tmem):
    found = tmem("serve", "--store", "OUT", "--host", "0.0.0.0")
    assert found.exit_code == 2 and "without keys they would read and write every memory" in found.output
    found = tmem("serve", "--store", "OUT", "--memories", "7")
    assert found.exit_code == 2 and "--memories has no meaning for a server without keys" in found.output


def test_keys_that_are_none_are_one_sentence_without_them(tmem, monkeypatch, tmp_path):
    (tmp_path / "keys").write_bytes(b"acme secret")
    (tmp_path / "bytes").write_bytes(b"acme secret\xff")
    for name in ("keys", "bytes", "none"):
        found = tmem("serve", "--store", "OUT", "--keys", str(tmp_path / name))
        assert found.exit_code == 2 and name in found.output and "secret" not in found.output, found.output
    monkeypatch.setenv("TMEM_KEYS", "")
    found = tmem("serve", "--store", "OUT")
    assert found.exit_code == 2 and "TMEM_KEYS holds no tenant's key" in found.output
