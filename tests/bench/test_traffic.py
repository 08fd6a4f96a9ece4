"""`tmem bench serve`: what users ask for, that servers get the same, that wrong counting is caught, and that the
straightforward server learns as tmem does."""

import asyncio
import dataclasses
import math

import pytest
from click.testing import CliRunner
from tiny import pairs
from tiny_agent import CONFIG, agent_of

from tmem import cli
from tmem.agent.teach import Lesson
from tmem.bench import serving, traffic
from tmem.bench.clients import Served, Way, _messages
from tmem.bench.measure import WrongNumbers
from tmem.bench.plain_server import PlainServer
from tmem.bench.servers import _Heard
from tmem.episode import Pair

LEARN = dataclasses.replace(CONFIG.learn, lr=0.01, epochs=6, rehearse=4, target=0.02)
SETTINGS = dataclasses.replace(CONFIG, learn=LEARN, answer=dataclasses.replace(CONFIG.answer, max_new=6))


# what is asked ------------------------------------------------------------------------------------------------------------


def test_a_plan_has_the_shares_and_asks_for_what_was_told():
    plan = traffic.plan(6, 10, 3)
    assert plan == traffic.plan(6, 10, 3) != traffic.plan(6, 10, 4) and plan[:2] == traffic.plan(2, 10, 3)
    assert len({r[0].pairs for r in plan}) == 6, "each user has facts of its own"
    for user, requests in enumerate(plan):
        kinds = [r.kind for r in requests]
        assert [kinds.count(k) for k in ("learn", "ask", "chat")] == [2, 4, 4] and kinds[0] == "learn"
        told, said, asked = {}, [], []
        for r in requests:
            assert r.user == user
            told |= {p.question: p.answer for p in r.pairs}
            if r.kind == "ask":
                assert told[r.text] == r.answer and r.before == tuple(said)
                assert r.text not in asked or set(asked) == set(told), "asked again while another fact was not"
                asked.append(r.text)
            if r.kind == "chat":
                assert r.text not in said and r.before == tuple(said)
                said.append(r.text)


def test_what_comes_then_goes_on_without_learning():
    plan = traffic.plan(3, traffic.MOST, 0)
    for requests, more in zip(plan, traffic.then(plan, 0), strict=True):
        told = {p.question: p.answer for r in requests for p in r.pairs}
        said = [r.text for r in requests if r.kind == "chat"]
        assert len(more) == sum(r.kind != "learn" for r in requests) and {r.kind for r in more} == {"ask", "chat"}
        for r in more:
            assert r.before == tuple(said)
            if r.kind == "ask":
                assert told[r.text] == r.answer
            else:
                assert r.text not in said
                said.append(r.text)


def test_arrivals_are_a_poisson_process_of_the_rate():
    plan = traffic.plan(50, 20, 0)
    times = traffic.arrivals(plan, 4.0, 1)
    assert times == traffic.arrivals(plan, 4.0, 1) != traffic.arrivals(plan, 4.0, 2)
    assert [len(t) for t in times] == [20] * 50 and all(t == sorted(t) for t in times)
    ordered = sorted(t for some in times for t in some)
    between = [b - a for a, b in zip([0.0, *ordered], ordered)]
    mean = sum(between) / len(between)
    deviation = math.sqrt(sum((b - mean) ** 2 for b in between) / len(between))
    assert mean == pytest.approx(1 / 4, rel=0.1) and deviation == pytest.approx(mean, rel=0.1)


def test_without_a_memory_a_message_holds_what_a_memory_is_shown():
    request = traffic.Request(0, "ask", text="who?", answer="Ada", before=("one.", "two."))
    way = Way("base", "", False, "Say: {}".format, len)
    assert _messages(way, request) == [{"role": "user", "content": "user: one.\n\nuser: two.\n\nSay: who?"}]
    assert _messages(dataclasses.replace(way, memories=True), request)[0]["content"] == "who?"


# counting -----------------------------------------------------------------------------------------------------------------


def served(request, due=1.0, took=1.0, **others):
    chat = (
        {"text": "a b", "pieces": (due + took / 4, due + took / 2), "prompt": 5, "tokens": 2} if request.kind == "chat" else {}
    )
    return Served(request, due, due + took, **{"text": request.answer, **chat, **others})


@pytest.fixture
def plan():
    return traffic.plan(2, 5, 0)


@pytest.fixture
def found(plan):
    return [served(r, due=1.0 + k) for requests in plan for k, r in enumerate(requests)]


