"""Rollouts on other machines: the numbers of a run without workers, whatever becomes of these, and clear ends."""

import dataclasses
import http.server
import json
import re
import signal
import threading
import time
from contextlib import ExitStack, contextmanager

import forked
import pytest
import torch
from test_few_bits import HERE, packed
from test_low_rank import EXTRA, adapter_of
from test_scenes import EPISODES as SCENES
from test_trainer import SCRIPT, one_thread, together  # noqa: F401
from tiny import Letters, model
from tiny_agent import CONFIG, EPISODES
from tiny_bank import fill
from tiny_run import BRIEF, lines, start, tell
from tiny_worker import worker
from wrong import delta_left_behind, keys_left_behind

pytest.importorskip("starlette", reason="needs tmem[serve]")
pytest.importorskip("uvicorn", reason="needs tmem[serve]")
from tmem.agent import agent as agent_module  # noqa: E402
from tmem.agent.agent import Agent  # noqa: E402
from tmem.agent.loop import run  # noqa: E402
from tmem.bench.servers import listening  # noqa: E402
from tmem.rl import trainer, wire, workers  # noqa: E402
from tmem.rl.low_rank import LowRank  # noqa: E402
from tmem.rl.wire import Theta, request_in, theta_bytes, theta_in, version_of  # noqa: E402
from tmem.rl.worker import Outdated, Worker  # noqa: E402
from tmem.rl.workers import NoWorkerLeft, Workers  # noqa: E402
from tmem.serve.rollouts import application  # noqa: E402

VOCABULARY = 160


# a request ---------------------------------------------------------------------------------------------------------------


def agent_and_theta(network=None, bits=None, **adapter):
    """An agent over a θ0 that moved, with three slots of which the last has Δ = 0."""
    network = network or model()
    policy = LowRank(network, 4, 0, bits=bits)
    with torch.no_grad():
        for b in policy.params[1::2]:
            b.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    policy.publish()
    config = dataclasses.replace(CONFIG, adapter=dataclasses.replace(CONFIG.adapter, **adapter))
    agent = Agent.build(network, Letters(), config, 3)
    slots = [agent.bank.alloc() for _ in range(3)]
    fill(agent.bank, *slots[:2], size=0.5)
    for slot in slots:
        agent.bank.written(slot)
    return agent, Theta.of(policy.lora, agent.bank)


@contextmanager
def served(count=1, slots=8, base=model, bits=None):
    """Addresses of workers in threads of this process, and the workers."""
    made = [Worker(base(), slots, bits) for _ in range(count)]
    with ExitStack() as stack:
        ports = [stack.enter_context(listening(application(w))) for w in made]
        yield [f"http://127.0.0.1:{port}" for port in ports], made


PROMPTS = [[ord(c) for c in text] for text in ("a text", "a text", "another text that is longer", "b", "a text", "what?", "c")]
WAYS = {
    "sampled": {"temperature": 1.0, "keys": list("abcdefg")},
    "nucleus": {"temperature": 0.7, "top_p": 0.8, "keys": list("aacdefg")},
    "greedy": {},
    "ranked": {"ranks": [0, 1, 0, 2, 1, 0, 0]},
    "begun": {"begins": [2, 2, 8, 0, 2, 0, 0], "temperature": 1.0, "keys": list("abcdefg")},
}


def said(agent, slots, way):
    found = agent.say(PROMPTS, slots, max_new=9, **WAYS[way])
    return [(r.generation.ids, r.generation.logprobs, r.generation.finished) for r in found]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slots", [[0, 1, 2, 0, -1, 1, -1], [-1] * 7, None], ids=["rows", "none", "no bank"])
def test_what_workers_generate_is_what_is_generated_here(way, slots):
    """Three workers, one of them with room for a single row."""
    agent, theta = agent_and_theta()
    here = said(agent, slots, way)
    with served(3) as (urls, made):
        made[0].slots = 1
        pool = Workers(urls)
        pool.publish(theta, VOCABULARY)
        agent.elsewhere = pool
        assert said(agent, slots, way) == here
        assert pool.counted() == {"workers": 3, "workers_lost": 0, "asked_again": 0}


