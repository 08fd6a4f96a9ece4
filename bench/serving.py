"""Study `serve`: users of `tmem serve` over HTTP, against the straightforward server, and against the model without memories.

Two servers run, each in a process of its own, and take turns: tmem as `tmem serve` runs it, and bench/plain_server.py. The
third line of figures, base, is tmem's server asked without a memory. Its messages hold what a memory would be shown, so that
the prompts are the same, and its answers to questions are cut at the length of the right ones. Each user has facts of its own
and sends its next request when the one before is answered.

mixed    all users busy (closed loop), learning, asking and chatting: requests a second
answers  as many asks and chats again, without learning: what memories cost over base
arrivals Poisson arrivals (open loop), as many a second as LOAD of what the straightforward server does in `mixed` at this
         number of users: times from a request's arrival
beside   chats with one memory, alone and while another one learns without a pause: what a write adds to a token
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..agent.config import DEFAULT_PRESET, agent_config
from ..agent.renderings import worded
from ..models import loading
from ..models.chat import Chat
from ..report.figure import figure
from ..words import normalise
from . import servers, traffic
from .clients import Served, Way, drive, make
from .measure import WrongNumbers
from .traffic import Request

LOAD = 0.7
AIMS = {"mixed": 4.0, "answers": 1.25}
SAME = 0.8  # of the asks both servers answer alike, at least; and of tmem's right answers the other has as many
BESIDE = 4  # chats alone and beside writes


@dataclass
class Point:
    """What a server was asked in one phase, and how it went. seconds: of the whole phase."""

    server: str
    phase: str
    users: int
    found: list[Served]
    seconds: float


def time_serving(
    quick: bool, watch: Callable[[str, int, int], None], kept: Callable, *, users: Sequence[int] = (1, 4, 8, 16, 32),
    requests: int = 5, seed: int = 0, slots: int = 64,
) -> dict:  # fmt: skip
    """{"rows", "beside", "aims", "work"}: a row for every server, phase and number of users.

    users     how many there are, one point of the curve each; `arrivals` is at the one nearest to 8
    requests  of each user
    seed      of facts, turns and arrivals
    slots     of tmem's server
    Nothing is `kept`: times are compared within one run. Raises WrongNumbers where a request has not exactly one answer, or
    the servers heard or answered something else; ValueError where a package is missing.
    """
    if any(find_spec(name) is None for name in ("starlette", "uvicorn", "peft")):
        raise ValueError("bench serve needs starlette, uvicorn and peft: pip install 'tmem[serve]' peft.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    users, requests = ((1, 3), 3) if quick else (tuple(sorted(set(users))), requests)
    setup = servers.Setup(quick, slots, max(64, 2 * max(users)), torch.get_num_threads())
    total = 4 * (len(users) + 1)
    with ExitStack() as stack:
        watch("starting the servers", 0, total)
        run = {name: stack.enter_context(servers.running(name, setup)) for name in servers.NAMES}
        study = _Study(run, partial(watch, total=total), seed, requests)
        study.warm()
        for count in users:
            study.closed(count)
        study.opened(min(users, key=lambda count: abs(count - 8)))
        beside = [study.beside(name) for name in servers.NAMES]
        memory = {name: {k: v for k, v in running.about().items() if k != "heard"} for name, running in run.items()}
    same = alike(study.points)
    rows = [{"device": device, **row(point)} for point in study.points]
    work = {
        "model": "tiny, random" if quick else loading.DEFAULT, "preset": DEFAULT_PRESET, "requests": requests, "seed": seed,
        "slots": slots, "shares": traffic.SHARES, "pairs": traffic.PAIRS, "load": LOAD, "servers": memory, **same,
    }  # fmt: skip
    return {"rows": rows, "beside": beside, "aims": aims(rows, beside), "work": work}


class _Study:
    """The phases, one after another; their `points`."""

    def __init__(self, running: dict[str, servers.Running], watch: Callable[..., None], seed: int, requests: int):
        config = agent_config(DEFAULT_PRESET)
        chat = Chat(loading.load_tokenizer())

        def way(name: str, at: str, memories: bool) -> Way:
            return Way(
                name, running[at].url, memories, lambda q: worded(config.answer.asked, q, config.learn.unknown),
                lambda request: len(chat.answer(request.answer)),
            )  # fmt: skip

        self.running, self.watch, self.seed, self.requests = running, watch, seed, requests
        self.ways = {name: way(name, name, True) for name in servers.NAMES} | {"base": way("base", "tmem", False)}
        self.points: list[Point] = []
        self.done = 0

    def warm(self) -> None:
        """One user's requests, which are not counted."""
        plan = traffic.plan(1, self.requests, -1)
        for way in self.ways.values():
            make(way, ["warm-0"])
            drive(way, plan if way.memories else traffic.then(plan, -1), "warm")

    def closed(self, users: int) -> None:
        """`mixed` and `answers`; who begins changes with the number of users."""
        plan = traffic.plan(users, self.requests, self.seed)
        turn = 1 if len(self.points) % 8 else -1
        self._phase("mixed", ["tmem", "straightforward"][::turn], plan)
        self._phase("answers", ["tmem", "base"][::turn], traffic.then(plan, self.seed), again=True)

    def opened(self, users: int) -> None:
        """`arrivals`, at one rate for all."""
        plan = traffic.plan(users, self.requests, self.seed)
        plain = next(p for p in self.points if (p.server, p.phase, p.users) == ("straightforward", "mixed", users))
        rate = LOAD * len(plain.found) / plain.seconds
        self._phase("arrivals", ["tmem", "straightforward"], plan, traffic.arrivals(plan, rate, self.seed))

    def _phase(self, phase: str, names: Sequence[str], plan, times=None, again: bool = False) -> None:
        heard = {}
        tag = f"{'mixed' if again else phase}-{len(plan)}"
        for name in names:
            way, running = self.ways[name], self.running["tmem" if name == "base" else name]
            self.watch(f"{len(plan)} users, {phase}: {name}", self.done)
            if not again:
                make(way, [f"{tag}-{i}" for i in range(len(plan))])
            running.about()
            began = time.perf_counter()
            found = drive(way, plan, tag, times)
            seconds = max(s.done for s in found) - began
            heard[name] = running.about()["heard"]
            checked(name, plan, found, began)
            self.points.append(Point(name, phase, len(plan), found, seconds))
            self.done += 1
        same_requests(plan, heard)

    def beside(self, name: str) -> dict:
        """Gaps between a stream's pieces and the time to its first, alone and beside writes; and a write's optimizer step."""
        self.watch(f"beside a write: {name}", self.done)
        self.done += 1
        way, running = self.ways[name], self.running[name]
        (learn, *_), (again, *_) = (traffic.plan(1, self.requests, self.seed + i)[0] for i in (1, 2))
        chats = [r for r in traffic.plan(1, traffic.MOST, self.seed)[0] if r.kind == "chat"][:BESIDE]
        make(way, ["alone-0", "beside-0", "writes-0", "step-0"])
        before = running.about()["steps"]
        write = drive(way, [[learn]], "step")[0]
        step = (write.done - write.due) / max(1, running.about()["steps"] - before)
        alone = drive(way, [chats], "alone")
        ended = threading.Event()
        written: list[Served] = []
        writer = threading.Thread(target=_write_on, args=(way, again, ended, written))
        writer.start()
        try:
            found = drive(way, [chats], "beside")
        finally:
            ended.set()
            writer.join()
        out = {"server": name, "step": step, "write": write.done - write.due, "writes": len(written)}
        for where, some in (("alone", alone), ("beside", found)):
            out[where] = {"gap": percentiles(gaps(some)), "first": percentiles(firsts(some))}
        return out


