"""The server on a tiny model: OpenAI's shape, memories by name, what a client sends again, refusals, and who waits for whom."""

import dataclasses
import json
import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from tiny import Letters, pairs

pytest.importorskip("starlette", reason="needs tmem[serve]")
pytest.importorskip("uvicorn", reason="needs tmem[serve]")

from tiny_server import MODEL, serving  # noqa: E402
from tiny_store import SETTINGS  # noqa: E402

import tmem.agent.agent as agent_module  # noqa: E402
from tmem.serve.fields import Refused  # noqa: E402
from tmem.serve.requests import NEUTRAL, chat_request  # noqa: E402
from tmem.serve.said import Said  # noqa: E402
from tmem.serve.words import _turns  # noqa: E402


def ask(client, *messages, status=200, **body):
    """The answer to messages that the user says, or (role, text)."""
    turns = [{"role": m[0], "content": m[1]} if isinstance(m, tuple) else {"role": "user", "content": m} for m in messages]
    body.setdefault("max_tokens", 8)
    found = client.post("/v1/chat/completions", json={"messages": turns, **body})
    assert found.status_code == status, found.text
    return found.json()


def said(answer):
    return answer["choices"][0]["message"]["content"]


def events(client, **body):
    """The objects of a streamed answer."""
    body = {"messages": [{"role": "user", "content": "what?"}], "stream": True, "max_tokens": 8, **body}
    with client.stream("POST", "/v1/chat/completions", json=body) as found:
        lines = [line for line in found.iter_lines() if line]
    assert found.headers["content-type"].startswith("text/event-stream") and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# OpenAI's shape --------------------------------------------------------------------------------------------------------------


def test_an_answer_has_openais_shape(client):
    found = ask(client, "what?", model=MODEL)
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-") and found["model"] == MODEL
    (choice,) = found["choices"]
    assert choice["index"] == 0 and choice["message"]["role"] == "assistant" and choice["finish_reason"] in ("stop", "length")
    usage = found["usage"]
    assert usage["prompt_tokens"] > 4 and 1 <= usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    models = client.get("/v1/models").json()
    assert models["object"] == "list" and [m["id"] for m in models["data"]] == [MODEL]
    assert client.get("/health").json() == {"status": "ok"}


def test_a_stream_says_what_the_whole_says(client):
    whole = ask(client, "what?", max_tokens=20)
    found = events(client, max_tokens=20, stream_options={"include_usage": True})
    assert {e["object"] for e in found} == {"chat.completion.chunk"} and len({e["id"] for e in found}) == 1
    *chunks, usage = found
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and len(deltas) > 3
    assert "".join(d.get("content", "") for d in deltas) == said(whole)
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert set(reasons[:-1]) == {None} and reasons[-1] == whole["choices"][0]["finish_reason"]


def test_max_tokens_and_stop_end_an_answer(client):
    whole = ask(client, "what?", max_tokens=20)
    short = ask(client, "what?", max_tokens=None, max_completion_tokens=3)
    assert short["usage"]["completion_tokens"] == 3 and short["choices"][0]["finish_reason"] == "length"
    stop = said(whole)[4:6]
    cut = ask(client, "what?", max_tokens=20, stop=["never", stop])
    assert cut["choices"][0]["finish_reason"] == "stop" and said(cut) == said(whole)[: said(whole).index(stop)].rstrip()
    assert cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    streamed = events(client, max_tokens=20, stop=stop)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in streamed) == said(cut)


def test_a_seed_makes_a_sample_again(client):
    first, again, other = (said(ask(client, "what?", temperature=1.5, seed=seed, max_tokens=30)) for seed in (1, 1, 2))
    assert first == again != other
    assert said(ask(client, "what?", temperature=1.5, max_tokens=30)) != first


