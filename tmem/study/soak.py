"""Study `soak`: many writes into one memory. What is forgotten, and when; what is said of changed facts, and where no text
answers; what it costs.

A chain is one long episode: conversations of the stream task, one after another, between people of whom no two conversations
have any in common. Every session is one write of its gold pairs, with rehearsal, as the episode loop does it; what the model
would write by itself is left out, so that only learning is judged. All chains learn at once, a slot each. After 1, 2, 4, 8, ...
writes every pair that is still true is asked for; settings of [learn] are compared on the same chains.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..agent.agent import Agent
from ..agent.config import DEFAULT_PRESET, LearnConfig, agent_config, build, tomllib
from ..agent.teach import Lesson
from ..episode import Pair, Question
from ..models import loading
from ..models.tiny import default_or_tiny
from ..report.figure import figure
from ..rl import neutral
from ..stats import bootstrap
from ..tasks import metrics, stream

DIFFICULTY = 2  # sessions of five pairs, two changes of mind in a conversation
WAYS = ("taught", "plain", "oblique")
STRANGERS = 2  # questions that no text answers, per write
BATCH = 128  # questions decoded at once
BINS = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31))  # writes since: from, to


@dataclass(frozen=True)
class Fact:
    """One gold pair, with the questions about it: as taught, in other words, obliquely, and the same about `stranger`, who
    takes part in the conversation and never says it."""

    person: str
    topic: str
    part: str
    answers: tuple[str, ...]
    taught: str
    plain: str
    oblique: str
    stranger: str

    @property
    def about(self) -> tuple[str, str, str]:
        return self.topic, self.part, self.person


Chain = tuple[tuple[Fact, ...], ...]


def chain(seed: int, writes: int, split: str = "dev") -> Chain:
    """What each of `writes` sessions states. Raises ValueError where the names of the split do not suffice."""
    language, level = stream.language_of(split), stream.DIFFICULTIES[DIFFICULTY]
    most = len(language.names) // level.people[1] * level.sessions
    if not 1 <= writes <= most:
        raise ValueError(f"bench soak: {split} has names for 1 to {most} writes, got {writes}.")
    rng, met, out = random.Random(f"soak/{split}/{seed}"), set(), []
    tried = 0
    while len(out) < writes:
        episode = stream.episode(f"soak-{seed}-{tried}", split, DIFFICULTY, questions=0)
        tried += 1
        script = stream.script_of(episode)
        if met.isdisjoint(script.people):
            met.update(script.people)
            out += _sessions(rng, script, episode.pairs, language)
    return tuple(out[:writes])


def _sessions(rng: random.Random, script, pairs: Sequence[Sequence[Pair]], language) -> list[tuple[Fact, ...]]:
    said = {(s.topic, s.person) for session in script.sessions for s in session}
    out = []
    for session, taught in zip(script.sessions, pairs, strict=True):
        parts = [(s, part, value) for s in session for part, value in s.parts()]
        facts = []
        for (s, part, value), pair in zip(parts, taught, strict=True):
            topic = language.topics[s.topic]
            plain, oblique = (topic.plain, topic.ask) if part == "value" else (topic.plain_date, topic.ask_date)
            plain, oblique = rng.choice(plain), rng.choice(oblique)
            stranger = rng.choice([p for p in script.people if (s.topic, p) not in said])
            facts.append(Fact(
                s.person, s.topic, part, stream.spellings(part, value), pair.question, plain.format(name=s.person),
                oblique.format(name=s.person), plain.format(name=stranger),
            ))  # fmt: skip
        out.append(tuple(facts))
    return out


def soak(
    agent: Agent,
    chains: int | Sequence[Chain],
    writes: int,
    *,
    split: str = "dev",
    watch: Callable[[int], None] = lambda done: None,
    **learning,
) -> list[dict]:
    """Let `chains` memories (a number, or what they are taught) learn `writes` writes; a row for each of them after 1, 2, 4, 8,
    ... and all writes.

    learning  settings that differ from `agent.config.learn`, such as rehearse=0; watch(writes done)
    A row has chain, after (writes); asked, pairs still true and how many were told as `WAYS` ask them, by age in writes:
    [{"age", "pairs", "taught", "plain", "oblique"}]; swapped, the share of the plain questions that got another person's value;
    updates, of the facts changed so far how many say {"new", "stale", "mixed", "other"}; never, of questions that no text
    answers how many say {"unknown", "intruded" (a value of somebody), "other"}; nll, of neutral text (nats per token);
    norm, ‖ΔW‖_F; undone, writes rolled back so far; loss, of the last write; seconds, of the last write (an equal share of
    what all chains took).
    Raises RuntimeError if the bank has not one free slot more than there are chains, ValueError for an unknown setting.
    """
    agent = dataclasses.replace(agent, config=dataclasses.replace(agent.config, learn=_changed(agent.config.learn, learning)))
    if isinstance(chains, int):
        chains = [chain(seed, writes, split) for seed in range(chains)]
    lessons = [Lesson() for _ in chains]
    undone, rows = [0] * len(chains), []
    with agent.bank.borrowed(len(chains)) as slots:
        for done in range(1, writes + 1):
            new = [[Pair(f.taught, f.answers[0]) for f in told[done - 1]] for told in chains]
            start = time.perf_counter()
            results = agent.teach(slots, new, lessons)
            seconds = (time.perf_counter() - start) / len(chains)
            undone = [n + (not result.kept) for n, result in zip(undone, results)]
            if done in counts(writes):
                found = _examined(agent, [told[:done] for told in chains], slots)
                for i, (row, result, slot) in enumerate(zip(found, results, slots)):
                    delta = agent.bank.snapshot(slot, optimizer=False)
                    rows.append({
                        "chain": i, "after": done, **row, "nll": neutral.nll(agent, delta), "norm": agent.bank.delta_norm(slot),
                        "undone": undone[i], "loss": result.loss_after, "seconds": seconds,
                    })  # fmt: skip
            watch(done)
    return rows


def counts(writes: int) -> list[int]:
    """After how many writes is asked: powers of two, and the last."""
    return sorted({1 << i for i in range(writes.bit_length())} | {writes})


def _changed(config: LearnConfig, changes: Mapping) -> LearnConfig:
    return build(LearnConfig, {**dataclasses.asdict(config), **changes}, "learn")


def _examined(agent: Agent, chains: Sequence[Chain], slots: Sequence[int]) -> list[dict]:
    """Per chain the part of its row that follows from answers."""
    asked: list[tuple[int, str]] = []
    for told, slot in zip(chains, slots):
        for fact in _true(told).values():
            asked += [(slot, getattr(fact[1], way)) for way in WAYS]
        asked += [(slot, fact.stranger) for fact in _strangers(told)]
    said: list[str] = []
    for at in range(0, len(asked), BATCH):
        part = asked[at : at + BATCH]
        said += agent.answer([q for _, q in part], [s for s, _ in part])
    found = iter(said)
    return [_judged(told, found) for told in chains]


def _true(told: Chain) -> dict[tuple[str, str, str], tuple[int, Fact]]:
    """What holds after all that was told, by what it is about: the write that said it last, and what it said."""
    return {fact.about: (write, fact) for write, facts in enumerate(told) for fact in facts}


def _strangers(told: Chain) -> list[Fact]:
    return [fact for facts in told for fact in facts[:STRANGERS]]


def _judged(told: Chain, said) -> dict:
    values: dict[tuple[str, str], dict[str, list[tuple[str, ...]]]] = {}  # topic and part: person: spellings, oldest first
    for facts in told:
        for f in facts:
            values.setdefault((f.topic, f.part), {}).setdefault(f.person, []).append(f.answers)
    ages = {age: {"age": age, "pairs": 0, **dict.fromkeys(WAYS, 0)} for age in range(len(told))}
    updates = dict.fromkeys(("new", "stale", "mixed", "other"), 0)
    never = dict.fromkeys(("unknown", "intruded", "other"), 0)
    swapped = []
    for write, fact in _true(told).values():
        row = ages[len(told) - 1 - write]
        row["pairs"] += 1
        others = {v for p, olds in values[fact.topic, fact.part].items() if p != fact.person for old in olds for v in old}
        question = Question("", "", fact.answers, "", tuple(others.difference(fact.answers)))
        for way in WAYS:
            words = next(said)
            row[way] += int(metrics.em(words, question))
            if way == "plain":
                swapped.append(metrics.intrusion(words, question))
                if olds := values[fact.topic, fact.part][fact.person][:-1]:
                    updates[updated(words, fact.answers[0], [old[0] for old in olds])] += 1
    for fact in _strangers(told):
        everybody = tuple(v for olds in values[fact.topic, fact.part].values() for old in olds for v in old)
        question, words = Question("", "", (stream.UNKNOWN,), "", everybody), next(said)
        never["unknown" if metrics.em(words, question) else "intruded" if metrics.intrusion(words, question) else "other"] += 1
    return {"asked": [r for r in ages.values() if r["pairs"]], "swapped": statistics.fmean(swapped),
            "updates": updates, "never": never}  # fmt: skip


def updated(said: str, new: str, olds: Sequence[str]) -> str:
    """What an answer to a changed fact is: "new"; "stale": an old value in full; "mixed": words of both; else "other"."""
    words, now = set(metrics.normalise(said).split()), set(metrics.normalise(new).split())
    past = [set(metrics.normalise(old).split()) for old in olds]
    if metrics.normalise(said) == metrics.normalise(new):
        return "new"
    if words & now.difference(*past) and any(words & (old - now) for old in past):
        return "mixed"
    return "stale" if any(old <= words for old in past) else "other"


# the study ------------------------------------------------------------------------------------------------------------


def compare_settings(
    quick: bool,
    watch: Callable[[str, int, int], None],
    kept: Callable[[str, Callable[[], list]], list],
    *,
    preset: str = DEFAULT_PRESET,
    settings: Sequence[str] = (),
    chains: int = 6,
    writes: int = 24,
    split: str = "dev",
) -> dict:
    """{"rows", "work"}: the rows of `soak`, each with its setting.

    settings  each what it changes of the preset's [learn], as in TOML, separated by commas ("rehearse=0,lr=0.02"); none: no
              and little rehearsal, half and a quarter of the learning rate. The preset itself always comes first.
    `kept`: see bench.study; a setting is one part. Raises ValueError for what is no setting.
    """
    config = agent_config(preset)
    if quick:
        config = dataclasses.replace(config, learn=dataclasses.replace(config.learn, epochs=2))
        chains, writes = min(chains, 2), min(writes, 3)
    lr = config.learn.lr
    given = {_name(s): parsed(s) for s in settings or ("rehearse=0", "rehearse=16", f"lr={lr / 2:g}", f"lr={lr / 4:g}")}
    for changes in given.values():
        _changed(config.learn, changes)
    lessons = [chain(seed, writes, split) for seed in range(chains)]
    todo = {preset: {}, **given}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = loading.default_dtype(device)
    model, tokenizer = default_or_tiny(quick, device, dtype)
    agent = Agent.build(model, tokenizer, config, slots=chains + 1)
    rows = []
    for i, (name, changes) in enumerate(todo.items()):

        def told(done: int, i: int = i, name: str = name) -> None:
            watch(f"{name}: write {min(done + 1, writes)} of {writes}", i * writes + done, len(todo) * writes)

        told(0)
        key = repr((quick, str(dtype), config.adapter, _changed(config.learn, changes), config.answer, chains, writes, split))
        rows += [{"setting": name, **row} for row in kept(key, functools.partial(
            soak, agent, lessons, writes, watch=told, **changes))]  # fmt: skip
    work = {
        "model": "tiny, random" if quick else loading.DEFAULT, "dtype": str(dtype).removeprefix("torch."), "preset": preset,
        "split": split, "chains": chains, "writes": writes, "nll": neutral.nll(agent),
        "settings": {name: dataclasses.asdict(_changed(config.learn, changes)) for name, changes in todo.items()},
    }  # fmt: skip
    return {"rows": rows, "work": work}


def parsed(setting: str) -> dict:
    """A dictionary of TOML assignments separated by commas, `rehearse=0,lr=0.02`. Raises ValueError for anything else."""
    try:
        return tomllib.loads(setting.replace(",", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"bench soak: expected a setting such as rehearse=0,lr=0.02, got {setting!r}.") from error


def _name(setting: str) -> str:
    return setting.replace("=", " ").replace(",", ", ")


# what a person sees ---------------------------------------------------------------------------------------------------


def recalled(rows: Sequence[dict], way: str, ages: tuple[int, int] | None = None) -> tuple[float, float, float] | None:
    """(mean, low, high) of the share of pairs told right, over chains; only those of `ages`, from and to. None: no pairs."""
    values, clusters = [], []
    for r in rows:
        mine = [a for a in r["asked"] if ages is None or ages[0] <= a["age"] <= ages[1]]
        right, pairs = sum(a[way] for a in mine), sum(a["pairs"] for a in mine)
        values += [1.0] * right + [0.0] * (pairs - right)
        clusters += [r["chain"]] * pairs
    return bootstrap(values, clusters) if values else None


def _table(title: str, *columns: str) -> Table:
    table = Table(title="\n" + title, title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    table.caption_justify = "left"
    return table


def _of(found: dict, setting: str, after: int) -> list[dict]:
    return [r for r in found["rows"] if (r["setting"], r["after"]) == (setting, after)]


def tables(found: dict) -> list[Table]:
    work = found["work"]
    names, after = list(work["settings"]), counts(work["writes"])
    about = f"{work['model']}, {work['dtype']}, {work['chains']} chains of {work['split']}"
    growing = _table(f"recall in other words of all that is still true, after so many writes: {about}", "setting",
                     *map(str, after))  # fmt: skip
    aging = _table(f"the same after {work['writes']} writes, by age: writes since", "setting", *map(_label, _bins(work)))
    for name in names:
        shares = [recalled(_of(found, name, n), "plain") for n in after]
        growing.add_row(name, *(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in shares))
        shares = [recalled(_of(found, name, after[-1]), "plain", ages) for ages in _bins(work)]
        aging.add_row(name, *("" if share is None else f"{share[0]:.2f}" for share in shares))
    growing.caption = "[95 % interval by bootstrap over chains]"
    asked = _table(f"after {work['writes']} writes: recall by way of asking, and what it costs",
                   "setting", "taught", "in other words", "oblique", "another's", "nll", "‖ΔW‖", "undone", "s")  # fmt: skip
    beside = _table(f"after {work['writes']} writes: what is said of what changed, and where no text answers",
                    "setting", "new", "stale", "mixed", "other", "unknown", "someone's", "other")  # fmt: skip
    for name in names:
        rows = _of(found, name, after[-1])
        asked.add_row(name, *(f"{recalled(rows, way)[0]:.2f}" for way in WAYS), f"{_mean(rows, 'swapped'):.2f}",
                      f"{_mean(rows, 'nll') - work['nll']:+.2f}", f"{_mean(rows, 'norm'):.0f}", f"{_mean(rows, 'undone'):.1f}",
                      f"{_mean(rows, 'seconds'):.1f}")  # fmt: skip
        beside.add_row(name, *_shares(rows, "updates"), *_shares(rows, "never"))
    asked.caption = (
        "another's: of those in other words, told somebody else's value; nll: of neutral text, nats per token above the "
        f"{work['nll']:.2f} of no memory; undone: writes rolled back; s: of the last write"
    )
    return [growing, aging, asked, beside]


def _mean(rows: Sequence[dict], key: str) -> float:
    return statistics.fmean(r[key] for r in rows)


def _shares(rows: Sequence[dict], key: str) -> list[str]:
    total = sum(sum(r[key].values()) for r in rows)
    return [f"{sum(r[key][kind] for r in rows) / total:.2f}" if total else "" for kind in rows[0][key]]


def _bins(work: dict) -> list[tuple[int, int]]:
    return [(first, min(last, work["writes"] - 1)) for first, last in BINS if first < work["writes"]]


def _label(ages: tuple[int, int]) -> str:
    return f"{ages[0]}" if ages[0] == ages[1] else f"{ages[0]}-{ages[1]}"


def draw(found: dict, beside: Path) -> list[Path]:
    """Beside `x.json`: x-forgetting.png, recall against age and against the number of writes, and what it does beside."""
    path = beside.with_name(f"{beside.stem}-forgetting.png")
    work = found["work"]
    after = counts(work["writes"])
    with figure(path, (10.5, 7.5)) as picture:
        (aging, growing), (text, size) = picture.subplots(2, 2)
        for i, name in enumerate(work["settings"]):
            style = {"color": f"C{i}", "marker": ".", "linewidth": 2 if i == 0 else 1}
            last = _of(found, name, after[-1])
            shares = [(ages, recalled(last, "plain", ages)) for ages in _bins(work)]
            shares = [(sum(ages) / 2 + 1, share) for ages, share in shares if share]
            _band(aging, [x for x, _ in shares], [y for _, y in shares], label=name, **style)
            _band(growing, after, [recalled(_of(found, name, n), "plain") for n in after], **style)
            text.plot(after, [_mean(_of(found, name, n), "nll") - work["nll"] for n in after], **style)
            size.plot(after, [_mean(_of(found, name, n), "norm") for n in after], **style)
        for axes in (growing, text, size):
            axes.set_xticks(after)
        aging.set_xscale("log", base=2)
        aging.set_xticks([sum(ages) / 2 + 1 for ages in _bins(work)], list(map(_label, _bins(work))), minor=False)
        aging.set(xlabel="writes since", ylabel="recall in other words", ylim=(0, 1),
                  title=f"by age, after {work['writes']} writes")  # fmt: skip
        growing.set(xlabel="writes", ylabel="recall in other words", ylim=(0, 1), title="of all that is still true")
        text.set(xlabel="writes", ylabel="nats per token above no memory", title="neutral text")
        size.set(xlabel="writes", ylabel="‖ΔW‖", title="size of the memory")
        aging.legend(fontsize=8)
        picture.suptitle(f"many writes into one memory: {work['model']}, {work['chains']} chains", fontsize=10)
    return [path]


def _band(axes, x: Sequence[float], y: Sequence[tuple[float, float, float]], **style) -> None:
    axes.plot(x, [mean for mean, _, _ in y], **style)
    axes.fill_between(x, [low for _, low, _ in y], [high for *_, high in y], color=style["color"], alpha=0.1, lw=0)