def _write_on(way: Way, request: Request, ended: threading.Event, written: list[Served]) -> None:
    """Teach the same pairs again and again, so that every write is as long."""
    while not ended.is_set():
        written += drive(way, [[request]], "writes")


# what was found -----------------------------------------------------------------------------------------------------------


def checked(name: str, plan: Sequence[Sequence[Request]], found: Sequence[Served], began: float) -> None:
    """Raises WrongNumbers unless every request was answered once, after it was due, and the pieces of a stream in order."""
    expected = [r for requests in plan for r in requests]
    if [s.request for s in found] != expected:
        raise WrongNumbers(f"bench serve: {name} answered {len(found)} requests of {len(expected)}; nothing is reported.")
    for s in found:
        times = [began, s.due, *s.pieces, s.done]
        if times != sorted(times) or not all(map(math.isfinite, times)):
            raise WrongNumbers(f"bench serve: {name} answered a request before it was sent; nothing is reported.")
        if s.request.kind == "chat" and not (s.prompt and s.tokens and bool(s.text) == bool(s.pieces)):
            raise WrongNumbers(f"bench serve: {name} did not say how long a chat was; nothing is reported.")


def same_requests(plan: Sequence[Sequence[Request]], heard: dict[str, list[str]]) -> None:
    """Raises WrongNumbers unless each server heard every request of the plan once, and those with memories the same ones."""
    count = sum(map(len, plan))
    if any(len(h) != count for h in heard.values()):
        numbers = ", ".join(f"{name} {len(h)}" for name, h in heard.items())
        raise WrongNumbers(f"bench serve: of {count} requests there came: {numbers}; nothing is reported.")
    if len({tuple(h) for name, h in heard.items() if name != "base"}) > 1:
        raise WrongNumbers("bench serve: the servers were asked different things; nothing is reported.")


