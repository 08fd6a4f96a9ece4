"""What the users of a server ask for: facts of their own, who asks what in which order, and when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..episode import Pair
from ..tasks import stream

SHARES = {"learn": 0.2, "ask": 0.4, "chat": 0.4}
PAIRS = 3  # that one request teaches
CHAT_TOKENS = 16  # of a chat's answer, at most
TOPICS = (
    "bread", "rain", "trains", "chess", "bees", "tea", "maps", "clocks", "salt", "rivers", "kites", "paper", "owls", "glass",
    "snow", "bridges", "soap", "tides", "wool", "ink",
)  # fmt: skip
MOST = 20  # requests of a user: what it says in chats must fit the preset's window, beyond which a memory writes


@dataclass(frozen=True)
class Request:
    """One request of a user.

    kind    "learn", "ask" or "chat"
    pairs   that are to be learned
    text    the question of an ask, the message of a chat
    answer  what is right for an ask
    before  what the user said in earlier chats, which is shown with every prompt until it is learned
    """

    user: int
    kind: str
    pairs: tuple[Pair, ...] = ()
    text: str = ""
    answer: str = ""
    before: tuple[str, ...] = ()


def plan(users: int, requests: int, seed: int) -> list[list[Request]]:
    """The requests of each user in their order. The first teaches, the kinds of the others are shuffled. An ask is for a fact
    that was told before, one that was not asked for yet where there is one."""
    return [_of_user(user, requests, f"{seed}/{user}") for user in range(users)]


def _of_user(user: int, requests: int, key: str) -> list[Request]:
    draw, learns = random.Random(key), max(1, round(SHARES["learn"] * requests))
    asks = round(SHARES["ask"] * requests)
    kinds = ["learn"] * (learns - 1) + ["ask"] * asks + ["chat"] * (requests - learns - asks)
    draw.shuffle(kinds)
    facts, topics = iter(_facts(key, PAIRS * learns)), iter(draw.sample(TOPICS, len(TOPICS)))
    told: list[Pair] = []
    fresh: list[Pair] = []
    said: list[str] = []
    out = []
    for kind in ["learn", *kinds]:
        if kind == "learn":
            pairs = tuple(next(facts) for _ in range(PAIRS))
            told, fresh = [*told, *pairs], [*fresh, *pairs]
            out.append(Request(user, kind, pairs))
        elif kind == "ask":
            fact = fresh.pop() if fresh else draw.choice(told)
            out.append(Request(user, kind, text=fact.question, answer=fact.answer, before=tuple(said)))
        else:
            text = _chat(next(topics))
            out.append(Request(user, kind, text=text, before=tuple(said)))
            said.append(text)
    return out


def _facts(key: str, count: int) -> list[Pair]:
    """Pairs of episodes, each question once."""
    found: dict[str, Pair] = {}
    number = 0
    while len(found) < count:
        for pairs in stream.episode(f"serve/{key}/{number}", "train", 1).pairs:
            for pair in pairs:
                found.setdefault(pair.question, pair)
        number += 1
    return list(found.values())[:count]


def then(plan: Sequence[Sequence[Request]], seed: int) -> list[list[Request]]:
    """As many asks and chats again, after those of a plan: of the same facts, on other topics."""
    return [_then(requests, random.Random(f"{seed}/{user}/then")) for user, requests in enumerate(plan)]


def _then(requests: Sequence[Request], draw: random.Random) -> list[Request]:
    kinds = [r.kind for r in requests if r.kind != "learn"]
    draw.shuffle(kinds)
    told = [pair for r in requests for pair in r.pairs]
    said = [r.text for r in requests if r.kind == "chat"]
    topics = iter([text for text in map(_chat, TOPICS) if text not in said])
    out = []
    for kind in kinds:
        fact = draw.choice(told)
        if kind == "ask":
            out.append(Request(requests[0].user, kind, text=fact.question, answer=fact.answer, before=tuple(said)))
        else:
            out.append(Request(requests[0].user, kind, text=next(topics), before=tuple(said)))
            said.append(out[-1].text)
    return out


def _chat(topic: str) -> str:
    return f"Tell me about {topic} in a few sentences."


def arrivals(plan: Sequence[Sequence[Request]], rate: float, seed: int) -> list[list[float]]:
    """When each request of a plan comes, in seconds from the start: a Poisson process of `rate` requests a second over all
    users, whose turns are shuffled."""
    draw = random.Random(f"{seed}/arrivals")
    turns = [user for user, requests in enumerate(plan) for _ in requests]
    draw.shuffle(turns)
    times: list[list[float]] = [[] for _ in plan]
    now = 0.0
    for user in turns:
        now += draw.expovariate(rate)
        times[user].append(now)
    return times