def test_top_p_keeps_to_the_likeliest_tokens(client):
    greedy = said(ask(client, "what?", max_tokens=30))
    assert said(ask(client, "what?", temperature=1.5, top_p=0, seed=1, max_tokens=30)) == greedy
    assert said(ask(client, "what?", top_p=0.5, max_tokens=30)) == greedy, "temperature 0"
    everything, some = (said(ask(client, "what?", temperature=1.5, top_p=p, seed=1, max_tokens=30)) for p in (1, 0.6))
    assert everything == said(ask(client, "what?", temperature=1.5, seed=1, max_tokens=30))
    assert len({everything, some, greedy}) == 3


def test_text_is_shown_in_whole_characters_and_without_the_beginning_of_a_stop_text():
    class Bytes:
        ends = frozenset((0,))

        @staticmethod
        def text(ids):
            return bytes(i for i in ids if i).decode("utf-8", "replace").strip()

    shown = []
    one = Said(Bytes, 99, ["END"], shown.append)
    ended = [one.add(token) for token in "é E. ENDx".encode()]
    assert ended.index(True) == len("é E. END".encode()) - 1 and "".join(shown) == one.text == "é E."
    assert all("\ufffd" not in piece for piece in shown) and one.reason == "stop"
    one = Said(Bytes, 2, [])
    assert [one.add(65), one.add(66)] == [False, True] and (one.text, one.reason) == ("AB", "length")


def test_a_character_of_which_every_byte_is_shown_as_a_half_waits_until_it_is_whole():
    words = SimpleNamespace(ends=(), text=lambda ids: bytes(ids).decode() if len(ids) == 4 else "\ufffd" * len(ids))
    shown = []
    one = Said(words, 99, [], shown.append)
    assert not any(one.add(token) for token in "😀".encode()) and shown == ["😀"]


# memories --------------------------------------------------------------------------------------------------------------------


def test_the_verbs_of_a_memory(client):
    assert client.post("/v1/memories", json={"name": "ada"}).status_code == 201
    told = [[p.question, p.answer] for p in pairs(3, "a")]
    (write,) = client.post("/v1/memories/ada/learn", json={"pairs": told, "source": "mail"}).json()["writes"]
    assert write["kept"] and write["source"] == "mail" and write["loss_after"] < write["loss_before"] and "row" not in write
    (other,) = client.post("/v1/memories/ada/learn", json={"pairs": [{"question": "where?", "answer": "Ulm"}]}).json()["writes"]
    found = client.get("/v1/memories/ada/pairs").json()["data"]
    assert [f["answer"] for f in found] == [a for _, a in told] + ["Ulm"] and {f["write"] for f in found} == {1, 2}
    answer = client.post("/v1/memories/ada/ask", json={"question": "where?"}).json()["answer"]
    assert client.post("/v1/memories/ada/fork", json={"name": "ben"}).status_code == 201
    right = client.post("/v1/memories/ben/correct", json={"question": "where?", "answer": "Oslo"}).json()
    assert right == {"corrected": [{"question": "where?", "answer": "Oslo"}]}
    assert client.post("/v1/memories/ada/ask", json={"question": "where?"}).json()["answer"] == answer
    gone = client.post("/v1/memories/ben/delete", json={"question": "where?"}).json()
    assert gone == {"deleted": [{"question": "where?", "answer": "Oslo"}]}
    assert len(client.post("/v1/memories/ben/delete", json={"source": "mail"}).json()["deleted"]) == 3
    assert client.get("/v1/memories/ben/pairs").json()["data"] == []
    assert [w["id"] for w in client.post("/v1/memories/ada/undo", json={"write": 1}).json()["data"]] == [1]
    text = "Ada: I have a cat.\n" * 10
    writes = client.post("/v1/memories/ada/observe", json={"text": text}).json()["writes"]
    writes += client.post("/v1/memories/ada/write", json={}).json()["writes"]
    assert len(writes) > 1 and client.get("/v1/memories/ada/log").json()["data"][1:] == writes
    names = [m["name"] for m in client.get("/v1/memories").json()["data"]]
    assert {"ada", "ben"} <= set(names) and client.get("/v1/memories/ada").json()["writes"] == 1 + len(writes)
    assert client.delete("/v1/memories/ben").json() == {"name": "ben", "deleted": True}
    assert client.get("/v1/memories/ben").status_code == 404


