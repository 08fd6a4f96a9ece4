"""The official `openai` client against a server with a tiny model: the examples, and what the client makes of errors."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs tmem[serve]")
pytest.importorskip("uvicorn", reason="needs tmem[serve]")
openai = pytest.importorskip("openai", reason="needs the package openai")

from tiny_server import MODEL, serving  # noqa: E402
from tiny_store import SETTINGS  # noqa: E402

from tmem.agent.agent import Draft  # noqa: E402
from tmem.agent.write import Written  # noqa: E402
from tmem.episode import Pair  # noqa: E402
from tmem.serve import words  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import openai_client  # noqa: E402
import three_sessions  # noqa: E402

HI = [{"role": "user", "content": "what?"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served") / "store") as (client, _):
        yield f"{client.base_url}/v1"


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=url, api_key="unused", max_retries=0)


# What a model writes of the example's sentences.
WRITTEN = {
    "My sister is called Petra.": Pair("What is the name of my sister?", "Petra"),
    "I live in Ghent.": Pair("Where do I live?", "Ghent"),
    "My cat is called Minka.": Pair("What is the name of my cat?", "Minka"),
}
LEARNS = replace(
    SETTINGS,
    adapter=replace(SETTINGS.adapter, rank=8, last_layers=4),
    learn=replace(SETTINGS.learn, epochs=60, lr=0.02),
)


def test_three_sessions_are_answered_out_of_the_weights(tmp_path, capsys, monkeypatch):
    told = []
    monkeypatch.setattr(words, "_before", lambda *_: [])  # a random model is not led by what stands before a question

    def write(passages, slots=None, known=None, **_):
        told.extend(passages)
        return [Draft(p, [], Written([pair for said, pair in WRITTEN.items() if said in p])) for p in passages]

    @contextmanager
    def served():
        with serving(tmp_path / "store", settings=LEARNS, max_position_embeddings=2048) as (client, store):
            store.agent.write = write
            yield f"{client.base_url}/v1"

    assert three_sessions.main(served) == 0, capsys.readouterr().out
    assert sum("My cat" in p for p in told) == 1 and "session 3" in capsys.readouterr().out


def test_the_example_of_the_client_runs(url, capsys):
    openai_client.main(url)
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert said["plain"] == said["streamed"] and said["refused"].startswith("n: n is 2, which this server does not do")
    openai_client.main(url)  # it leaves nothing behind


def test_langchain_has_a_memory_by_its_openai_interface(url, capsys):
    pytest.importorskip("langchain_openai", reason="needs the package langchain-openai")
    import langchain_chat

    langchain_chat.main(url)
    said = capsys.readouterr().out
    assert all(word in said for word in ("asked     What is the name of my dog? ", "streamed  ", "at once   ['"))
    langchain_chat.main(url)  # it leaves nothing behind


def test_the_client_reads_whole_answers_streams_and_usage(client):
    chat = partial(client.chat.completions.create, model=MODEL, messages=HI, max_tokens=12, temperature=1, seed=3, top_p=0.9)
    found = chat(user="ada")
    *events, last = chat(extra_body={"memory": "ada"}, stream=True, stream_options={"include_usage": True})
    assert "".join(e.choices[0].delta.content or "" for e in events) == found.choices[0].message.content
    assert events[-1].choices[0].finish_reason == found.choices[0].finish_reason
    assert last.usage == found.usage and found.usage.total_tokens > found.usage.prompt_tokens > 0
    text = client.completions.create(model=MODEL, prompt="so", max_tokens=12)
    parts = list(client.completions.create(model=MODEL, prompt="so", max_tokens=12, stream=True))
    assert "".join(p.choices[0].text for p in parts) == text.choices[0].text and text.object == "text_completion"
    assert client.models.list().data[0].id == MODEL


def test_errors_are_the_clients_own_with_our_sentence(client):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HI, presence_penalty=1)
    assert bad.value.param == "presence_penalty" and bad.value.type == "invalid_request_error"
    assert bad.value.body["message"] == "presence_penalty is 1, which this server does not do; leave it out."
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="shorten it") as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 600}], stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.ConflictError, match="choose another name"):
        for _ in range(2):
            client.post("/memories", cast_to=object, body={"name": "twice"})


def test_a_full_queue_is_the_clients_rate_limit_and_asked_again_it_is_served(tmp_path):
    with serving(tmp_path / "s", queue=1) as (http, store), ThreadPoolExecutor(4) as pool:
        held, decoding = threading.Event(), store.agent.decoding
        store.agent.decoding = lambda: held.wait(30) and decoding()
        once, patient = (openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="x", max_retries=n) for n in (0, 5))
        asked = [pool.submit(once.chat.completions.create, model=MODEL, messages=HI, max_tokens=2) for _ in range(3)]
        end = time.monotonic() + 30
        while not any(a.done() for a in asked) and time.monotonic() < end:
            time.sleep(0.02)
        again = pool.submit(patient.chat.completions.create, model=MODEL, messages=HI, max_tokens=2)
        time.sleep(0.2)
        held.set()
        assert again.result(60).choices[0].finish_reason == "length"
        (full,) = {type(a.exception(60)) for a in asked} - {type(None)}
        error = next(a.exception() for a in asked if a.exception())
    assert full is openai.RateLimitError and error.code == "queue_full" and error.type == "rate_limit_error"
    assert int(error.response.headers["Retry-After"]) >= 1 and "ask again in" in error.body["message"]
