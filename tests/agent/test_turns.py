"""Talk and work on one model: who has which turn."""

import threading
import time
from types import SimpleNamespace

import pytest
from wrong import turns_of_whoever_comes

import tmem.agent.turns as turns_module
from tmem.agent.turns import Turns, turn


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on where a step says so. Steps of talk take 10, steps of work 30."""
    now = [0]
    monkeypatch.setattr(turns_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def went(turns, clock, workers=1, steps=12):
    """Whose steps followed each other while both had something to do."""
    order, ended = [], threading.Event()

    def step(name, took):
        with turn():
            order.append(name)
            clock[0] += took
            time.sleep(0.002)

    def talks():
        turns.talks()
        turns.talking = True
        while not ended.is_set():
            step("talk", 10)
        turns.silent()

    def works(name):
        turns.works()
        for _ in range(steps):
            step(name, 30)

    threads = [threading.Thread(target=works, args=(f"work {i}",)) for i in range(workers)]
    talker = threading.Thread(target=talks)
    talker.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ended.set()
    talker.join(60)
    return order


def talk_between(order):
    """How many steps of talk lie between two of work, each time."""
    at = [i for i, name in enumerate(order) if name != "talk"]
    return [b - a - 1 for a, b in zip(at, at[1:])]


def test_talk_waits_for_one_step_of_work_and_then_has_as_much_time(clock):
    assert min(talk_between(went(Turns(), clock))) >= 3
    wrong = talk_between(went(turns_of_whoever_comes.Turns(), clock))
    assert min(wrong) < 3, "the wrong implementation is caught"


def test_those_that_work_follow_each_other(clock):
    order = went(Turns(), clock, workers=3)
    assert min(talk_between(order)) >= 3
    middle = [name for name in order if name != "talk"][3:-6]
    assert all(len({a, b, c}) == 3 for a, b, c in zip(middle, middle[1:], middle[2:]))


def test_work_does_not_wait_for_who_has_nothing_to_say():
    turns, done = Turns(), []

    def works():
        turns.works()
        for _ in range(5):
            with turn():
                time.sleep(0.02)
            done.append(1)

    thread = threading.Thread(target=works)
    thread.start()
    thread.join(5)
    assert len(done) == 5


def test_a_step_within_a_step_is_part_of_it_and_an_error_ends_the_turn():
    turns, seen = Turns(), []

    def talks():
        turns.talks()
        with turn(), turn():
            seen.append("within")
        try:
            with turn():
                raise KeyError
        except KeyError:
            pass
        with turn():
            seen.append("after")

    thread = threading.Thread(target=talks)
    thread.start()
    thread.join(5)
    assert seen == ["within", "after"]


def test_a_thread_that_takes_no_part_does_not_wait():
    with Turns()._talk():
        with turn():
            pass
