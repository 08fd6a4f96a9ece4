"""Who waits for whom: answers, learning and other work take turns on one model, and nobody's bits depend on it."""

import os
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny import pairs

pytest.importorskip("starlette", reason="needs tmem[serve]")

from tiny_store import SETTINGS, store_at  # noqa: E402

from tmem.agent.agent import first_line  # noqa: E402
from tmem.agent.decode import Decoding  # noqa: E402
from tmem.agent.recognise import gains  # noqa: E402
from tmem.agent.sampling import Sampling  # noqa: E402
from tmem.serve import engine as engine_module  # noqa: E402
from tmem.serve.batch import Say  # noqa: E402
from tmem.serve.engine import WORKERS, Engine, Full, Learn, Work, in_turns  # noqa: E402
from tmem.store.store import Missing, Telling  # noqa: E402

NOBODY = SimpleNamespace(slots=2, agent=None)  # a store that is not asked for anything


def until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def say(store, name, question="what?", most=8, how=Sampling(), tell=lambda _: False):  # noqa: B008
    return Say(name, lambda _: store.agent.chat.prompt(question), tell, most, how)


def stuck(hold, value=1):
    hold.wait(20)
    return value
    yield


def test_work_has_its_turn_step_by_step(monkeypatch):
    monkeypatch.setattr(engine_module, "WORKERS", 1)
    engine, seen, started = Engine(NOBODY, 10, list), [], threading.Event()

    def steps(name):
        for i in range(3):
            seen.append((name, i))
            started.wait(5)
            yield
        return name

    works = [engine.submit(Work(steps(name))) for name in "ab"]
    started.set()
    assert [w.result(10) for w in works] == ["a", "b"]
    assert seen == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    engine.close()
    with pytest.raises(RuntimeError, match="shutting down"):
        engine.submit(Work(steps("c")))


def test_short_work_does_not_wait_behind_long_work():
    engine, hold, done = Engine(NOBODY, 10, list), threading.Event(), threading.Event()
    long = engine.submit(Work(stuck(hold)))
    done.set()
    assert engine.submit(Work(stuck(done, 2))).result(10) == 2 and not long.done()
    hold.set()
    assert long.result(10) == 1
    engine.close()


@pytest.mark.parametrize("kind", ["learn", "work"])
def test_a_token_waits_for_one_step_of_learning_at_most(tmp_path, monkeypatch, kind):
    """One that is under way when the learning begins, and one of a prompt that comes while it lasts."""
    order, begun = [], threading.Event()
    with store_at(tmp_path / "s", slots=3) as store:
        for name in ("talks", "learns"):
            store.make(name)
        step = store.agent.bank.step

        def slow(slots):
            order.append("learn")
            begun.set()
            time.sleep(0.02)
            step(slots)

        monkeypatch.setattr(store.agent.bank, "step", slow)
        engine = Engine(store, 20, list)

        def told(_):
            order.append("token")
            return False

        store.agent.chat.ends = frozenset()
        first = engine.submit(say(store, "talks", most=300, tell=told))
        until(lambda: order)
        many = pairs(12, "x")
        if kind == "learn":
            learned = engine.submit(Learn(Telling("learns", many)))
        else:
            learned = engine.submit(Work(one(lambda: store.learn("learns", many))))
        begun.wait(20)
        second = engine.submit(say(store, None, most=20, tell=told))
        for job in (first, second, learned):
            job.result(60)
        engine.close()
    while_both = order[order.index("learn") : len(order) - order[::-1].index("learn")]
    assert while_both.count("learn") > 3 and while_both.count("token") > 3
    assert not any(a == b == "learn" for a, b in zip(while_both, while_both[1:]))


def one(verb):
    return verb()
    yield


