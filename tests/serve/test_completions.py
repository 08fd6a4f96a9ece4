"""/v1/completions on a tiny model: raw text that goes on, OpenAI's shape, and memories that learn nothing of it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import pairs

pytest.importorskip("starlette", reason="needs tmem[serve]")
pytest.importorskip("uvicorn", reason="needs tmem[serve]")

from tiny_server import MODEL  # noqa: E402

from tmem.serve.requests import NEUTRAL_TEXT  # noqa: E402


def go_on(client, prompt="what is", status=200, headers=None, **body):
    found = client.post("/v1/completions", json={"prompt": prompt, **body}, headers=headers)
    assert found.status_code == status, found.text
    return found.json()


def text(found):
    return found["choices"][0]["text"]


def test_a_completion_has_openais_shape_and_the_tokens_of_its_text_alone(client):
    found = go_on(client, model=MODEL, max_tokens=8)
    assert found["object"] == "text_completion" and found["id"].startswith("cmpl-") and found["model"] == MODEL
    (choice,) = found["choices"]
    assert choice["index"] == 0 and choice["logprobs"] is None and choice["finish_reason"] in ("stop", "length")
    assert found["usage"]["prompt_tokens"] == len("what is") and 1 <= found["usage"]["completion_tokens"] <= 8
    assert found["usage"]["total_tokens"] == len("what is") + found["usage"]["completion_tokens"]
    assert go_on(client, ["what is"], max_tokens=8)["choices"] == found["choices"]
    assert go_on(client)["usage"]["completion_tokens"] <= 16, "where the request does not say"


def test_a_completion_is_what_greedy_decoding_goes_on_with(client, served):
    agent = served[1].agent
    (reply,) = agent.say([agent.chat.plain("so it is")], max_new=20)
    found = go_on(client, "so it is", max_tokens=20)
    letters = "".join(chr(i) for i in reply.generation.ids if i)
    assert text(found) == letters, "space at its edges stays"


def test_a_stream_says_what_the_whole_says(client):
    whole = go_on(client, max_tokens=20)
    body = {"prompt": "what is", "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/completions", json=body) as found:
        lines = [line for line in found.iter_lines() if line]
    assert found.headers["content-type"].startswith("text/event-stream") and lines[-1] == "data: [DONE]"
    *chunks, usage = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert {c["object"] for c in chunks} == {"text_completion"} and len({c["id"] for c in chunks}) == 1 and len(chunks) > 3
    assert "".join(map(text, chunks)) == text(whole)
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert set(reasons[:-1]) == {None} and reasons[-1] == whole["choices"][0]["finish_reason"]


def test_stop_ends_a_completion_and_a_seed_makes_a_sample_again(client):
    whole = text(go_on(client, max_tokens=20))
    cut = go_on(client, max_tokens=20, stop=whole[4:6])
    assert text(cut) == whole[: whole.index(whole[4:6])] and cut["choices"][0]["finish_reason"] == "stop"
    first, again, other = (text(go_on(client, temperature=1.5, seed=seed, max_tokens=20)) for seed in (1, 1, 2))
    assert first == again != other
    assert text(go_on(client, temperature=1.5, top_p=0.0, seed=1, max_tokens=20)) == whole


def test_a_memory_lends_its_weights_in_three_ways_and_learns_nothing(client, served):
    store = served[1]
    store.make("ada")
    store.learn("ada", pairs(4, "m"))
    store.take("ada", "Ada: it rains.", source="chat")
    before = store.log("ada"), store.messages("ada"), store.memories()
    base = text(go_on(client, "what is m?"))
    found = [go_on(client, "what is m?", memory="ada", user="nobody"), go_on(client, "what is m?", user="ada")]
    found += [go_on(client, "what is m?", user="nobody", headers={"X-Memory": "ada"})]
    assert len({text(f) for f in found}) == 1 and text(found[0]) != base
    assert {f["usage"]["prompt_tokens"] for f in found} == {len("what is m?")}, "what waits is not shown"
    assert (store.log("ada"), store.messages("ada"), store.memories()) == before


def test_a_memory_that_is_not_there_is_not_made(client, served):
    error = go_on(client, user="nobody", status=404)["error"]
    assert error["code"] == "not_found" and "nobody" in error["message"] and "nobody" not in served[1]


NOT_DONE = {
    "echo": True, "suffix": "x", "logprobs": 0, "n": 2, "best_of": 3, "frequency_penalty": 1, "presence_penalty": 0.5,
    "logit_bias": {"5": 1}, "messages": [], "max_completion_tokens": 5, "memroy": "ada", "max_tokens": 0, "temperature": -1,
    "top_p": -0.1,
}  # fmt: skip


@pytest.mark.parametrize("field", NOT_DONE)
def test_what_is_not_done_is_refused_by_name(client, field):
    error = go_on(client, status=400, **{field: NOT_DONE[field]})["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == field and field in error["message"]


@pytest.mark.parametrize("prompt", [None, "", [], ["a", "b"], [1, 2, 3], [[1, 2]], {"a": "b"}, 5, [""], "\ud800"])
def test_what_is_no_text_is_refused(client, prompt):
    found = client.post("/v1/completions", content=json.dumps({"prompt": prompt}), headers={"Content-Type": "application/json"})
    assert found.status_code == 400 and found.json()["error"]["param"] == "prompt"


def test_a_text_that_has_no_tokens_is_refused_and_disturbs_nobody(client, served, monkeypatch):
    chat = served[1].agent.chat
    real = chat.completion
    monkeypatch.setattr(chat, "completion", lambda text: real(text) if text != "nothing" else [])
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, "/v1/completions", json={"prompt": p}) for p in ("what", "nothing", "is", "nothing")]
    assert [a.result().status_code for a in asked] == [200, 400, 200, 400]
    assert asked[1].result().json()["error"]["param"] == "prompt"


def test_fields_that_mean_nothing_are_let_pass(client):
    for name, values in NEUTRAL_TEXT.items():
        go_on(client, max_tokens=1, **{name: values[0] if values else None})


def test_what_does_not_fit_the_model_is_refused(client):
    assert go_on(client, "x" * 600, status=400)["error"]["param"] == "prompt"
    assert go_on(client, "x" * 600, status=400, stream=True)["error"]["code"] == "context_length_exceeded"
    assert go_on(client, "x" * 505)["usage"]["completion_tokens"] <= 7, "what has room"