def alike(points: Sequence[Point]) -> dict:
    """Which share of the asks both servers answer alike, and which of each is right. Raises WrongNumbers where the
    straightforward server learned less, or a prompt had other tokens."""
    by = {(p.server, p.phase, p.users): p.found for p in points}
    same, right, prompts = [], {"tmem": [], "straightforward": []}, []
    for (server, phase, users), found in by.items():
        if server == "tmem":
            for other in ("straightforward", "base"):
                for a, b in zip(found, by.get((other, phase, users), [])):
                    prompts += [a.prompt == b.prompt] if a.request.kind == "chat" and b.request.kind == "chat" else []
            for a, b in zip(found, by.get(("straightforward", phase, users), [])):
                if a.request.kind == "ask":
                    same.append(normalise(a.text) == normalise(b.text))
                    right["tmem"].append(is_right(a))
                    right["straightforward"].append(is_right(b))
    if not all(prompts):
        raise WrongNumbers("bench serve: the servers showed their models different prompts; nothing is reported.")
    share = {name: sum(r) / len(r) for name, r in right.items()}
    if sum(same) < SAME * len(same) or share["straightforward"] < SAME * share["tmem"]:
        raise WrongNumbers(
            f"bench serve: {sum(same)} of {len(same)} asks were answered alike, and right by tmem {share['tmem']:.2f}, by the "
            f"straightforward server {share['straightforward']:.2f}; expected {SAME} or more, nothing is reported."
        )
    return {"alike": sum(same) / len(same), "right": share, "asks": len(same)}


def is_right(served: Served) -> bool:
    """Whether an ask was answered with what was told."""
    return normalise(served.text) == normalise(served.request.answer)


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99 in seconds, each the least value that as many are not above; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {f"p{p}": ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in (50, 95, 99)}


def gaps(found: Sequence[Served]) -> list[float]:
    """Seconds between the pieces of streams."""
    return [b - a for s in found for a, b in zip(s.pieces, s.pieces[1:])]


def firsts(found: Sequence[Served]) -> list[float]:
    """Seconds until the first piece of streams."""
    return [s.pieces[0] - s.due for s in found if s.pieces]


def until_known(found: Sequence[Served]) -> list[float]:
    """Seconds from when a fact is sent until it is answered right for the first time, of every fact that is."""
    told: dict[tuple[int, str], float] = {}
    out = []
    for s in found:
        for pair in s.request.pairs:
            told[s.request.user, pair.question] = s.due
        if s.request.kind == "ask" and is_right(s) and (at := told.pop((s.request.user, s.request.text), None)) is not None:
            out.append(s.done - at)
    return out


def row(point: Point) -> dict[str, Any]:
    """A point as JSON. Times are in seconds; tokens are those of chats."""
    found = point.found
    chats, asks = ([s for s in found if s.request.kind == kind] for kind in ("chat", "ask"))
    totals = {kind: percentiles([s.done - s.due for s in found if s.request.kind == kind]) for kind in traffic.SHARES}
    return {
        "server": point.server, "phase": point.phase, "users": point.users, "requests": len(found), "seconds": point.seconds,
        "a_second": len(found) / point.seconds, "tokens": sum(s.tokens for s in chats), "first": percentiles(firsts(chats)),
        "gap": percentiles(gaps(chats)), "total": {k: v for k, v in totals.items() if v}, "asks": len(asks),
        "right": sum(map(is_right, asks)), "until_known": percentiles(until_known(found)),
    }  # fmt: skip


def aims(rows: Sequence[dict], beside: Sequence[dict]) -> list[dict]:
    """What was aimed at, at the largest number of users."""
    most = max(r["users"] for r in rows)
    seconds = {(r["server"], r["phase"]): r["seconds"] for r in rows if r["users"] == most}
    faster = seconds["straightforward", "mixed"] / seconds["tmem", "mixed"]
    cost = seconds["tmem", "answers"] / seconds["base", "answers"]
    ours = beside[0]
    added = {what: ours["beside"][what]["p95"] - ours["alone"][what]["p95"] for what in ("gap", "first") if ours["alone"][what]}
    out = [
        {"work": f"{most} users: requests a second over the straightforward server", "aim": f"≥ {AIMS['mixed']:.2f}x",
         "reached": faster, "met": faster >= AIMS["mixed"]},
        {"work": f"{most} users, without learning: time over the model without memories", "aim": f"≤ {AIMS['answers']:.2f}x",
         "reached": cost, "met": cost <= AIMS["answers"]},
    ]  # fmt: skip
    words = {
        "gap": "p95 delay of a token beside another memory's writes, over one learning step",
        "first": "the same of a first token",
    }
    for what, value in added.items():
        reached = max(0.0, value) / ours["step"]
        out.append({"work": words[what], "aim": "≤ 1.00x", "reached": reached, "met": reached <= 1.0})
    return out


