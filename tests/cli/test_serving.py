"""`tmem serve` as a user types it: what it starts, and what it refuses in a sentence."""

import sys

import pytest

pytest.importorskip("starlette", reason="needs tmem[serve]")
uvicorn = pytest.importorskip("uvicorn", reason="needs tmem[serve]")


def test_serve_starts_a_server_on_loopback_alone_on_its_store(tmem, monkeypatch):
    started = []

    def run(app, **options):
        started.append(options)
        server = app.state.server
        assert (server.model, server.store.slots, len(server.store)) == ("SmolLM2-135M-Instruct", 2, 0)
        second = tmem("serve", "--store", "OUT", "--slots", "2")
        assert second.exit_code == 2 and "is in use by process" in second.output and second.output.count("\n") == 1
        server.engine.close()

    monkeypatch.setattr(uvicorn, "run", run)
    found = tmem("serve", "--store", "OUT", "--slots", "2")
    assert found.exit_code == 0, found.output
    ((options),) = started
    assert options["host"] == "127.0.0.1" and options["port"] == 8420 and options["access_log"] is False
    assert "http://127.0.0.1:8420/v1" in found.output


def test_serve_without_its_packages_says_how_to_get_them(tmem, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    found = tmem("serve", "--store", "OUT")
    assert found.exit_code == 2 and "pip install 'tmem[serve]'" in found.output