def test_what_delta_does_not_know_again_is_unknown(tmp_path, monkeypatch):
    learn = dataclasses.replace(SETTINGS.learn, reverse="Which question has {answer}?")
    settings = dataclasses.replace(SETTINGS, learn=learn, answer=dataclasses.replace(SETTINGS.answer, gain=0.2))
    with serving(tmp_path / "s", settings=settings) as (client, _):
        client.post("/v1/memories", json={"name": "ada"})
        client.post("/v1/memories/ada/learn", json={"pairs": [["what is a?", "b"]]})
        answers = []
        for gain in (0.1, 0.3):
            monkeypatch.setattr(agent_module, "gains", lambda _, asked, *rest, gain=gain: [gain] * len(asked))
            answers.append(client.post("/v1/memories/ada/ask", json={"question": "what is a?"}).json()["answer"])
        client.post("/v1/memories/ada/observe", json={"text": "it waits"})
        monkeypatch.setattr(agent_module, "gains", None)  # with text in the prompt nobody asks back
        answers.append(client.post("/v1/memories/ada/ask", json={"question": "what is a?"}).json()["answer"])
    assert answers[0] == "unknown" and "unknown" not in answers[1:]


def test_a_memory_is_named_in_three_ways_and_each_is_its_own(client, served):
    store = served[1]
    for name in ("m1", "m2", "m3"):
        store.make(name, exist_ok=True)
    store.learn("m1", pairs(4, "m1"))
    question = pairs(4, "m1")[2].question
    base, empty = said(ask(client, question)), said(ask(client, question, user="m2"))
    header = client.post(
        "/v1/chat/completions", headers={"X-Memory": "m1"},
        json={"messages": [{"role": "user", "content": question}], "max_tokens": 8, "user": "m3"},
    ).json()  # fmt: skip
    assert said(header) == said(ask(client, question, memory="m1", user="m3")) == said(ask(client, question, user="m1"))
    assert base == empty != said(header)
    assert store.log("m3") == [] and store.waits("m3") is None


