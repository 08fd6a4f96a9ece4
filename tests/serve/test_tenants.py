"""Keys and tenants on a tiny model: whose memories are whose, what a stranger gets, and where keys never stand."""

import hmac
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from tiny import pairs

pytest.importorskip("starlette", reason="needs tmem[serve]")
pytest.importorskip("uvicorn", reason="needs tmem[serve]")

from tiny_server import MODEL, serving  # noqa: E402

from tmem.serve.keys import OPERATOR, keys_in  # noqa: E402
from tmem.serve.tenants import Tenants  # noqa: E402

KEYS = {"acme": "acme-key-0123456789", "beta": "beta-key-0123456789", OPERATOR: "operator-key-0123456789"}
HI = [{"role": "user", "content": "what?"}]


def tenants(most=100, **more):
    return Tenants([*KEYS.items(), *more.items()], most)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served") / "store", tenants=tenants()) as found:
        yield found


class By:
    """A client with a key."""

    def __init__(self, client, key):
        self.client, self.headers = client, {} if key is None else {"Authorization": f"Bearer {key}"}

    def __call__(self, method, path, body=None, **headers):
        content = {} if body is None else {"json": body}
        return self.client.request(method, path, headers={**self.headers, **headers}, **content)

    def chat(self, **body):
        return self("POST", "/v1/chat/completions", {"messages": HI, "max_tokens": 6, **body})


@pytest.fixture
def acme(served):
    return By(served[0], KEYS["acme"])


@pytest.fixture
def beta(served):
    return By(served[0], KEYS["beta"])


OF_ONE = [
    ("GET", "/adapter", None), ("GET", "/adapter/config", None),
    ("GET", "", None), ("GET", "/pairs", None), ("GET", "/log", None), ("POST", "/observe", {"text": "x"}),
    ("POST", "/write", {}), ("POST", "/learn", {"pairs": [["a?", "b"]]}), ("POST", "/ask", {"question": "a?"}),
    ("POST", "/fork", {"name": "copy"}), ("POST", "/undo", {"write": 0}), ("POST", "/delete", {"question": "a?"}),
    ("POST", "/correct", {"question": "a?", "answer": "b"}), ("DELETE", "", None),
]  # fmt: skip
ALL = [
    ("GET", "/v1/memories", None), ("POST", "/v1/memories", {"name": "x"}), ("GET", "/v1/models", None),
    ("POST", "/v1/chat/completions", {"messages": HI}), ("POST", "/v1/completions", {"prompt": "x"}), ("GET", "/metrics", None),
    ("GET", "/v1/nothing", None), *((method, f"/v1/memories/ada{path}", body) for method, path, body in OF_ONE),
]  # fmt: skip


@pytest.mark.parametrize("method, path, body", ALL)
def test_nothing_is_done_without_a_key_that_is_known(served, method, path, body):
    for key in (None, "?", "acme", "acme-key-012345678", "acme-key-0123456789x", "ACME-KEY-0123456789", "é" * 20):
        headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
        found = served[0].request(method, path, headers=headers, **({} if body is None else {"json": body}))
        assert found.status_code == 401 and found.headers["WWW-Authenticate"] == "Bearer"
        error = found.json()["error"]
        assert error["code"] == "invalid_api_key" and error["message"].endswith("Bearer KEY.") and set(error) == {
            "message", "type", "param", "code"
        }  # fmt: skip
    basic = served[0].request(method, path, headers={"Authorization": f"Basic {KEYS['acme']}"})
    assert basic.status_code == 401


def test_the_page_and_the_health_need_no_key(served):
    assert served[0].get("/health").json() == {"status": "ok"}
    page = served[0].get("/").text
    assert 'type="password"' in page and 'autocomplete="off"' in page
    assert set(re.findall(r"\b(\w+Storage|document\.cookie|indexedDB)\b", page)) == {"sessionStorage"}