@pytest.mark.parametrize("adapter", [{"train_a": True}, {"init": "sigma"}, {"rank": 2, "last_layers": 1}])
def test_a_worker_takes_over_the_subspace_and_changes_with_it(adapter):
    agent, theta = agent_and_theta(**adapter)
    _, other = agent_and_theta()
    here = said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled")
    with served() as (urls, made):
        pool = Workers(urls)
        pool.publish(other, VOCABULARY)
        pool.publish(theta, VOCABULARY)
        agent.elsewhere = pool
        assert said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled") == here
        assert made[0].bank.subspace == agent.bank.subspace


@pytest.mark.parametrize("bits", HERE)
def test_a_worker_over_few_bits_has_theta_beside_them(bits):
    agent, theta = agent_and_theta(packed(bits), bits)
    _, other = agent_and_theta(packed(bits), bits, last_layers=1)
    here = said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled")
    with served(base=lambda: packed(bits), bits=bits) as (urls, _):
        agent.elsewhere = Workers(urls)
        for each in (other, theta):
            agent.elsewhere.publish(each, VOCABULARY)
        assert said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled") == here
    with pytest.raises(ValueError, match=f"bits {bits}; this worker's has .*, none"):
        Worker(model(), 1).take(theta_bytes(theta))


@pytest.mark.parametrize("wrong", [delta_left_behind, keys_left_behind])
def test_what_is_left_behind_is_missed(monkeypatch, wrong):
    agent, theta = agent_and_theta()
    here = said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled")
    monkeypatch.setattr(workers, "request_bytes", wrong.request_bytes)
    with served(2) as (urls, _):
        pool = Workers(urls)
        pool.publish(theta, VOCABULARY)
        agent.elsewhere = pool
        assert said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled") != here


@pytest.mark.parametrize("write", [{}, {"replies": 3, "starts": 2}, {"under_delta": False}])
@pytest.mark.parametrize("known", [False, True])
def test_whatever_the_way_to_write_rollouts_are_the_same(write, known):
    """A list, spans with questions, answers to known questions; under Δ or not; and scenes, which are played here."""
    agent, theta = agent_and_theta()
    for slot in range(3):
        agent.bank.free(slot)
    agent.config = dataclasses.replace(agent.config, write=dataclasses.replace(agent.config.write, max_new=12, **write))
    agent.config = dataclasses.replace(agent.config, learn=dataclasses.replace(agent.config.learn, epochs=2))

    episodes = [EPISODES[0], *SCENES[:2]]

    def found():
        rollouts = run(agent, episodes, ["a", "b", "c"], temperature=1.0, trace=True, known=known, probing=[0])
        return [([(a.kind, a.prompt, a.generation) for a in r.actions], r.answers, r.pairs) for r in rollouts]

    here = found()
    assert {kind for actions, *_ in here for kind, *_ in actions} >= {"walk", "answer"}
    with served(2) as (urls, _):
        agent.elsewhere = Workers(urls)
        agent.elsewhere.publish(theta, VOCABULARY)
        assert found() == here


def test_no_row_is_sent_twice_and_none_is_left_out():
    slots = [3, 1, 3, -1, 2, 1, 3, -1]
    parts = workers._shares([[1], [2], [3], [4, 5], [6], [7], [8], [4, 5]], slots, None, 3)
    assert sorted(i for part in parts for i in part) == list(range(8))
    for key in (1, 2, 3, -1):
        assert sum(any(slots[i] == key for i in part) for part in parts) == 1
    assert workers._shares([[1]], [0], None, 3) == [[0]]


def test_theta_is_a_file_of_safetensors_with_the_same_bytes_for_the_same_numbers():
    _, theta = agent_and_theta()
    content = theta_bytes(theta)
    assert theta_bytes(theta_in(content)) == content == theta_bytes(agent_and_theta()[1])
    assert version_of(content) != version_of(theta_bytes(dataclasses.replace(theta, factors=[2 * f for f in theta.factors])))


@pytest.mark.parametrize("damage", [
    lambda c: c[:-1], lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"{}", lambda c: b"\x80\x04N.",
    lambda c: c.replace(b'lora_A', b'lora_C', 1), lambda c: c.replace(b'"said"', b'"sail"', 1),
    lambda c: c.replace(b'\\"rank\\": 4', b'\\"rank\\": 5', 1),
    lambda c: c.replace(b'\\"scale\\": 2.0', b'\\"scale\\": NaN', 1),
    lambda c: c[:-4] + b"\x00\x00\xc0\x7f",
])  # fmt: skip
def test_a_theta_that_is_damaged_is_refused_in_a_sentence_and_the_one_before_serves(damage):
    agent, theta = agent_and_theta()
    held = Worker(model(), 4)
    version = held.take(theta_bytes(theta))
    bad = damage(theta_bytes(theta))
    with pytest.raises(ValueError, match=r"^θ0.*\.$"):
        held.take(bad)
    assert held.theta == version


