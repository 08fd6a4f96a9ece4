"""Clients that send half of what they said, byte by byte, too much, or go before the answer: the others are served."""

import json
import os
import random
import socket
from collections import Counter

import psutil
import pytest

pytest.importorskip("starlette", reason="needs tmem[serve]")
pytest.importorskip("uvicorn", reason="needs tmem[serve]")

from tiny_server import serving  # noqa: E402

COUNT = int(os.environ.get("TMEM_FUZZ", 60))
CHAT = {"messages": [{"role": "user", "content": "what?"}], "max_tokens": 40, "user": "ada"}


def request(path="/v1/chat/completions", length=None, **body):
    content = json.dumps({**CHAT, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content) if length is None else length}\r\n\r\n".encode() + content


def half(at, rng):
    """Some of a request, and no more."""
    whole = request()
    at.sendall(whole[: rng.randrange(1, len(whole))])


def in_bytes(at, rng):
    """A short request in pieces of a few bytes, and its answer."""
    whole = request(max_tokens=1)
    while whole:
        size = rng.randrange(1, 40)
        at.sendall(whole[:size])
        whole = whole[size:]
    return at.recv(1 << 16)


def goes(at, rng):
    """Asks and goes, at once or after the beginning of the answer."""
    at.sendall(request(stream=rng.random() < 0.7))
    if rng.random() < 0.5:
        at.recv(rng.randrange(1, 200))


def more_than_it_says(at, rng):
    """A body that is longer than it says, or shorter."""
    at.sendall(request(length=rng.randrange(1, 200)))
    at.settimeout(0.2)
    try:
        return at.recv(1 << 16)
    except TimeoutError:
        return b""


def no_http(at, rng):
    """Bytes."""
    at.sendall(rng.randbytes(rng.randrange(1, 400)))
    at.settimeout(0.2)
    try:
        return at.recv(1 << 16)
    except (TimeoutError, ConnectionError):
        return b""


def hears_nothing(at, rng):
    """A stream that nobody reads, for as long as the others take."""
    at.sendall(request(stream=True, user=f"u{rng.randrange(3)}"))


def test_rude_clients_harm_nobody(tmp_path):
    """TMEM_FUZZ: how many."""
    rng, seen, open_ones, resident = random.Random(1), Counter(), [], []
    process = psutil.Process()
    with serving(tmp_path / "s") as (client, store):
        address = client.base_url.host, client.base_url.port
        for i in range(COUNT):
            way = rng.choice((half, in_bytes, goes, more_than_it_says, no_http, hears_nothing))
            at = socket.create_connection(address, timeout=30)
            answer = way(at, rng)
            if answer:
                status = answer.split(b" ", 2)[1]
                seen[status] += 1
                assert not status.startswith(b"5"), answer
            if way is hears_nothing:
                open_ones.append(at)
            elif rng.random() < 0.3:  # with a reset, not a farewell
                at.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                at.close()
            else:
                at.close()
            while len(open_ones) > 20:
                open_ones.pop(0).close()
            if i % 20 == 0:
                assert client.get("/health").json() == {"status": "ok"}
                resident.append(process.memory_info().rss)
        for at in open_ones:
            at.close()
        found = client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4})
        assert found.status_code == 200 and store.memories()
    assert seen[b"200"] and seen[b"400"]
    assert resident[-1] - resident[len(resident) // 2] < 64 << 20, "memory is flat"