def test_a_request_that_is_lost_answered_twice_or_before_it_was_sent_is_caught(plan, found):
    serving.checked("x", plan, found, 0.5)
    chat = next(i for i, s in enumerate(found) if s.request.kind == "chat")
    for wrong in (found[:-1], [*found, found[-1]], [*found[1:], found[0]], [found[0], found[0], *found[2:]]):
        with pytest.raises(WrongNumbers, match="x answered .* requests of 10"):
            serving.checked("x", plan, wrong, 0.5)
    for change in ({"done": 0.9}, {"done": math.nan}, {"due": 0.1}, {"pieces": (3.0, 2.5)}, {"pieces": (99.0,)}):
        wrong = [dataclasses.replace(s, **change) if i == chat else s for i, s in enumerate(found)]
        with pytest.raises(WrongNumbers, match="before it was sent"):
            serving.checked("x", plan, wrong, 0.5)
    for change in ({"tokens": 0}, {"prompt": 0}, {"pieces": ()}):
        wrong = [dataclasses.replace(s, **change) if i == chat else s for i, s in enumerate(found)]
        with pytest.raises(WrongNumbers, match="how long a chat was"):
            serving.checked("x", plan, wrong, 0.5)


def test_servers_that_hear_other_requests_are_caught(plan):
    bodies = [str(i) for i in range(10)]
    other = [*bodies[:-1], "x"]
    serving.same_requests(plan, {"tmem": bodies, "straightforward": bodies, "base": other})
    with pytest.raises(WrongNumbers, match="asked different things"):
        serving.same_requests(plan, {"tmem": bodies, "straightforward": other})
    for short in ("tmem", "straightforward", "base"):
        with pytest.raises(WrongNumbers, match=f"of 10 requests there came: .*{short} 9"):
            serving.same_requests(plan, {**dict.fromkeys(("tmem", "straightforward", "base"), bodies), short: bodies[:-1]})


def test_a_server_hears_paths_and_whole_bodies():
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    def heard(path, *parts):
        left = [{"type": "http.request", "body": p, "more_body": i + 1 < len(parts)} for i, p in enumerate(parts)]

        async def receive():
            return left.pop(0)

        one = _Heard(app)
        asyncio.run(one({"type": "http", "path": path}, receive, None))
        (digest,) = one.digests
        return digest

    assert heard("/a", b"xy") == heard("/a", b"x", b"y") != heard("/a", b"xz")
    assert heard("/a", b"xy") != heard("/b", b"xy")


def points(found, ours=None, plain=None, base=None):
    answered = {"tmem": ours or found, "straightforward": plain or found, "base": base}
    return [serving.Point(name, "mixed", 2, some, 9.0) for name, some in answered.items() if some]


def test_a_rival_that_learned_nothing_or_was_shown_other_prompts_is_caught(found):
    assert serving.alike(points(found)) == {"alike": 1, "right": {"tmem": 1, "straightforward": 1}, "asks": 4}
    crippled = [dataclasses.replace(s, text="unknown") if s.request.kind == "ask" else s for s in found]
    with pytest.raises(WrongNumbers, match=r"0 of 4 asks were answered alike, and right by tmem 1.00, .* 0.00"):
        serving.alike(points(found, plain=crippled))
    longer = [dataclasses.replace(s, prompt=s.prompt + 1) if s.request.kind == "chat" else s for s in found]
    for other in ({"plain": longer}, {"base": longer}):
        with pytest.raises(WrongNumbers, match="different prompts"):
            serving.alike(points(found, **other))


def test_percentiles_gaps_and_first_tokens():
    assert serving.percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert serving.percentiles([3.0]) == {"p50": 3, "p95": 3, "p99": 3} and serving.percentiles([]) is None
    chat = traffic.Request(0, "chat", text="x")
    some = [Served(chat, 1.0, 5.0, "abc", (2.0, 2.5, 4.0)), Served(chat, 2.0, 3.0)]
    assert serving.gaps(some) == [0.5, 1.5] and serving.firsts(some) == [1.0]


def test_a_fact_counts_as_known_once_from_when_it_was_sent():
    def request(kind, user=0, **of):
        return traffic.Request(user, kind, **of)

    fact = Pair("who?", "Ada")
    learn, ask = request("learn", pairs=(fact,)), request("ask", text="who?", answer="Ada")
    wrong = Served(ask, 3.0, 4.0, "Ben")
    right = [Served(ask, 5.0, 6.0, "ada."), Served(ask, 7.0, 8.0, "Ada")]
    other = Served(request("ask", 1, text="who?", answer="Ada"), 1.0, 2.0, "Ada")
    assert serving.until_known([Served(learn, 1.0, 2.0), other, wrong, *right]) == [5.0]