def test_answers_have_the_bits_of_a_server_with_nobody_else(tmp_path):
    """More memories than slots, greedy and drawn, while others learn, forget and are made.

    TMEM_USERS, TMEM_QUESTIONS: how many memories there are, and how many questions each is asked.
    """
    users, questions = int(os.environ.get("TMEM_USERS", 6)), int(os.environ.get("TMEM_QUESTIONS", 8))
    names, others = [f"m{i}" for i in range(users)], [f"w{i}" for i in range(max(4, users // 10))]
    with store_at(tmp_path / "s", slots=max(3, users // 10)) as store:
        for name in (*names, *others):
            store.make(name)
        for name in names:
            store.learn(name, pairs(3, name))
        asked = [(name, f"what {i}?", (Sampling(), Sampling(1.0, 0.9, "k"))[i % 2])
                 for i in range(questions) for name in [*names, None]]  # fmt: skip
        engine = Engine(store, len(asked) + 10 * len(others), list)
        alone = [engine.submit(say(store, name, q, 12, how)).result(60) for name, q, how in asked]
        busy = []
        for i in range(4):
            for name in others:
                busy.append(engine.submit(Learn(Telling(name, pairs(2 + i, f"{i}")))))
                busy.append(engine.submit(Work(one(lambda name=name, i=i: store.learn(name, pairs(2, f"y{i}"))))))
        busy += [engine.submit(Work(one(lambda name=name: store.undo(name, 1)))) for name in others]
        together = [engine.submit(say(store, name, q, 12, how)) for name, q, how in asked]
        assert [job.result(600) for job in together] == alone
        for job in busy:
            job.result(600)
        engine.close()
    assert len({tuple(reply.generation.ids) for reply in alone}) > 8


def test_what_is_learned_beside_answers_has_the_bits_of_what_is_learned_alone(tmp_path):
    rows = {}
    for kind in ("alone", "beside"):
        with store_at(tmp_path / kind, slots=4) as store:
            for name in ("a", "b"):
                store.make(name)
            engine = Engine(store, 50, list)
            talk = [engine.submit(say(store, None, f"what {i}?", 40)) for i in range(20)] if kind == "beside" else []
            for name in ("a", "b"):
                engine.submit(Learn(Telling(name, pairs(5, name)))).result(60)
            for job in talk:
                job.result(60)
            engine.close()
            with store.using(["a", "b"]) as memories:
                rows[kind] = [store.agent.bank.param[m.row].clone() for m in memories]
    assert all((a == b).all() for a, b in zip(rows["alone"], rows["beside"]))


def test_a_memory_learns_between_its_answers_and_is_not_kept_from_it(tmp_path):
    """However many ask it: who learns was there first."""
    with store_at(tmp_path / "s", slots=2) as store:
        store.make("a")
        engine = Engine(store, 200, list)
        asked = [engine.submit(say(store, "a", most=20)) for _ in range(40)]
        learned = engine.submit(Learn(Telling("a", pairs(2, "x"))))
        asked += [engine.submit(say(store, "a", most=20)) for _ in range(40)]
        until(learned.done)
        left = sum(not job.done() for job in asked)
        for job in asked:
            job.result(60)
        engine.close()
    assert left > 20 and learned.result().kept


def test_a_memory_that_must_learn_again_does_so_before_it_answers(tmp_path):
    with store_at(tmp_path / "s") as store:
        store.make("a")
        store.learn("a", pairs(3, "x"))
        engine = Engine(store, 20, list)
        want = engine.submit(say(store, "a")).result(20)
        engine.close()
        with store._db.change():
            store._db.let_all_go()
    with store_at(tmp_path / "s") as store:
        engine = Engine(store, 20, list)
        found = [engine.submit(say(store, "a")) for _ in range(3)]
        assert [f.result(20) for f in found] == [want] * 3
        engine.close()
        assert store.log("a")[-1].row


def test_where_it_cannot_learn_again_who_asked_is_told(tmp_path, monkeypatch):
    with store_at(tmp_path / "s") as store:
        store.make("a")
        store.learn("a", pairs(3, "x"))
        with store._db.change():
            store._db.let_all_go()
    with store_at(tmp_path / "s") as store:
        monkeypatch.setattr(store, "_learn_again", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        engine = Engine(store, 20, list)
        with pytest.raises(OSError, match="disk is full"):
            engine.submit(say(store, "a")).result(20)
        engine.close()


class Late:
    """A condition that this thread gets a little later than it asks for it."""

    def __init__(self, condition):
        self.condition, self.slow = condition, threading.current_thread()

    def __getattr__(self, name):
        return getattr(self.condition, name)

    def __enter__(self):
        if threading.current_thread() is self.slow:
            time.sleep(0.02)
        return self.condition.__enter__()

    def __exit__(self, *error):
        return self.condition.__exit__(*error)


def test_nobody_is_lost_who_comes_while_others_are_let_in(tmp_path):
    with store_at(tmp_path / "s") as store:
        store.agent.chat.ends = frozenset()
        for name in "ab":
            store.make(name)
        engine = Engine(store, 200, list)
        engine._wake = Late(engine._wake)
        long = engine.submit(say(store, None, most=300))
        jobs = [engine.submit(say(store, None, most=2)) for _ in range(8)]
        jobs += [engine.submit(Learn(Telling(name, pairs(1, f"{i}")))) for i in range(4) for name in "ab"]
        for job in [*jobs, long]:
            job.result(30)
        engine.close()


def test_an_error_of_one_prompt_is_its_own(tmp_path):
    with store_at(tmp_path / "s") as store:
        store.make("a")
        engine = Engine(store, 20, list)
        bad = engine.submit(Say("a", lambda _: 1 / 0, lambda _: False, 8))
        missing = engine.submit(say(store, "nobody"))
        good = engine.submit(say(store, "a"))
        assert good.result(20).generation.ids
        with pytest.raises(ZeroDivisionError):
            bad.result(20)
        with pytest.raises(Missing):
            missing.result(20)
        engine.close()


def test_what_is_asked_of_memories_is_settled_together_as_it_is_alone(tmp_path, monkeypatch):
    """At a gain that half of the answers have."""
    learn = replace(SETTINGS.learn, reverse="Which question has {answer}?", epochs=60, lr=0.02)
    settings = replace(SETTINGS, learn=learn, adapter=replace(SETTINGS.adapter, rank=8, last_layers=4))
    with store_at(tmp_path / "s", slots=4, settings=settings) as store:
        agent, names = store.agent, "abcd"
        agent.chat.ends = frozenset()  # all end with the same step
        for name in names:
            store.make(name)
            store.learn(name, pairs(3, name))
        questions = [p.question for p in pairs(4, "a")]
        with store.using(names) as memories:
            slots = [memory.row for memory in memories]
            replies = [agent.say([agent.asked(q)], [slot], max_new=4)[0] for q, slot in zip(questions, slots)]
            middle = sorted(gains(agent, questions, [first_line(r.text) for r in replies], slots))[2]
            agent.config = replace(agent.config, answer=replace(agent.config.answer, gain=middle))
            alone = [agent.settled([q], [r], [slot])[0] for q, r, slot in zip(questions, replies, slots)]
        settled, calls, broken = agent.settled, [], [2]

        def counted(asked, *rest):
            calls.append(len(asked))
            if len(asked) in broken:
                raise RuntimeError("too many")
            return settled(asked, *rest)

        monkeypatch.setattr(agent, "settled", counted, raising=False)
        engine = Engine(store, 20, list)
        began, hold = threading.Event(), threading.Event()

        def held(_):  # so that all that follow wait for one pass
            began.set()
            assert hold.wait(20)
            return agent.chat.prompt("x")

        engine.submit(Say(None, held, lambda _: False, 1))
        assert began.wait(20)
        jobs = [engine.submit(asks(agent, name, q)) for name, q in zip(names, questions)]
        plain = engine.submit(asks(agent, "a", questions[0], asks=""))
        hold.set()
        assert [job.result(20).text for job in jobs] == alone and alone.count(settings.learn.unknown) == 2
        assert plain.result(20).text == replies[0].text and 4 in calls
        jobs = [engine.submit(asks(agent, name, q)) for name, q in zip(names[:2], questions)]  # settled each by itself
        assert [job.result(20).text for job in jobs] == alone[:2]
        store.take("a", "something that waits", source="")
        assert engine.submit(asks(agent, "a", questions[0])).result(20).text == replies[0].text
        engine.close()


def asks(agent, name, question, **other):
    prompt = agent.chat.prompt(agent.asked(question))
    return Say(name, lambda _: prompt, lambda _: False, 4, **{"asks": question, **other})


def test_an_error_of_a_step_is_everybodys_and_the_next_are_answered(tmp_path, monkeypatch):
    with store_at(tmp_path / "s") as store:
        store.agent.chat.ends = frozenset()
        engine, step, broken = Engine(store, 20, list), Decoding.step, [True]

        def fails(self):
            if broken and broken.pop():
                raise RuntimeError("out of memory")
            step(self)

        monkeypatch.setattr(Decoding, "step", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.submit(say(store, None)).result(20)
        assert len(engine.submit(say(store, None)).result(20).generation.ids) == 8 and engine.alive
        engine.close()


def test_what_several_memories_are_to_learn_is_learned_in_one_update(tmp_path, monkeypatch):
    """While something is learned requests to learn collect; two of one memory are two updates."""
    taught, began, hold = [], threading.Event(), threading.Event()
    with store_at(tmp_path / "s", slots=3) as store:
        teach = store.agent.teach

        def held(slots, *rest):
            if not began.is_set():
                began.set()
                hold.wait(20)
            taught.append(len(slots))
            return teach(slots, *rest)

        monkeypatch.setattr(store.agent, "teach", held)
        for name in "abcde":
            store.make(name)
        engine = Engine(store, 20, list)
        first = engine.submit(Learn(Telling("e", pairs(1, "e"))))
        began.wait(10)
        jobs = {i: engine.submit(Learn(Telling(name, pairs(1, f"{i}")))) for i, name in enumerate("aabcd")}
        lost = engine.submit(Learn(Telling("nobody", pairs(1, "x"))))
        cancelled = engine.submit(Learn(Telling("a", pairs(1, "y"))))
        cancelled.cancel()
        hold.set()
        assert [job.result(20).id for job in jobs.values()] == [1, 2, 1, 1, 1] and first.result(20).id == 1
        with pytest.raises(Missing):
            lost.result(20)
        engine.close()
        assert taught == [1, 3, 2], "of three slots: a, b and c, then a again and d"
        assert [p.question for p in store.pairs("a")] == [pairs(1, "0")[0].question, pairs(1, "1")[0].question]


def test_where_one_of_them_cannot_be_had_the_others_learn_by_themselves(tmp_path, monkeypatch):
    with store_at(tmp_path / "s") as store:
        store.make("a")
        store.make("b")
        engine, using = Engine(store, 20, list), store.using

        def broken(names, **how):
            if "b" in names:
                raise OSError("its row cannot be read")
            return using(names, **how)

        monkeypatch.setattr(store, "using", broken)
        jobs = [engine.submit(Learn(Telling(name, pairs(1, name)))) for name in "ab"]
        assert jobs[0].result(20).id == 1
        with pytest.raises(OSError, match="cannot be read"):
            jobs[1].result(20)
        engine.close()


def test_the_queue_is_bounded_and_what_nobody_waits_for_is_dropped():
    hold, engine = threading.Event(), Engine(NOBODY, 2, list)
    first = [engine.submit(Work(stuck(hold)), follows=True) for _ in range(WORKERS)]
    until(lambda: not engine.waiting)
    left = [engine.submit(Work(stuck(hold))) for _ in range(2)]
    with pytest.raises(Full) as full:
        engine.submit(Work(stuck(hold)))
    left.append(engine.submit(Work(stuck(hold)), follows=True))
    assert full.value.seconds >= 1
    for job in left:
        assert job.cancel()
    hold.set()
    assert [f.result(10) for f in first] == [1] * WORKERS
    engine.close()


def test_when_it_closes_nobody_waits_for_ever(tmp_path):
    with store_at(tmp_path / "s") as store:
        store.agent.chat.ends = frozenset()
        store.make("a")
        engine, begun = Engine(store, 20, list), threading.Event()
        jobs = [engine.submit(say(store, "a", most=400, tell=lambda _: begun.set())) for _ in range(3)]
        begun.wait(20)
        engine.close()
        assert all(job.cancelled() for job in jobs) and not engine.alive
        store.learn("a", pairs(1))  # it is free again


# tenants -----------------------------------------------------------------------------------------------------------------


def test_tenants_are_served_in_turns():
    jobs = [Work(iter(()), who=who) for who in "aaabba"]
    jobs[1].done.cancel()
    found = in_turns(jobs, Counter())
    assert [job.who for job in found] == ["a", "b", "a", "b", "a"] and found[0] is jobs[0] and found[2] is jobs[2]
    assert [job.who for job in in_turns(jobs, Counter("a"))] == ["b", "a", "b", "a", "a"]


def test_who_asks_much_is_not_before_who_asks_once(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "ROWS", 2)
    with store_at(tmp_path / "s") as store:
        store.agent.chat.ends = frozenset()
        engine, ended = Engine(store, 100, list), []
        jobs = [engine.submit(say(store, None, most=20), who="many/") for _ in range(20)]
        jobs.append(engine.submit(say(store, None, most=20), who="once/"))
        for i, job in enumerate(jobs):
            job.add_done_callback(lambda _, i=i: ended.append(i))
        for job in jobs:
            job.result(60)
        engine.close()
    assert ended.index(20) < 8


def test_one_tenant_does_not_fill_the_queue():
    hold, engine = threading.Event(), Engine(NOBODY, 6, list)
    jobs = [engine.submit(Work(stuck(hold)), who="a/", follows=True) for _ in range(WORKERS)]
    until(lambda: not engine.waiting)
    jobs += [engine.submit(Work(stuck(hold)), who="a/") for _ in range(3)]
    with pytest.raises(Full):
        engine.submit(Work(stuck(hold)), who="a/")
    jobs += [engine.submit(Work(stuck(hold)), who="b/") for _ in range(3)]
    with pytest.raises(Full):
        engine.submit(Work(stuck(hold)), who="c/")
    hold.set()
    assert [job.result(10) for job in jobs] == [1] * len(jobs)
    engine.close()