def test_a_theta_of_another_model_or_version_is_refused():
    _, theta = agent_and_theta()
    held = Worker(model(seed=1), 4)
    with pytest.raises(ValueError, match="θ0 is over a model with the fingerprint .* Start the worker with the --model"):
        held.take(theta_bytes(theta))
    held = Worker(model(), 4)
    request = workers.Request("other", [[1]], None, [0], 3, None, 0.0, 1.0, None, None, [])
    with pytest.raises(Outdated, match="this worker has version none of θ0, not other"):
        held.generate(workers.request_bytes(request))
    version = held.take(theta_bytes(theta))
    with pytest.raises(Outdated, match=f"this worker has version {version} of θ0, not other"):
        held.generate(workers.request_bytes(request))
    assert len(held.generate(workers.request_bytes(dataclasses.replace(request, theta=version)))) == 1


@pytest.mark.parametrize("change, sentence", [
    ({"prompts": [[160]]}, "expected token ids of 0 to 159"), ({"prompts": [[-1]]}, "expected token ids"),
    ({"prompts": [[]]}, "a prompt is empty"), ({"prompts": [["a"]]}, "expected a whole number"), ({"max_new": 0}, "max_new"),
    ({"max_new": 1 << 40}, "max_new"), ({"temperature": -1.0}, "temperature"), ({"temperature": 1.0}, "needs one noise key"),
    ({"keys": []}, "keys: expected 1"), ({"slots": [0]}, "slots: expected -1 to -1"), ({"begins": [9]}, "a beginning of 9"),
    ({"ranks": [160]}, "ranks: expected 0 to 159"), ({"top_p": 0.0}, "top_p"), ({"max_new": 2.5}, "a whole number"),
])  # fmt: skip
def test_a_request_that_makes_no_sense_is_one_sentence(change, sentence):
    _, theta = agent_and_theta()
    held = Worker(model(), 4)
    sound = workers.Request(held.take(theta_bytes(theta)), [[1]], None, [0], 3, None, 0.0, 1.0, None, None, [])
    content = workers.request_bytes(sound)
    request = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["said"]
    packed = wire._packed({**json.loads(request), **change}, {})
    with pytest.raises(ValueError, match=re.escape(sentence)):
        held.generate(packed)
    assert len(held.generate(content)) == 1


def test_rows_of_another_size_are_refused():
    agent, theta = agent_and_theta()
    held = Worker(model(), 4)
    row = agent.bank.snapshot(0, optimizer=False)
    sound = workers.Request(held.take(theta_bytes(theta)), [[1]], [0], [0], 3, None, 0.0, 1.0, None, None, [row])
    assert request_in(workers.request_bytes(sound), "s").rows[0].param.equal(row.param)
    for bad in (dataclasses.replace(row, param=row.param[:-1]), dataclasses.replace(row, rank=99)):
        with pytest.raises(ValueError, match="rows: expected"):
            held.generate(workers.request_bytes(dataclasses.replace(sound, rows=[bad])))


# workers that fail ---------------------------------------------------------------------------------------------------------