def test_a_header_names_the_memory_that_a_body_does_in_any_script(client, served):
    store, body = served[1], {"messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
    before = len(store)
    assert client.post("/v1/chat/completions", headers={"X-Memory": "Åda 漢".encode()}, json=body).status_code == 200
    assert client.post("/v1/chat/completions", json={**body, "user": "Åda 漢"}).status_code == 200
    assert "Åda 漢" in store and len(store) == before + 1
    found = client.post("/v1/chat/completions", headers={"X-Memory": b"\xc5da"}, json=body)
    assert found.status_code == 400 and "X-Memory: it is not UTF-8" in found.text
    store.delete("Åda 漢")


def test_a_temperature_near_zero_harms_nobody(client):
    """Logits divided by it leave fp32: no token was drawn, and everybody's answers in the batch ended."""
    ways = [ask(client, "what?", max_tokens=6, temperature=t) for t in (0.0, 1e-45, 3e-39, 1.4e-38, 1e-37, 1e-5)]
    assert [said(way) for way in ways] == [said(ways[0])] * len(ways)


def test_without_a_memory_a_conversation_has_the_models_own_turns():
    said = lambda *turns: _turns(chat_request({"messages": [{"role": r, "content": t} for r, t in turns]}, None, MODEL))  # noqa: E731
    assert said(("user", "a")) == ([], "a")
    assert said(("system", "s"), ("user", "a")) == ([], "s\n\na")
    assert said(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")) == ([("s\n\na", "b")], "c")
    assert said(("user", "a"), ("user", "b"), ("assistant", "c"), ("tool", "d")) == ([("a\n\nb", "c")], "tool: d")
    assert said(("assistant", "a"), ("assistant", "b"), ("user", "c")) == ([("", "a\n\nb")], "c")


def test_a_conversation_that_is_sent_again_is_not_read_again(client, served):
    store, talk = served[1], []
    for text in ("I have a cat.", "It is called Mia.", "And a dog."):
        talk.append(text)
        talk.append(("assistant", said(ask(client, *talk, user="cleo"))))
    ask(client, *talk[:-1], user="cleo")  # once more, the last answer
    ask(client, *talk[2:], "It barks.", user="cleo")  # the beginning was cut off
    with store.using(["cleo"]) as (memory,):
        text = "\n\n".join([*(w.passage for w in store.log("cleo")), *memory.waiting])
    assert text == "\n\n".join(f"user: {t}" for t in ("I have a cat.", "It is called Mia.", "And a dog.", "It barks."))


def test_what_leaves_the_window_is_learned_and_the_prompt_stays_short(client, served):
    store, talk, used = served[1], [], []
    for i in range(12):
        talk.append(f"I saw {'x' * i} birds today, and then it rained.")
        found = ask(client, *talk, user="dora")
        talk.append(("assistant", said(found)))
        used.append(found["usage"]["prompt_tokens"])
    end = time.monotonic() + 30
    while len(store.log("dora")) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    with store.using(["dora"]) as (memory,):
        log = store.log("dora")
        assert len(log) >= 4 and {w.source for w in log} == {"chat"} and max(used) < 200
        text = "\n".join([*(w.passage for w in log), *memory.waiting])
    assert text.count("user: ") >= 12 and "assistant" not in text
    assert [text.count(f"saw {'x' * i} birds") for i in range(12)] == [1] * 12


def test_all_is_there_after_a_restart(tmp_path):
    with serving(tmp_path / "s") as (client, _):
        client.post("/v1/memories", json={"name": "ada"})
        client.post("/v1/memories/ada/learn", json={"pairs": [[p.question, p.answer] for p in pairs(3, "a")]})
        before = said(ask(client, "I have a cat.", "what?", user="ada")), client.get("/v1/memories/ada/pairs").json()
        again = said(ask(client, "I have a cat.", "what?", user="ada"))
    with serving(tmp_path / "s") as (client, store):
        assert client.get("/v1/memories/ada/pairs").json() == before[1]
        assert said(ask(client, "I have a cat.", "what?", user="ada")) == again
        assert store.waits("ada") == "chat" and len(store.messages("ada")) == 2


# refusals --------------------------------------------------------------------------------------------------------------------

NOT_DONE = {
    "n": 2, "top_p": 1.5, "tools": [{"type": "function"}], "logprobs": True, "presence_penalty": 1, "frequency_penalty": 0.1,
    "logit_bias": {"5": 1}, "response_format": {"type": "json_object"}, "memroy": "ada", "max_tokens": 0, "temperature": 3,
    "seed": "x", "stop": [""], "stream": "yes", "user": "", "memory": 5, "stop ": "x", "stream_options": [],
}  # fmt: skip


@pytest.mark.parametrize("field", NOT_DONE)
def test_what_is_not_done_is_refused_by_name(client, field):
    error = ask(client, "what?", status=400, **{field: NOT_DONE[field]})["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == field and field.strip() in error["message"]
    assert error["message"].endswith(".") and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "messages",
    [None, [], "hi", [{}], [{"role": "robot", "content": "hi"}], [{"role": "user"}], [{"role": "user", "content": 3}], [None],
     [{"role": "user", "content": " "}], [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
     [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], [{"role": ["user"], "content": "x"}]],
)  # fmt: skip
def test_what_is_no_conversation_is_refused(client, messages):
    found = client.post("/v1/chat/completions", json={"messages": messages})
    assert found.status_code == 400 and found.json()["error"]["param"].startswith("messages")


def test_fields_that_mean_nothing_are_let_pass(client):
    for name, values in NEUTRAL.items():
        ask(client, "what?", max_tokens=1, **{name: values[0]})
    parts = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "what?"}]}]
    assert client.post("/v1/chat/completions", json={"messages": parts, "max_tokens": 1, "metadata": {"a": "b"}}).is_success
    ask(client, "what?", ("tool", "a result"), max_tokens=1)


