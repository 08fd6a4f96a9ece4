"""`tmem eval`: methods on a task, scored, with intervals, and a record of every reading and every question.

    out/answers.jsonl    a line per seed, method and question: what was asked, said, and how it scored
    out/readings.jsonl   a line per seed, method and episode: what was kept, what it cost, what was written
    out/results.json     the configuration, which processes made it on what machines, and what follows from the other two, made
                         anew after every method's part of a group of episodes (of very many answers more seldom)

A group of episodes is read and asked by all methods before the next one begins. A kill loses one batch of
questions at most; `resume` reads what is there and asks the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .. import machine, stats, tasks
from ..agent.config import AgentConfig, agent_config, renamed
from ..agent.log import readable, record
from ..agent.loop import Agent
from ..episode import Episode, Question
from ..files import objects
from ..files.folders import alone, atomic_file
from ..files.journal import Journal
from ..files.objects import encoded, read_object
from ..files.shapes import check
from ..machine import peak_memory
from ..methods.methods import CONTEXT, METHODS, Kept, Said, Settings, ask
from ..models import loading
from ..models.chat import Chat
from ..models.embed import dense, require_dense
from ..tasks import left_out, locomo, longmemeval, names
from ..tasks.records import files
from .compute import Sizes
from .grading import Judging, grade, protocol_of, scored
from .runs import ANSWER, ANSWERED, HAD_READ

BESIDE = 96  # tokens kept for the chat's template and the instruction beside text and question
AT_LENGTH = 256  # tokens of an answer, unless asked otherwise, where a task wants whole texts
BATCH = 32  # questions asked at once
FILES = ("results.json", "answers.jsonl", "readings.jsonl")
# Beside the weights, what makes a model answer as it does.
BESIDE_WEIGHTS = ("config.json", "tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*",
                  "merges.txt")  # fmt: skip


@alone("out")
def evaluate(
    task: str,
    methods: Sequence[str],
    out: Path,
    *,
    data: str | Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    split: str = "test",
    difficulty: int = 1,
    adversarial: str = "open",
    leave_out: str | None = None,
    model: str | None = None,
    preset: str = "default",
    context: int | None = None,
    answer_tokens: int | None = None,
    probing: bool = False,
    known: bool = False,
    slots: int = 32,
    judging: Judging | None = None,
    resume: bool = False,
    watch: Callable[[str, str, int, int], None] = lambda *_: None,
) -> dict:
    """Run `methods` on a task with `seeds` seeds from `seed` on; returns what results.json holds.

    seeds: replicates. A seed draws the episodes (stream), the questions or episodes of a `limit`, the order of choices, and the
    subspace of the fast weights where the preset's init draws one; decoding is greedy, so a method that none of them touches
    answers the same again.
    leave_out: a file that names questions not to ask, see tmem.tasks.left_out.
    slots: episodes at once, each with its own Δ; not a part of the settings.
    known: each question is an episode of its own and stands in the prompts that write (the paper's protocol: reads the history
    once per question, and lets a method answer with the evidence in sight).
    judging: have every answer graded, see tmem.evaluation.grading; not a part of the settings, so `resume` may add it.
    `watch(method, phase, done, total)` is told what is going on. Raises ValueError for a task or a method that is not there,
    a context beyond the model's or results of other settings, FileExistsError for results that would be overwritten,
    FileNotFoundError for missing data or nothing to resume, tmem.models.loading.ModelError for a model that cannot be had; all
    before any work.
    """
    unknown = [m for m in methods if m not in methods_of(task)]
    methods = list(dict.fromkeys(methods))
    if unknown or not methods:
        raise ValueError(
            f"methods of {task}: expected some of {', '.join(methods_of(task))}, got {', '.join(unknown) or 'none'}."
        )
    if "dense" in methods:
        require_dense()
    if judging is not None:
        protocol_of(task)
    must_be_new(out, resume)
    left = left_out.load(leave_out, locomo.question_id if task == "locomo" else left_out.as_it_is) if leave_out else None
    given = {"data": data, "limit": limit, "split": split, "difficulty": difficulty, "adversarial": adversarial}
    episodes = {s: tasks.load(task, seed=s, leave_out=left, **given) for s in range(seed, seed + seeds)}
    if left is not None:
        here = {e.id for e in episodes[seed]}
        left.check(lambda id: task == "locomo" and id.partition("/")[0] in {*locomo.CONVERSATIONS} - here)
    if not any(e.questions for e in episodes[seed]):
        raise ValueError(f"eval: no questions in {', '.join(map(str, files(data))) or task}; give a file with questions.")
    config = agent_config(preset)
    config = dataclasses.replace(config, learn=dataclasses.replace(config.learn, unknown=tasks.abstention(task)))
    network, tokenizer = loading.load(model)
    at_length = task in tasks.AT_LENGTH
    max_new = answer_tokens or (AT_LENGTH if at_length else config.answer.max_new)
    chat = Chat(tokenizer)
    longest, which = max((chat.count(q.text), q.id) for several in episodes.values() for e in several for q in e.questions)
    room = network.config.max_position_embeddings - max_new - longest - BESIDE
    if room < 1:
        raise ValueError(
            f"context: there is room for no text beside question {which[:60]!r} ({longest} tokens) and an answer of {max_new}; "
            "shorten or remove the question, give a smaller --answer-tokens, or a model for longer texts."
        )
    context = min(CONTEXT, room) if context is None else context
    if context > room:
        raise ValueError(
            f"context: there is room for {room} tokens of text beside the longest question ({which[:60]!r}, {longest} tokens) "
            f"and its answer, got {context}; give a smaller --context or --answer-tokens, or a model for longer texts."
        )
    results: dict = {
        "task": task,
        "config": {
            **about(model, preset, config, *files(data)),
            **left_out.about(left),
            "limit": limit,
            "seed": seed,
            "seeds": seeds,
            "split": split if task == "stream" else None,
            "difficulty": difficulty if task == "stream" else None,
            "adversarial": adversarial if task == "locomo" else None,
            "context": context,
            "answer_tokens": max_new,
            "known": known,
            "probe": probing,
            "episodes": len(episodes[seed]),
            "dated": longmemeval.DATED if task == "longmemeval" else None,
            "called": locomo.called(episodes[seed]) if task == "locomo" else None,
        },
        "notes": [*left_out.notes(left), *_notes(episodes[seed])],
        "machine": machine.provenance(),  # of the first run; all are in "runs"
    }
    answers, readings = journals(results, out, resume)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    slots = min(slots, sum(len(e.questions) for e in episodes[seed]) if known else len(episodes[seed]))
    agent = Agent.build(network, tokenizer, config, slots=slots, seed=seed)
    sizes = Sizes.of(agent, dense().parameters if "dense" in methods else results.get("sizes", {}).get("embedder", 0))
    results["sizes"] = sizes.asdict()
    start, held = time.perf_counter(), len(answers.rows)

    @Seldom
    def write() -> None:
        results["runs"][-1] |= spent(slots, len(answers.rows) - held, start)
        results.update(summarise(scored(answers.rows, out), readings.rows, task, sizes))
        objects.write_json(out / "results.json", results)

    total = sum(len(e.questions) for s in episodes for e in episodes[s])
    for s, several in episodes.items():
        if s != agent.bank.seed:
            agent.bank.seed = s
            agent.bank.renew()
        items = list(_items(several, known))
        for at in range(0, len(items), slots):
            settings = Settings(
                seed=s, context=context, constant=tasks.abstention(task), max_new=max_new, at_length=at_length,
                probing=probing, known=known,
            )  # fmt: skip
            for name in methods:
                done = sum(r["method"] == name for r in answers.rows)
                settings.watch = lambda phase, *_, name=name, done=done: watch(name, phase, done, total)
                _group(task, name, agent, items[at : at + slots], settings, answers, readings,
                       lambda n, name=name: watch(name, "answer", n, total))  # fmt: skip
                write()
    write.now()
    _write_logs(out, readings.rows, answers.rows)
    if judging is not None:
        questions = {(s, q.id): q for s, several in episodes.items() for e in several for q in e.questions}
        try:
            results["judge"] = grade(
                task, questions, answers.rows, judging, agent, out, lambda done, total: watch("judge", "", done, total)
            )
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')}. All answers are in {out}: --resume asks the judge again.") from error
        write.now()
    return results


def _notes(episodes: Sequence[Episode]) -> list[str]:
    """What is to be known of how the episodes were read, each once with how many it is true of."""
    counts = collections.Counter(e.note for e in episodes if e.note)
    return [f"{n} of {len(episodes)} episodes: {note}" for note, n in counts.items()]


class Seldom:
    """`work`, which once it takes LONG is left out so often that it takes a twentieth of the time; `now` does it."""

    LONG = 0.5  # seconds

    def __init__(self, work: Callable[[], None]):
        self.work, self.due = work, 0.0

    def __call__(self) -> None:
        if time.perf_counter() >= self.due:
            self.now()

    def now(self) -> None:
        start = time.perf_counter()
        self.work()
        end = time.perf_counter()
        self.due = end + (20 * (end - start) if end - start > self.LONG else 0.0)


def methods_of(task: str) -> list[str]:
    """All methods but those that a task has nothing for: CL-bench names no evidence for an oracle."""
    return [m for m in METHODS if m != "oracle" or task != "clbench"]


def spent(slots: int, answers: int, start: float) -> dict:
    """What a process adds to its record in "runs": episodes at once, answers, seconds since `start`, and memory at most."""
    seconds = round(time.perf_counter() - start, 1)
    return {"slots": slots, "answers": answers, "seconds": seconds, "peak_bytes": peak_memory()}


def _items(episodes: Sequence[Episode], known: bool) -> Iterator[tuple[Episode, str]]:
    """(an episode to live, the id of the episode it belongs to): with `known` questions one for each of them."""
    for e in episodes:
        if known:
            yield from ((dataclasses.replace(e, id=f"{e.id} {q.id}", questions=(q,)), e.id) for q in e.questions)
        else:
            yield e, e.id


def _group(task, method, agent, items, settings, answers: Journal, readings: Journal, watch) -> None:
    """Read the episodes that have questions left, ask these, and keep what was said, batch by batch."""
    asked = {(r["seed"], r["id"]) for r in answers.rows if r["method"] == method}
    read = {(r["seed"], r["read"]) for r in readings.rows if r["method"] == method}
    left = [(e, home, todo) for e, home in items if (todo := [q for q in e.questions if (settings.seed, q.id) not in asked])]
    if not left:
        return
    start = time.perf_counter()
    kept = METHODS[method](agent, [e for e, *_ in left], settings)
    seconds = (time.perf_counter() - start) / len(left)
    readings.append(
        _reading(method, settings.seed, e, home, k, seconds)
        for (e, home, _), k in zip(left, kept)
        if (settings.seed, e.id) not in read
    )
    todo = [(e, home, k, q) for (e, home, qs), k in zip(left, kept) for q in qs]
    for at in range(0, len(todo), BATCH):
        part = todo[at : at + BATCH]
        start = time.perf_counter()
        said = ask(
            agent, [(k, q) for *_, k, q in part],
            unknown=settings.constant, max_new=settings.max_new, at_length=settings.at_length,
        )  # fmt: skip
        seconds = (time.perf_counter() - start) / len(part)
        answers.append(_answer(task, method, settings.seed, e, home, q, a, seconds) for (e, home, _, q), a in zip(part, said))
        watch(len(asked) + at + len(part))


def _answer(task, method: str, seed: int, episode: Episode, home: str, question: Question, said: Said, seconds: float) -> dict:
    places = [e.chunk for e in question.evidence]
    last = len(episode.chunks) - 1
    return {
        "seed": seed,
        "method": method,
        "episode": home,
        "read": episode.id,
        "id": question.id,
        "kind": question.kind,
        "category": question.category,
        "question": question.text,
        "answers": list(question.answers),
        "prediction": said.text,
        **tasks.score(task, question, said.text),
        "sessions": len(episode.chunks),
        "position": sum(places) / len(places) / last if places and last else None,  # 0: in the first session, 1: in the last
        "prompt_tokens": said.prompt,
        "read_tokens": said.read,
        "generated_tokens": said.generated,
        "seconds": round(seconds, 4),
    }


def _reading(method: str, seed: int, episode: Episode, home: str, kept: Kept, seconds: float) -> dict:
    row = {
        "seed": seed,
        "method": method,
        "episode": home,
        "read": episode.id,
        "state_bytes": kept.state,
        **{f"{k}_tokens": v for k, v in dataclasses.asdict(kept.cost).items()},
        "seconds": round(kept.rollout.seconds if kept.rollout else seconds, 4),  # a rollout may serve several methods
    }
    return row if kept.rollout is None else row | {"log": record(kept.rollout)}


def about(model: str | None, preset: str, config: AgentConfig, *files: str) -> dict:
    """The part of a configuration that says which weights, settings and data files a result belongs to.

    tokenizer_blake2b: of the model's other files, its configuration, tokenizer and chat template.
    """
    folder = loading.resolve(model)
    return {
        "model": model or loading.DEFAULT,
        "preset": str(preset),
        "settings": dataclasses.asdict(config),
        "data": ", ".join(Path(f).name for f in files) or None,
        "data_blake2b": _digest(*map(Path, files)) if files else None,
        "weights_blake2b": _digest(*sorted(folder.glob("*.safetensors"))),
        "tokenizer_blake2b": _digest(*sorted({f for pattern in BESIDE_WEIGHTS for f in folder.glob(pattern) if f.is_file()})),
    }


def _digest(*files: Path) -> str:
    """What files hold, in 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def must_be_new(out: Path, resume: bool) -> None:
    """Raises FileExistsError where `out` holds results that nobody asked to go on with."""
    if any((out / name).exists() for name in (*FILES, "verdicts.jsonl")) and not resume:
        raise FileExistsError(f"eval: {out} already holds results; add to them with --resume, or give another --out.")