# what a person sees -------------------------------------------------------------------------------------------------------


def tables(found: dict) -> list[Table]:
    """Requests a second over users, times of `arrivals`, and what a write adds."""
    return [_throughput(found), _latency(found), _beside(found)]


def _table(title: str, *columns: str, caption: str = "") -> Table:
    table = Table(title="\n" + title, title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  caption=caption, caption_justify="left", caption_style="")  # fmt: skip
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _throughput(found: dict) -> Table:
    work, speed = found["work"], _speeds(found)
    table = _table(
        f"requests a second, all users busy, {work['model']}", "users", "tmem", "plain", "ratio", "tmem, no learning", "base",
        "cost",
        caption=f"right answers: tmem {work['right']['tmem']:.0%}, straightforward {work['right']['straightforward']:.0%} of "
        f"{work['asks']}; answered alike: {work['alike']:.0%}",
    )  # fmt: skip
    for users in sorted({r["users"] for r in found["rows"]}):
        mixed, answers, base = speed["tmem", "mixed", users], speed["tmem", "answers", users], speed["base", "answers", users]
        plain = speed["straightforward", "mixed", users]
        table.add_row(str(users), f"{mixed:.2f}", f"{plain:.2f}", f"{mixed / plain:.1f}x", f"{answers:.2f}", f"{base:.2f}",
                      f"{base / answers:.2f}x")  # fmt: skip
    return table


def _speeds(found: dict) -> dict[tuple[str, str, int], float]:
    return {(r["server"], r["phase"], r["users"]): r["a_second"] for r in found["rows"]}


def _latency(found: dict) -> Table:
    rows = [r for r in found["rows"] if r["phase"] == "arrivals"]
    table = _table(
        f"{rows[0]['users']} users, Poisson arrivals, {LOAD:.0%} of the plain server's rate: seconds, p50 / p95 / p99",
        "server", "first token", "chat", "ask", "learn", "until known",
    )  # fmt: skip
    for r in rows:
        some = (r["first"], *(r["total"].get(kind) for kind in ("chat", "ask", "learn")), r["until_known"])
        table.add_row(r["server"], *map(_three, some))
    return table


def _three(some: dict | None) -> str:
    return "none" if some is None else " / ".join(f"{v:.2f}" for v in some.values())


def _beside(found: dict) -> Table:
    table = _table(
        "a chat alone and beside another memory's writes: seconds, p95", "server", "gap", "beside", "first", "beside",
        "a write", "a step",
    )  # fmt: skip
    for r in found["beside"]:
        times = [r[where][what] for what in ("gap", "first") for where in ("alone", "beside")]
        table.add_row(
            r["server"], *(f"{t['p95']:.3f}" if t else "none" for t in times), f"{r['write']:.2f}", f"{r['step']:.3f}"
        )
    return table


def draw(found: dict, beside: Path) -> list[Path]:
    """Beside `x.json`: x-users.png, requests a second over users, and the times of `arrivals`."""
    path = beside.with_name(f"{beside.stem}-users.png")
    with figure(path, (9.5, 3.6)) as picture:
        curve, bars = picture.subplots(1, 2)
        styles = {("tmem", "mixed"): "tmem", ("straightforward", "mixed"): "straightforward",
                  ("tmem", "answers"): "tmem, no learning", ("base", "answers"): "no memories, no learning"}  # fmt: skip
        for i, ((server, phase), label) in enumerate(styles.items()):
            points = sorted((r["users"], r["a_second"]) for r in found["rows"] if (r["server"], r["phase"]) == (server, phase))
            curve.plot(*zip(*points), marker=".", label=label, color=f"C{i % 2 if phase == 'mixed' else i}",
                       linestyle="-" if phase == "mixed" else ":")  # fmt: skip
        curve.set(
            xlabel="users, all busy", ylabel="requests a second", title=f"throughput, {found['work']['model']}", ylim=(0, None)
        )
        curve.legend(fontsize=8)
        rows = [r for r in found["rows"] if r["phase"] == "arrivals"]
        kinds = ("first", "chat", "ask", "learn")
        for i, r in enumerate(rows):
            times = [r["first"], *(r["total"].get(kind) for kind in kinds[1:])]
            drawn = bars.bar(
                [k + 0.4 * i - 0.2 for k in range(4)], [t["p95"] if t else 0 for t in times], 0.38, label=r["server"]
            )
            bars.bar_label(drawn, [f"{t['p95']:.2g}" if t else "" for t in times], fontsize=7)
        bars.set_xticks(range(4), ["first token", "chat", "ask", "learn"])
        bars.set(ylabel="seconds, p95", title=f"{rows[0]['users']} users, Poisson arrivals")
        bars.legend(fontsize=8)
    return [path]