@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b"\xff", 400),
        ("POST", "/v1/chat/completions", b"[" * 5000, 400),
        ("POST", "/v1/chat/completions", b'{"messages": "' + b"x" * (1 << 20) + b'"}', 413),
        ("GET", "/v1/chat/completions", None, 405),
        ("GET", "/v1/nothing", None, 404),
        ("POST", "/v1/memories", b'{"name": ""}', 400),
        ("POST", "/v1/memories", b'{"name": "\\ud800"}', 400),
        ("POST", "/v1/memories", b'{"name": "x", "mode": 1}', 400),
        ("POST", "/v1/memories", b'{"name": "x", "\\ud800": 1}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\\udfff"}]}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "\\ud800", "content": "x"}]}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "user": "\\ud800"}', 400),
        ("POST", "/v1/memories/nobody/ask", b'{"question": "?"}', 404),
        ("POST", "/v1/memories/nobody/learn", b'{"pairs": [["a", "b"]]}', 404),
        ("POST", "/v1/memories/nobody/observe", b'{"text": "b"}', 404),
        ("GET", "/v1/memories/nobody/log", None, 404),
        ("DELETE", "/v1/memories/nobody", None, 404),
        ("POST", "/v1/memories/nobody/learn", b'{"pairs": {"a": "b"}}', 400),
        ("POST", "/v1/memories/nobody/learn", b'{"pairs": [["a", ""]]}', 400),
        ("POST", "/v1/memories/nobody/undo", b'{"write": "1"}', 400),
        ("POST", "/v1/memories/nobody/delete", b"{}", 400),
    ],
)
def test_a_bad_request_is_one_sentence_in_openais_shape(client, method, path, body, status):
    found = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].endswith(".")


HI = [{"role": "user", "content": "hi"}]
VALUES = (
    None, True, 0, -1, 1e308, "", " ", "ada", "x" * 300, "\0", "\ud800", "é", [], {}, [None], {"a": []}, [["q?", "a"]],
    [[1, 2]], HI, [{"role": "tool", "content": [{"type": "text", "text": "x"}]}],
)  # fmt: skip
PLACES = [
    ("POST", "/v1/chat/completions",
     ["messages", "user", "memory", "stop", "seed", "temperature", "top_p", "stream", "max_tokens", "n"]),
    ("POST", "/v1/completions",
     ["prompt", "user", "memory", "stop", "seed", "temperature", "stream", "max_tokens", "n", "echo", "suffix", "logprobs"]),
    ("POST", "/v1/memories", ["name"]),
    *(("POST", f"/v1/memories/ada/{verb}", ["text", "source", "pairs", "question", "answer", "name", "write"])
      for verb in ("observe", "write", "learn", "ask", "fork", "undo", "delete", "correct")),
    ("GET", "/v1/memories/%00/pairs", []), ("DELETE", "/v1/memories/%ff", []), ("GET", "/v1/memories//log", []),
]  # fmt: skip