def journals(results: dict, out: Path, resume: bool) -> tuple[Journal, Journal]:
    """The answers and readings that `out` holds, of the settings in `results`; none yet if it is not to be resumed.

    `results` gets "runs", a record of every process that took part, and keeps what `out` holds of earlier ones: their machines,
    versions and commits, which may differ, what a judge found, and the models' sizes. It is written before any work.
    Raises ValueError if they were made with other settings or hold no texts, FileNotFoundError if there is nothing to resume.
    """
    file = out / "results.json"
    run = {"machine": results["machine"]}
    if not resume:
        results["runs"] = [run]
        objects.write_json(file, results)
    elif not file.exists():
        raise FileNotFoundError(f"resume: {out} holds no results.json; leave out --resume.")
    else:
        held = read_object(file, task=str, config=dict)
        check(held, {"runs?": [dict], "machine?": dict, "sizes?": {str: int}}, str(file))
        config, was = json.loads(json.dumps(results["config"])), held["config"]
        if isinstance(was.get("settings"), dict):
            was["settings"] = renamed(was["settings"])
        changed = [k for k in config if was.get(k) != config[k]]
        if held.get("task") != results["task"] or changed:
            raise ValueError(
                f"resume: {out} was made with other settings ({', '.join(changed) or 'task'}); "
                f"use the same flags, or give another --out."
            )
        if any("question" not in row for row in Journal(out / "answers.jsonl", ANSWER).rows):
            raise ValueError(f"resume: {out} holds a run without its texts; go on in the folder that it was stripped from.")
        before = held.get("runs") or [{"machine": held.get("machine")}]
        results |= {"machine": before[0].get("machine"), "runs": [*before, run]}
        results |= {k: held[k] for k in ("judge", "sizes") if k in held}
        objects.write_json(file, held | results)
    return Journal(out / "answers.jsonl", ANSWERED), Journal(out / "readings.jsonl", HAD_READ)