def test_a_row_counts_what_was_found(found):
    row = serving.row(serving.Point("tmem", "mixed", 2, found, 4.0))
    assert row["requests"] == 10 and row["a_second"] == 2.5 and row["tokens"] == 8 and (row["asks"], row["right"]) == (4, 4)
    assert row["total"]["learn"] == {"p50": 1, "p95": 1, "p99": 1} and row["first"]["p95"] == 0.25 and row["gap"]["p95"] == 0.25


def test_aims_compare_the_most_users():
    def row(server, phase, users, seconds):
        return {"server": server, "phase": phase, "users": users, "seconds": seconds}

    rows = [row("tmem", "mixed", 8, 2.0), row("straightforward", "mixed", 8, 9.0), row("tmem", "answers", 8, 3.0),
            row("base", "answers", 8, 2.0), row("tmem", "mixed", 1, 1.0), row("straightforward", "mixed", 1, 1.0)]  # fmt: skip

    def p(value):
        return {"p95": value}

    beside = [{"alone": {"gap": p(0.1), "first": p(0.2)}, "beside": {"gap": p(0.2), "first": p(1.2)}, "step": 0.2}]
    assert [(a["reached"], a["met"]) for a in serving.aims(rows, beside)] == [
        (4.5, True), (1.5, False), (pytest.approx(0.5), True), (pytest.approx(5.0), False),
    ]  # fmt: skip


# the straightforward server -------------------------------------------------------------------------------------------------


ASKS_BACK = dataclasses.replace(
    SETTINGS, learn=dataclasses.replace(LEARN, reverse="Which question has {answer}?"),
    answer=dataclasses.replace(SETTINGS.answer, gain=0.3),
)  # fmt: skip


@pytest.mark.parametrize("writes, settings", [(1, SETTINGS), (2, SETTINGS), (2, ASKS_BACK)])
def test_the_straightforward_server_learns_and_answers_as_tmem(writes, settings):
    ours, plain = agent_of(2, config=settings), PlainServer(agent_of(1, config=settings))
    for name in "ab":
        plain.make(name)
    slots, lessons = [ours.bank.alloc(), ours.bank.alloc()], [Lesson(), Lesson()]
    taken, step = [], ours.bank.step
    ours.bank.step = lambda which: (taken.append(len(which)), step(which))[1]
    for turn in range(writes):
        for i, name in enumerate("ab"):
            told = pairs(6, f"{name}{turn}")  # more than one minibatch
            (mine,) = ours.teach([slots[i]], [told], [lessons[i]])
            before, after = plain.learn(name, told)
            assert (before, after) == pytest.approx((mine.loss_before, mine.loss_after), rel=1e-3)
    assert plain.steps == sum(taken)
    for i, name in enumerate("ab"):
        memory = plain.memories[name]
        assert [p.question for p in memory.lesson.pairs] == [p.question for p in lessons[i].pairs]
        questions = [*(p.question for p in pairs(6, f"{name}0")), "zzz zzz?"]  # the last one was never told
        answers = ours.answer(questions, [slots[i]] * 7)
        assert [plain.ask(name, q) for q in questions] == answers
        assert ("unknown" in answers) == (settings is ASKS_BACK)
        said = []
        reply = plain.talk(name, "go on.", 9, said.append)
        (own,) = ours.say(["go on."], [slots[i]], max_new=9)
        assert reply.generation.ids == own.generation.ids and reply.prompt == own.prompt
        assert reply.generation.logprobs == pytest.approx(own.generation.logprobs, abs=1e-3)
        assert memory.waiting == ["user: go on."] and plain.talk(name, "more.", 2, said.append).read > reply.read
    assert not any(p.requires_grad for n, p in plain.peft.named_parameters() if "lora_B" not in n)


def test_the_straightforward_server_undoes_what_did_harm():
    plain = PlainServer(agent_of(1, config=SETTINGS))
    plain.make("a")
    memory = plain.memories["a"]
    memory.optimizer.step = lambda: [b.data.fill_(100.0) for b in memory.b]
    before, after = plain.learn("a", pairs(3))
    assert after > before and not memory.lesson.pairs and not any(b.any() for b in memory.b)


# the command ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [["--users", "1,x"], ["--users", "0"], ["--users", ""], ["--requests", "2"], ["--requests", "21"]]
)
def test_wrong_options_are_refused(wrong):
    found = CliRunner().invoke(cli.main, ["bench", "serve", *wrong])
    assert found.exit_code == 2 and wrong[0] in found.output


def test_options_of_serve_have_no_meaning_elsewhere():
    for name, option in (("lora", "--users"), ("soak", "--requests"), ("serve", "--chains")):
        found = CliRunner().invoke(cli.main, ["bench", name, option, "3"])
        assert found.exit_code == 2 and f"{option} has no meaning for bench {name}" in found.output.replace("\n", " ")