@contextmanager
def saying(status, body, wait=0.0):
    """The address of what has the right θ0 and answers every request with `body`."""
    theta = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.reply(200, json.dumps({"theta": theta[-1] if theta else ""}).encode())

        def do_PUT(self):
            theta.append(version_of(self.rfile.read(int(self.headers["Content-Length"]))))
            self.do_GET()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(wait)
            if body is not None:
                self.reply(status, body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def generations(*each):
    keys = ("ids", "logprobs", "finished")
    return json.dumps({"generations": [dict(zip(keys, g)) for g in each]}).encode()


GARBAGE = {
    "an error": (500, b"", "500"),
    "a sentence": (503, b'{"error": {"message": "it is\\n\\u001b[31mfull."}}', r"503 it is \x1b[31mfull"),
    "a page": (200, b"<html>", "the reply is not JSON"),
    "nothing": (200, None, "RemoteProtocolError"),
    "another place": (307, b"", "307"),
    "another object": (200, b'{"generations": 5}', "expected a list, got 5"),
    "too few": (200, generations(([1], [-1.0], True)), "has 1 generations, expected"),
    "too many tokens": (200, generations(*[([1] * 99, [-1.0] * 99, True)] * 3), "log-probabilities are none"),
    "no log-probability": (200, generations(*[([1], [], True)] * 3), "log-probabilities are none"),
    "NaN": (200, generations(*[([1], [float("nan")], True)] * 3), "expected a number, got nan"),
    "a probability above 1": (200, generations(*[([1], [0.5], True)] * 3), "log-probabilities are none"),
    "no token": (200, generations(*[([160], [-1.0], True)] * 3), "a token that the model does not have"),
    "depth": (200, b"[" * 20_000, "the reply is not JSON"),
    "length": (200, b"x" * 200_000, "a reply of more than"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_answers_with_garbage_is_lost_and_the_others_do_its_work(what):
    status, body, sentence = GARBAGE[what]
    agent, theta = agent_and_theta()
    here, told = said(agent, [0, 1, 1, 0, -1, 1, -1], "sampled"), []
    with served() as (urls, _), saying(status, body) as bad:
        pool = Workers([*urls, bad], warn=told.append)
        pool.publish(theta, VOCABULARY)
        agent.elsewhere = pool
        for _ in range(2):
            assert said(agent, [0, 1, 1, 0, -1, 1, -1], "sampled") == here
        assert pool.counted() == {"workers": 1, "workers_lost": 1, "asked_again": 1}
        assert pool.counted() == {"workers": 1, "workers_lost": 0, "asked_again": 0}
        assert len(told) == 1 and told[0].startswith(f"worker {bad} is lost: ") and sentence in told[0], told
        pool.publish(theta, VOCABULARY)
        assert told[1:] == [f"worker {bad} is back"]


def test_a_worker_that_takes_too_long_is_lost():
    agent, theta = agent_and_theta()
    here, told = said(agent, None, "sampled"), []
    with served() as (urls, _), saying(200, b"", wait=2.0) as slow:
        pool = Workers([slow, *urls], patience=1.0, warn=told.append)
        pool.publish(theta, VOCABULARY)
        agent.elsewhere = pool
        assert said(agent, None, "sampled") == here and told == [f"worker {slow} is lost: no reply within 1 s"]


def test_a_worker_that_another_run_took_is_given_theta_again():
    agent, theta = agent_and_theta()
    here = said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled")
    other = dataclasses.replace(theta, lora=dataclasses.replace(theta.lora, scale=1.0))
    with served() as (urls, made):
        mine, theirs = Workers(urls), Workers(urls)
        mine.publish(theta, VOCABULARY)
        theirs.publish(other, VOCABULARY)
        agent.elsewhere = mine
        assert said(agent, [0, 1, 2, 0, -1, 1, -1], "sampled") == here
        assert made[0].theta == version_of(theta_bytes(theta)) and mine.counted()["workers_lost"] == 0


def test_with_no_worker_left_one_sentence_says_why_of_each():
    agent, theta = agent_and_theta()
    with served(base=lambda: model(seed=1)) as (urls, _), saying(200, b"<") as bad:
        pool = Workers([*urls, bad, "http://127.0.0.1:1/"])
        pool.publish(theta, VOCABULARY)
        agent.elsewhere = pool
        with pytest.raises(NoWorkerLeft) as error:
            said(agent, None, "greedy")
        words = str(error.value)
        assert re.match(r"train: no worker is left \(http", words) and words.endswith("and go on with --resume.")
        for why in (f"{urls[0]}: 400 θ0 is over a model", f"{bad}: the reply is not JSON", "http://127.0.0.1:1: ConnectError"):
            assert why in words, words
        assert "\n" not in words


@pytest.mark.parametrize("url", ["", "127.0.0.1:8430", "ftp://host:1", "http://", "http://host:99999", "http://me:pw@host:1",
                                 "http://host:1/v1", "http://host:1?key=pw"])  # fmt: skip
def test_an_address_that_is_none_is_refused_without_what_it_holds(url):
    with pytest.raises(ValueError, match="train: --workers: expected addresses such as") as error:
        Workers([url])
    assert "pw" not in str(error.value)


# runs --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def told():
    """Every write holds a pair: Δ is learned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_module, "parse", agent_module.parse)
        tell()
        yield


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    start(out, extra=EXTRA, **BRIEF).run()
    rows = [r for r in lines(out) if r["phase"] == "rl"]
    assert all(r["norm"] > 0 and r["grad_norm"] > 0 for r in rows)
    return out


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    """The address of a worker that stays."""
    with worker(tmp_path_factory.mktemp("helper")) as (_, url):
        yield url


def assert_same(out, built_in):
    """The same numbers and weights, bit for bit; what no setting decides goes with the times alone."""
    for name in ("metrics", "segments"):
        assert (out / f"{name}.jsonl").read_text() == (built_in / f"{name}.jsonl").read_text()
    for phase in ("warm", "rl", "sft"):
        mine, theirs = adapter_of(out, phase), adapter_of(built_in, phase)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in theirs)


def of_workers(out):
    """What timings.jsonl says of the workers, an RL step each."""
    names = ("workers", "workers_lost", "asked_again")
    return [tuple(r[n] for n in names) for r in lines(out, "timings") if r["phase"] == "rl"]


def test_a_run_with_a_worker_that_is_killed_has_the_same_numbers(tmp_path, built_in, helper):
    """Amid the second step; whoever watches is told once."""
    out, warned = tmp_path / "run", []
    with worker(tmp_path, "--kill", 10) as (killed, url):
        start(out, extra=EXTRA, **BRIEF, workers=Workers([url, helper])).run(trainer.Progress(warn=warned.append))
        assert killed.end().returncode == -signal.SIGKILL
    assert_same(out, built_in)
    found = of_workers(out)
    assert found == [(2, 0, 0), (1, 1, 1)]
    assert [w for w in warned if "worker" in w] == [w for w in warned if f"worker {url} is lost: " in w] != []
    assert all(not {"workers", "workers_lost"} & r.keys() for r in lines(out))


def test_with_all_workers_gone_a_run_ends_and_is_gone_on_with(tmp_path, built_in, helper):
    out = tmp_path / "run"
    with worker(tmp_path, "--kill", 10) as (_, url), pytest.raises(NoWorkerLeft, match=f"no worker is left .{url}: "):
        start(out, extra=EXTRA, **BRIEF, workers=Workers([url])).run()
    with pytest.raises(NoWorkerLeft, match="ConnectError"):
        start(out, extra=EXTRA, **BRIEF, resume=True, workers=Workers([url])).run()
    start(out, extra=EXTRA, **BRIEF, resume=True, workers=Workers([helper])).run()
    assert_same(out, built_in)


def test_a_run_without_workers_ends_before_the_warm_start(tmp_path):
    with pytest.raises(NoWorkerLeft):
        start(tmp_path / "run", extra=EXTRA, **BRIEF, workers=Workers(["http://127.0.0.1:1"])).run()
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_run_that_is_killed_resumes_to_the_same_bits_with_workers_or_without(tmp_path, built_in, helper):
    out = tmp_path / "run"
    started = forked.run(SCRIPT, out, "--kill", "rollout", 2, "--brief", "--extra", EXTRA, "--tell", "--workers", helper)
    assert started.returncode == -signal.SIGKILL, started.stderr
    again = start(out, extra=EXTRA, **BRIEF, resume=True, workers=Workers([helper]))
    again.run(stop=lambda: False)
    assert_same(out, built_in)


def test_two_ranks_share_workers(tmp_path, built_in, helper):
    out = tmp_path / "run"
    together(out, "--brief", "--extra", EXTRA, "--tell", "--workers", helper)
    for mine, theirs in zip(lines(out), lines(built_in), strict=True):
        for key in ("reward", "tokens", "written", "shout", "norm"):
            assert mine.get(key) == pytest.approx(theirs.get(key), rel=1e-5, abs=1e-5), key
    assert of_workers(out) == [(1, 0, 0)] * 2


def test_workers_need_an_adapter(tmp_path):
    with pytest.raises(ValueError, match='workers get θ0 as an adapter; set policy = "lora"'):
        start(tmp_path / "run", workers=Workers(["http://127.0.0.1:1"]))