def summarise(answers: Sequence[dict], readings: Sequence[dict], task: str = "", sizes: Sizes | None = None) -> dict:
    """{"methods": {name: scores, intervals, costs}, "differences": {metric: {"a - b": {...}}}} of the rows of both files.

    Where a judge was asked (tmem.evaluation.grading.scored), "judged" says how many of a method's "n" answers have a verdict.
    With LongMemEval each method also has its "aggregates": means by type, of the types' means, of all, and of abstentions.
    With `sizes` each has "flops", all that it computed (see tmem.evaluation.compute).
    """
    methods = {}
    for name in dict.fromkeys(r["method"] for r in answers):
        mine = [r for r in answers if r["method"] == name]
        methods[name] = _method(mine, [r for r in readings if r["method"] == name], sizes)
        if task == "longmemeval":
            shown = ("kind", "category", *(m for m in names.METRICS if m in methods[name]))
            methods[name]["aggregates"] = longmemeval.summary([{k: r.get(k) for k in shown} for r in mine])
    shown = [m for m in names.METRICS if any(r.get(m) is not None for r in answers)]
    return {"methods": methods, "differences": {m: _differences(answers, m) for m in shown}}


def _method(answers: Sequence[dict], readings: Sequence[dict], sizes: Sizes | None) -> dict:
    out: dict = {"n": len(answers), **_judged(answers)}
    for metric in names.METRICS:
        if scored := [r for r in answers if r.get(metric) is not None]:  # a judge leaves some out
            mean, low, high = stats.bootstrap([r[metric] for r in scored], [r["episode"] for r in scored])
            out[metric], out[f"{metric}_ci"] = mean, [low, high]
    kinds = sorted({r["kind"] for r in answers})
    out["by_kind"] = {k: _means([r for r in answers if r["kind"] == k]) for k in kinds}
    out["state_bytes"] = _mean([r["state_bytes"] for r in readings])
    out["prompt_tokens"] = _mean([r["prompt_tokens"] for r in answers])
    out["peak_tokens"] = max(
        [r["peak_tokens"] for r in readings] + [r["prompt_tokens"] + r["generated_tokens"] for r in answers]
    )
    tokens = {what: sum(r.get(f"{what}_tokens", 0) for r in readings) for what in ("read", "generated", "learned", "embedded")}
    tokens["read"] += sum(r.get("read_tokens", r["prompt_tokens"]) for r in answers)  # a search shares nothing
    tokens["generated"] += sum(r["generated_tokens"] for r in answers)
    out |= {f"{what}_tokens": count for what, count in tokens.items()}
    if sizes is not None:
        out["flops"] = sizes.flops(tokens)
    out["seconds"] = round(sum(r["seconds"] for r in [*readings, *answers]), 2)
    if any("log" in r for r in readings):
        out |= _writing([w for r in readings if "log" in r for w in r["log"]["writes"]])
    return out