def test_one_name_is_two_memories_of_two_tenants(acme, beta, served):
    for who, tag in ((acme, "a"), (beta, "b")):
        assert who("POST", "/v1/memories", {"name": "ada"}).json() == {"name": "ada"}
        told = [[p.question, p.answer] for p in pairs(4, tag)]
        assert who("POST", "/v1/memories/ada/learn", {"pairs": told}).is_success
        assert [p["question"] for p in who("GET", "/v1/memories/ada/pairs").json()["data"]] == [q for q, _ in told]
        assert [m["name"] for m in who("GET", "/v1/memories").json()["data"]] == ["ada"]
        assert who("GET", "/v1/memories/ada").json()["name"] == "ada"
    question = [{"role": "user", "content": "what is axxx1?"}]
    said = {who: who.chat(messages=question, memory="ada").json()["choices"][0]["message"] for who in (acme, beta)}
    assert said[acme] != said[beta]
    assert {"acme/ada", "beta/ada"} <= {m.name for m in served[1].memories()}
    texts = [
        acme("POST", "/v1/completions", {"prompt": "what", **named}, **header).json()["choices"][0]["text"]
        for named, header in (({"memory": "ada"}, {}), ({"user": "ada"}, {}), ({}, {"X-Memory": "ada"}))
    ]
    assert len(set(texts)) == 1
    assert beta("POST", "/v1/completions", {"prompt": "what", "user": "ada"}).json()["choices"][0]["text"] != texts[0]


@pytest.mark.parametrize("method, path, body", OF_ONE)
def test_anothers_memory_is_as_unknown_as_any(acme, served, method, path, body):
    served[1].make("beta/secret", exist_ok=True)
    log, rest = served[1].log("beta/secret"), len(served[1])
    never = acme(method, f"/v1/memories/never{path}", body)
    assert never.status_code == 404
    for name in ("secret", "beta/secret", "/beta/secret", "../beta/secret", "acme/../beta/secret", "\x00", "beta"):
        found = acme(method, f"/v1/memories/{quote(name, safe='')}{path}", body)
        assert found.status_code == 404, (name, found.text)
        error = found.json()["error"]["message"]
        assert error == never.json()["error"]["message"].replace(repr("never"), repr(name))
        assert "acme" not in error.replace(name, "")
    assert served[1].log("beta/secret") == log and len(served[1]) == rest


def test_an_error_quotes_what_the_tenant_said(acme):
    assert acme("POST", "/v1/memories", {"name": "eve"}).status_code in (201, 409)
    found = acme("POST", "/v1/memories/eve/delete", {"source": "acme/x"}).json()["error"]["message"]
    assert found.startswith("delete_source: 'eve' has nothing of the source 'acme/x'")
    stop = acme.chat(stop=["acme/x" * 50]).json()["error"]["message"]
    assert "'acme/x" in stop


def test_a_conversation_names_a_memory_of_its_tenant_alone(acme, served):
    served[1].make("beta/secret", exist_ok=True)
    assert acme.chat(user="beta/secret").is_success and acme.chat(memory="../beta/secret").is_success
    assert served[1].waits("beta/secret") is None and {"acme/beta/secret", "acme/../beta/secret"} <= {
        m.name for m in served[1].memories()
    }  # fmt: skip
    assert acme("POST", "/v1/completions", {"prompt": "x", "user": "secret"}).status_code == 404


def test_a_name_has_room_beside_its_tenants(acme):
    for name in ("", " ", "x" * 196):
        error = acme("POST", "/v1/memories", {"name": name})
        assert error.status_code == 400 and "has 1 to 195 characters" in error.json()["error"]["message"]
        assert acme.chat(memory=name).status_code == 400
    assert acme("POST", "/v1/memories", {"name": "x" * 195}).status_code == 201


def test_a_tenant_has_so_many_memories_and_no_more(tmp_path):
    with serving(tmp_path / "s", tenants=tenants(most=2)) as (client, store):
        acme, beta = (By(client, KEYS[name]) for name in ("acme", "beta"))
        assert acme("POST", "/v1/memories", {"name": "a"}).status_code == 201 and acme.chat(user="b").is_success
        tried = [
            acme("POST", "/v1/memories", {"name": "c"}), acme.chat(user="c"), acme("POST", "/v1/memories/a/fork", {"name": "c"})
        ]  # fmt: skip
        for found in tried:
            assert found.status_code == 403 and found.json()["error"]["code"] == "memory_limit"
        assert acme("POST", "/v1/memories", {"name": "a"}).status_code == 409 and acme.chat(user="a").is_success
        assert beta("POST", "/v1/memories", {"name": "c"}).status_code == 201, "another has its own"
        assert acme("DELETE", "/v1/memories/a").is_success and acme.chat(user="c").is_success
        assert len(store) == 3