def test_no_request_however_odd_is_an_error_of_the_server(tmp_path):
    """TMEM_FUZZ: how many."""
    rng, seen = random.Random(0), Counter()
    with serving(tmp_path / "s") as (client, store):
        store.make("ada")
        for _ in range(int(os.environ.get("TMEM_FUZZ", 400))):
            method, path, fields = rng.choice(PLACES)
            body = {name: rng.choice(VALUES) for name in rng.sample(fields, rng.randint(0, min(3, len(fields))))}
            if "completions" in path and rng.random() < 0.5:
                body = {**({"messages": HI} if "chat" in path else {"prompt": "hi"}), "max_tokens": 2, **body}
            content = json.dumps(body)
            if rng.random() < 0.2:
                content = content[: rng.randint(0, len(content))] + rng.choice('}{]\0"')
            kind = rng.choice(["application/json"] * 8 + ["text/plain", "application/json; charset=utf-8"])
            found = client.request(method, path, content=content, headers={"Content-Type": kind})
            assert found.status_code < 500, (method, path, content, found.text)
            if found.status_code >= 400:
                assert found.json()["error"]["message"].endswith("."), found.text
            seen[found.status_code] += 1
        assert client.get("/health").json() == {"status": "ok"}
    assert seen[200] and seen[404] and seen[400] > 50


def test_a_taken_name_another_model_and_a_long_prompt(client):
    assert client.post("/v1/memories", json={"name": "taken"}).status_code == 201
    assert client.post("/v1/memories", json={"name": "taken"}).status_code == 409
    assert ask(client, "what?", model="gpt-9", status=404)["error"]["code"] == "model_not_found"
    assert ask(client, "x" * 450, max_tokens=None)["usage"]["completion_tokens"] <= 62  # what has room
    assert ask(client, "x" * 600, status=400)["error"]["code"] == "context_length_exceeded"
    assert "error" in ask(client, "x" * 600, status=400, stream=True)


def test_a_web_page_cannot_use_the_server(client):
    """It can send no JSON without asking first, which no answer allows, and no name of its own leads here."""
    plain = client.post("/v1/memories", content=b'{"name": "evil"}', headers={"Content-Type": "text/plain"})
    foreign = client.get("/v1/memories", headers={"Host": "evil.example"})
    asked = client.request("OPTIONS", "/v1/memories", headers={"Origin": "http://evil.example"})
    assert (plain.status_code, foreign.status_code) == (415, 421) and asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers


def test_an_answer_that_is_asked_for_again_is_the_same(client, served):
    first = (
        ask(client, "I have a cat.", user="emil"),
        ask(client, "I have a cat.", ("assistant", "Oh."), "And a dog.", user="emil"),
    )
    again = ask(client, "I have a cat.", ("assistant", "Ah."), "And a dog.", user="emil")
    assert said(again) == said(first[1]) and again["usage"] == first[1]["usage"] and len(served[1].messages("emil")) == 2


def test_the_page_asks_this_server_alone_and_shows_texts_as_texts(client):
    found = client.get("/")
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/html")
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|document.write|eval\(", found.text)
    ids = set(re.findall(r'id="(\w+)"', found.text))
    assert set(re.findall(r'at\("(\w+)"\)', found.text)) | set(re.findall(r'form\("(\w+)"', found.text)) <= ids
    verbs = set(re.findall(r'of\("(\w+)"\)', found.text))
    assert verbs == {"correct", "delete", "undo", "pairs", "log", "learn", "write", "fork"}


def test_names_of_any_kind(client, served):
    for name in ("a/b", "..", "é ü", "x?y#z", "%2e%2e", "x\U0010ffff", "\ud7ff"):
        assert client.post("/v1/memories", json={"name": name}).status_code == 201
        if name != "..":  # a client walks up the path
            assert client.get(f"/v1/memories/{quote(name, safe='')}").json()["name"] == name
        ask(client, "hi", user=name, max_tokens=1)
        assert name in served[1]
    found = client.post(f"/v1/memories/{quote('a/b', safe='')}/learn", json={"pairs": [["a?", "b"]]})
    assert found.is_success and len(served[1].log("a/b")) == 1


def test_the_counters_hold_nothing_of_a_user(client):
    ask(client, "what is zzyzx?", user="zzyzx", max_tokens=2)
    page = client.get("/metrics").text
    assert 'tmem_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in page and "zzyzx" not in page
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values["tmem_generated_tokens_total"]) > 0 and float(values["tmem_slots"]) == 3