def _means(answers: Sequence[dict]) -> dict:
    scored = {m: [r[m] for r in answers if r.get(m) is not None] for m in names.METRICS}
    return {m: _mean(values) for m, values in scored.items() if values} | {"n": len(answers), **_judged(answers)}


def _judged(answers: Sequence[dict]) -> dict:
    """{"judged": answers with a verdict}, where a judge was asked about any."""
    return {"judged": sum(r.get("judge") is not None for r in answers)} if any("judge" in r for r in answers) else {}


def _writing(writes: Sequence[dict]) -> dict:
    out: dict = {
        "writes": len(writes),
        "pairs_per_write": _mean([len(w["pairs"]) for w in writes]),
        "dropped": {k: sum(w["dropped"][k] for w in writes) for k in ("malformed", "empty", "duplicates", "conflicts")},
        "rolled_back": sum(bool(w["undone"]) for w in writes),
    }
    if probes := [p for w in writes for p in w["stuck"]]:
        out["stuck"] = _mean([p["recalled"] for p in probes])
        asked = [p["leaked"] for p in probes if p["other"] is not None]
        out["leaked"] = _mean(asked) if asked else None
    return out


def _differences(answers: Sequence[dict], metric: str) -> dict:
    """Every pair of methods on the questions that both answered: mean difference, interval over resampled episodes."""
    scores: dict[str, dict[tuple, tuple[float, str]]] = {}
    for r in answers:
        if r.get(metric) is not None:
            scores.setdefault(r["method"], {})[r["seed"], r["id"]] = (r[metric], r["episode"])
    out = {}
    order = [*METHODS, *scores]
    for a, b in itertools.combinations(sorted(scores, key=order.index, reverse=True), 2):
        if shared := [k for k in scores[a] if k in scores[b]]:
            mean, low, high = stats.bootstrap(
                [scores[a][k][0] - scores[b][k][0] for k in shared], [scores[a][k][1] for k in shared]
            )
            out[f"{a} - {b}"] = {"mean": mean, "low": low, "high": high}
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _write_logs(out: Path, readings: Sequence[dict], answers: Sequence[dict]) -> None:
    """episodes.md: what tmem wrote of each episode, and what it answered from it."""
    name = next((m for m in ("tmem", "tmem+retrieval", "pairs") if any(r["method"] == m for r in readings)), None)
    if name is None:
        return
    mine, texts = [r for r in readings if r["method"] == name], []
    for r in mine:
        asked = [a for a in answers if (a["method"], a["seed"], a["read"]) == (name, r["seed"], r["read"])]
        questions = [{"text": a["question"], "answers": a["answers"], "said": a["prediction"]} for a in asked]
        texts.append(readable(r["log"] | {"questions": questions}))
    with atomic_file(out / "episodes.md") as work:
        work.write_bytes(encoded("\n\n".join(texts)))