def test_metrics_are_the_operators_and_hold_no_tenant(acme, served):
    acme.chat(user="zzyzx")
    operator = By(served[0], KEYS[OPERATOR])
    page = operator("GET", "/metrics")
    assert page.is_success and not any(word in page.text for word in ("acme", "beta", "zzyzx", "key-0123"))
    assert acme("GET", "/metrics").status_code == 401
    assert operator("GET", "/v1/memories").status_code == operator.chat().status_code == 401


def test_every_key_is_compared_whoever_calls(served, monkeypatch):
    compared, real = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    for key in (*KEYS.values(), "nobody", "x" * 5000):
        compared.clear()
        By(served[0], key)("GET", "/v1/models")
        assert compared == [(32, 32)] * len(KEYS)


def test_keys_are_nowhere_in_logs_and_errors(served, caplog):
    with caplog.at_level("DEBUG"):
        for key in (*KEYS.values(), "wrong-key-0123456789"):
            who = By(served[0], key)
            answers = [who.chat(), who("GET", "/v1/memories/nobody"), who("POST", "/v1/memories", {"name": 5})]
            assert all("key-0123" not in a.text for a in [*answers, who("GET", "/v1/x"), who("GET", "/metrics")])
    said = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith(("httpcore", "httpx")))
    assert "POST /v1/chat/completions 200" in said and "key-0123" not in said


def test_the_clients_error_for_a_wrong_key_is_its_own(served):
    openai = pytest.importorskip("openai", reason="needs the package openai")
    url = f"{served[0].base_url}/v1"
    with pytest.raises(openai.AuthenticationError, match="a key is needed") as wrong:
        openai.OpenAI(base_url=url, api_key="wrong-key-0123456789").chat.completions.create(model=MODEL, messages=HI)
    assert wrong.value.code == "invalid_api_key" and KEYS["acme"] not in str(wrong.value)
    found = openai.OpenAI(base_url=url, api_key=KEYS["acme"]).chat.completions.create(model=MODEL, messages=HI, max_tokens=2)
    assert found.choices[0].message.role == "assistant"


def test_a_stream_that_fails_names_the_memory_as_its_tenant_does(acme, served):
    served[1].make("acme/gone", exist_ok=True)
    served[1].take("acme/gone", "x" * 600, source="chat")
    found = acme.chat(memory="gone", stream=True)
    assert found.status_code in (200, 400) and "acme" not in found.text
    missing = acme("POST", "/v1/completions", {"prompt": "x", "memory": "it's", "stream": True})
    assert missing.status_code == 404 and json.loads(missing.text)["error"]["message"].startswith('there is no memory "it\'s"')


def test_keys_are_read_as_lines():
    text = f"# tenants\n\nacme {'a' * 16}\nacme\t{'b' * 200} \n beta {'!~' * 8}\nmetrics {'c' * 16}\n"
    assert keys_in(text, "keys") == [("acme", "a" * 16), ("acme", "b" * 200), ("beta", "!~" * 8), ("metrics", "c" * 16)]


def test_the_keys_of_the_document_are_keys():
    document = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```\n(# Name:.*?)```", document, re.S)
    assert [name for name, _ in keys_in(text, "docs")] == ["acme", "acme", OPERATOR]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "keys holds no tenant's key"),
        ("# acme secret-0123456789\n", "holds no tenant's key"),
        ("metrics secret-0123456789", "holds no tenant's key"),
        ("\nsecret-0123456789", "line 2: expected NAME KEY"),
        ("acme secret", "line 1: expected NAME KEY"),
        ("acme secret-0123456789 more", "line 1: expected NAME KEY"),
        ("a/b secret-0123456789", "line 1: expected NAME KEY"),
        ("../b secret-0123456789", "line 1: expected NAME KEY"),
        (f"{'x' * 41} secret-0123456789", "line 1: expected NAME KEY"),
        ("acme secret-é123456789-0", "line 1: expected NAME KEY"),
        (f"acme secret-{'x' * 200}", "line 1: expected NAME KEY"),
        ("acme secret-0123456789\nbeta secret-0123456789", "line 2: it has the key of line 1"),
    ],
)
def test_what_is_no_file_of_keys_is_refused_without_saying_what_it_holds(text, said):
    with pytest.raises(ValueError, match=said) as refused:
        keys_in(text, "keys")
    assert "secret" not in str(refused.value) and str(refused.value).endswith(".")
