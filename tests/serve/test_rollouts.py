"""A worker over HTTP: who may ask, what is refused, and `tmem worker` as a user types it."""

import dataclasses
import os
import signal
import sys

import httpx
import pytest
from click.testing import CliRunner
from tiny import Letters, model
from tiny_agent import CONFIG
from tiny_run import PRESET
from tiny_worker import worker

pytest.importorskip("starlette", reason="needs tmem[serve]")
uvicorn = pytest.importorskip("uvicorn", reason="needs tmem[serve]")
from tmem import cli  # noqa: E402
from tmem.agent.agent import Agent  # noqa: E402
from tmem.bench.servers import listening  # noqa: E402
from tmem.cli.listening import tenants_of  # noqa: E402
from tmem.cli.train import _workers  # noqa: E402
from tmem.rl.low_rank import LowRank  # noqa: E402
from tmem.rl.wire import KIND, Request, Theta, generations_in, request_bytes, theta_bytes, version_of  # noqa: E402
from tmem.rl.worker import Worker  # noqa: E402
from tmem.rl.workers import NoWorkerLeft, Workers  # noqa: E402
from tmem.serve.rollouts import application  # noqa: E402
from tmem.serve.tenants import Tenants  # noqa: E402

KEY = "run-key-0123456789ab"
TYPE = {"Content-Type": KIND}


def theta_of(network):
    policy = LowRank(network, 4, 0)
    return Theta.of(policy.lora, Agent.build(network, Letters(), CONFIG, 1).bank)


@pytest.fixture(scope="module")
def theta():
    return theta_of(model())


@pytest.fixture(scope="module")
def client():
    """A worker whose bodies have 1 MiB at most."""
    with listening(application(Worker(model(), 4), most=1 << 20)) as port:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as found:
            yield found


def request_of(held, **changes):
    return Request(**{
        "theta": version_of(theta_bytes(held)), "prompts": [[5, 6]], "slots": None, "end": [0], "max_new": 3, "begins": None,
        "temperature": 0.0, "top_p": 1.0, "keys": None, "ranks": None, "rows": [], **changes,
    })  # fmt: skip


def test_a_worker_takes_theta_and_generates(client, theta):
    version = version_of(theta_bytes(theta))
    assert client.put("/theta", content=theta_bytes(theta), headers=TYPE).json() == {"theta": version}
    assert client.get("/health").json() == {"status": "ok", "theta": version}
    request = request_of(theta)
    (found,) = generations_in(client.post("/generate", content=request_bytes(request), headers=TYPE).content, request, 160)
    assert 0 < len(found.ids) <= 3


def refused(response, status):
    """The sentence with which a request was refused."""
    assert response.status_code == status, response.text
    said = response.json()["error"]["message"]
    assert said.endswith((".", "it.")) and "\n" not in said and "Traceback" not in said
    return said


def test_what_is_no_request_is_refused_in_a_sentence(client, theta):
    client.put("/theta", content=theta_bytes(theta), headers=TYPE)
    other = request_bytes(request_of(theta, theta="0" * 32))
    assert "this worker has version" in refused(client.post("/generate", content=other, headers=TYPE), 409)
    for path, send in (("/theta", client.put), ("/generate", client.post)):
        assert "no safetensors file" in refused(send(path, content=b"x" * 99, headers=TYPE), 400)
        assert "send it with Content-Type" in refused(send(path, json={}), 415)
        assert "more than 1048576 bytes" in refused(send(path, content=bytes(2 << 20), headers=TYPE), 413)
    wrong = dataclasses.replace(theta, lora=dataclasses.replace(theta.lora, base="0" * 16))
    assert "with the --model and --bits" in refused(client.put("/theta", content=theta_bytes(wrong), headers=TYPE), 400)
    refused(client.get("/theta"), 405)
    refused(client.get("/memories"), 404)
    assert client.get("/health").json()["theta"] == version_of(theta_bytes(theta))


def test_another_host_is_refused(client):
    assert "call it by one of these names" in refused(client.get("/health", headers={"Host": "evil.example"}), 421)


def test_a_worker_with_a_key_asks_for_it(theta):
    app = application(Worker(model(), 4), hosts=(), tenants=Tenants([("run", KEY)]))
    with listening(app) as port:
        url = f"http://127.0.0.1:{port}"
        assert "a key is needed" in refused(httpx.put(f"{url}/theta", content=theta_bytes(theta), headers=TYPE), 401)
        Workers([url], KEY).publish(theta, 160)
        stranger, unsaid = Workers([url], "another-key-0123456789"), ("bank", "slots", "begins", "keys", "ranks")
        stranger.publish(theta, 160)  # which θ0 a worker has needs no key
        with pytest.raises(NoWorkerLeft, match="401 a key is needed") as error:
            stranger([[5]], end={0}, max_new=2, temperature=0.0, top_p=1.0, **dict.fromkeys(unsaid))
        assert "another-key" not in str(error.value)


# the command -------------------------------------------------------------------------------------------------------------


def test_a_worker_ends_by_a_signal_as_other_verbs_do(tmp_path):
    with worker(tmp_path) as (script, url):
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "theta": ""}
        os.kill(script.process.pid, signal.SIGTERM)
        done = script.end()
        assert done.returncode == 143 and "The server has ended. The run asks its other workers." in done.stderr


def test_the_command_says_in_a_sentence_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(f"run {KEY}\n")
    (tmp_path / "full.toml").write_text(PRESET.replace('reward = "shout"', 'reward = "f1"'))
    out = ("train", "--preset", str(tmp_path / "full.toml"), "--out", str(tmp_path / "out"))
    for words, sentence in [
        (("worker", "--host", "0.0.0.0"), "without keys they would have it generate for them"),
        (("worker", "--keys", str(tmp_path / "none")), "no such file"),
        ((*out, "--workers", "host:1"), "--workers: expected addresses such as"),
        ((*out, "--workers", "http://127.0.0.1:1"), 'set policy = "lora" in [train]'),
        ((*out, "--keys", str(tmp_path / "keys")), "--keys has no meaning for a run without --workers"),
    ]:
        found = CliRunner().invoke(cli.main, words)
        assert found.exit_code == 2 and sentence in found.output and KEY not in found.output, found.output
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    found = CliRunner().invoke(cli.main, ["worker"])
    assert found.exit_code == 2 and "pip install 'tmem[serve]'" in found.output


def test_the_run_and_its_workers_read_one_file(tmp_path, monkeypatch):
    """Of several keys the run sends the first that is not the operator's."""
    lines = f"metrics {'m' * 20}\nrun {KEY}\nother {'o' * 20}\n"
    (tmp_path / "keys").write_text(lines)
    assert _workers("http://127.0.0.1:1", tmp_path / "keys")._key == KEY and _workers("http://127.0.0.1:1", None)._key is None
    monkeypatch.setenv("TMEM_KEYS", lines)
    assert _workers("http://127.0.0.1:1", None)._key == KEY
    scope = {"path": "/generate", "headers": [(b"authorization", f"Bearer {KEY}".encode())]}
    assert tenants_of("0.0.0.0", None, "generate").caller(scope).begins == "run/"