def test_nothing_of_a_user_is_logged(client, caplog):
    with caplog.at_level("INFO"):
        ask(client, "what is zzyzx?", user="zzyzx", max_tokens=2)
        client.get("/v1/memories/zzyzx/pairs")
        client.post("/v1/memories/zzyzx/learn", json={"pairs": [["zzyzx", ""]]})
    said = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith(("tmem", "uvicorn")))
    assert "/v1/memories/{name:path}/pairs 200" in said and "zzyzx" not in said


# who waits for whom ----------------------------------------------------------------------------------------------------------


def test_many_at_once_are_answered_as_each_alone(tmp_path):
    """More memories than slots, greedy answers beside sampled ones of two kinds, while others learn."""
    names, others = [f"u{i}" for i in range(8)], [f"w{i}" for i in range(4)]
    with serving(tmp_path / "s", queue=200) as (client, store):
        for name in (*names, *others):
            store.make(name)
        for name in names:
            store.learn(name, pairs(3, name))
        jobs = [(name, p.question) for p in pairs(3, "z") for name in (*names, None, 0.7)]

        def one(job):
            name, question = job
            if name not in names:
                return said(ask(client, question, temperature=1.0, top_p=name, seed=3, max_tokens=12))
            return client.post(f"/v1/memories/{name}/ask", json={"question": question}).json()["answer"]

        def learn(name):
            return client.post(f"/v1/memories/{name}/learn", json={"pairs": [[p.question, p.answer] for p in pairs(3, name)]})

        alone = [one(job) for job in jobs]
        assert len(set(alone)) > 8
        with ThreadPoolExecutor(20) as pool:
            learning = [pool.submit(learn, name) for name in others]
            assert list(pool.map(one, jobs)) == alone
            assert all(f.result().is_success for f in learning)


def test_a_full_queue_answers_429_with_retry_after(tmp_path):
    held = threading.Event()
    with serving(tmp_path / "s", queue=2) as (client, store), ThreadPoolExecutor(8) as pool:
        decoding = store.agent.decoding

        def slow():
            held.wait(30)
            return decoding()

        store.agent.decoding = slow
        asked = [pool.submit(client.post, "/v1/chat/completions", json={"messages": [{"role": "user", "content": "?"}]})
                 for _ in range(6)]  # fmt: skip
        end = time.monotonic() + 30
        while sum(f.done() for f in asked) < 1 and time.monotonic() < end:
            time.sleep(0.02)
        held.set()
        found = [f.result() for f in asked]
    full = [r for r in found if r.status_code == 429]
    assert full and {r.status_code for r in found} == {200, 429}
    assert all(int(r.headers["Retry-After"]) >= 1 and r.json()["error"]["code"] == "queue_full" for r in full)


def test_a_client_that_goes_is_not_answered_any_longer(tmp_path):
    with serving(tmp_path / "s", max_position_embeddings=4096) as (client, store):
        store.agent.chat.ends = frozenset()
        body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 3000, "stream": True}
        began = time.monotonic()
        with client.stream("POST", "/v1/chat/completions", json=body) as found:
            next(found.iter_lines())
        ask(client, "what?", max_tokens=2)
        assert time.monotonic() - began < 20


def test_a_request_is_read_as_it_says():
    body = {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}], "user": "ada", "stop": "x"}
    found = chat_request(body, None, MODEL)
    assert found.memory == "ada" and found.stops == ("x",) and found.temperature == 0.0 and found.system == ["s"]
    assert chat_request(body, "ben", MODEL).memory == "ben"
    assert chat_request({**body, "memory": "cleo"}, "ben", MODEL).memory == "cleo"
    with pytest.raises(Refused, match="X-Memory: expected the name"):
        chat_request(body, " ", MODEL)
    assert Letters.eos_token_id == 0
