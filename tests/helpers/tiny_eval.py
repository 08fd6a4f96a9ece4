"""Evaluations of a tiny model on small made-up files, for tests: in this process, or `python tests/tiny_eval.py OUT [...]`.

`--kill WHERE N`: at the N-th time that questions are asked, or that answers are written (half a line is), the process kills
itself. Every question that was asked is a line of asked.txt beside OUT.
"""

import argparse
import json
import os
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tiny import Letters, model
from tiny_run import PRESET

from tmem.evaluation import evaluate, reading
from tmem.evaluation.config import EvalConfig
from tmem.files.journal import Journal
from tmem.methods import methods
from tmem.models import embed, loading


class Counted:
    """An embedding model that counts letters."""

    parameters = 1000

    def __call__(self, texts):
        found = np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-6)

    def tokens(self, texts):
        return sum(len(t.split()) for t in texts)


def prepare(folder: Path, patch=setattr) -> Path:
    """A tiny model instead of the default one, with the files that its hashes are made of, and `Counted`; the preset's file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_text(name)
    preset = folder / "tiny.toml"
    preset.write_text(PRESET.replace('reward = "shout"', "").replace("rank = 4", 'rank = 4\ninit = "random"'))
    # A token a letter: worked examples take 900.
    patch(loading, "load_model", lambda name=None, **_: (model(max_position_embeddings=2048), Letters()))
    patch(loading, "resolve", lambda name=None: folder)
    for owner in (embed, methods, reading):
        patch(owner, "dense", Counted)
    patch(reading, "require_dense", lambda: folder)
    return preset


def _locomo():
    turns = [{"speaker": s, "dia_id": f"D1:{i}", "text": f"line {i}"} for i, s in enumerate(["Ada", "Ben"] * 2)]
    qa = [{"question": f"q{i}?", "answer": f"a{i}", "evidence": ["D1:1"], "category": 4} for i in range(3)]
    qa.append({"question": "never?", "adversarial_answer": "x", "evidence": [], "category": 5})
    conversation = {"speaker_a": "Ada", "speaker_b": "Ben", "session_1": turns, "session_1_date_time": "1 May 2023"}
    return [{"sample_id": f"c{i}", "qa": qa, "conversation": conversation} for i in range(2)]


def _longmemeval():
    def record(i, kind):
        sessions = [[{"role": "user", "content": f"I like {i}.", "has_answer": True}]]
        return {"question_id": f"q{i}", "question_type": kind, "question": "what?", "answer": f"{i}",
                "question_date": "2023/05/30", "haystack_session_ids": ["s"], "haystack_dates": ["2023/05/20 (Sat) 02:21"],
                "haystack_sessions": sessions, "answer_session_ids": ["s"]}  # fmt: skip

    return [record(i, kind) for i, kind in enumerate(("multi-session", "temporal-reasoning", "knowledge-update"))]


def _squad():
    asked = [{"question": "who is king?", "answer": "Ann"}, {"question": "of what?", "answer": "the hill"}]
    return [{"title": f"Kings {i}", "context": "Ann is king. She rules the hill.", "questions": asked} for i in range(2)]


def _clbench():
    def record(i):
        messages = [{"role": "system", "content": f"Rule {i}: say yes.\nRule two: say it once."},
                    {"role": "user", "content": "What do you say?"}]  # fmt: skip
        return {"metadata": {"task_id": f"t{i}", "context_category": "rules", "sub_category": "games"}, "messages": messages,
                "rubrics": ["says yes", "says it once"]}  # fmt: skip

    return [record(i) for i in range(2)]


FILES = {"locomo": _locomo, "longmemeval": _longmemeval, "squad": _squad, "clbench": _clbench}
QUESTIONS = {"locomo": 8, "longmemeval": 3, "squad": 4, "clbench": 2, "stream": 8}


def data(task: str, folder: Path) -> str | None:
    """The task's small file, None for stream."""
    if task not in FILES:
        return None
    records = FILES[task]()
    file = folder / f"{task}.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(file)


HOW = ("judging", "slots", "resume", "watch")  # what is no part of a configuration


def run(out: Path, task: str = "stream", names=None, *, patch=setattr, **options) -> dict:
    """One evaluation, by default with every method; its results. options: of an EvalConfig, or those in HOW."""
    preset = prepare(out.parent / "tiny", patch)
    how = {name: options.pop(name) for name in HOW if name in options}
    options = {"answer_tokens": 4, "split": "dev", "limit": 2 if task == "stream" else None, **options}
    config = EvalConfig(task, data=data(task, out.parent), preset=str(preset), **options)
    return evaluate.evaluate(config, out=out, methods=names or methods.methods_of(task), **how)


@contextmanager
def asking(ask):
    """In this block every method asks by `ask(what asks otherwise, agent, asked, settings)`."""
    before = dict(methods.METHODS)
    for name, method in before.items():
        methods.METHODS[name] = replace(method, ask=partial(ask, method.ask))
    try:
        yield
    finally:
        methods.METHODS.update(before)


def die_at(where: str, count: int) -> None:
    """SIGKILL at the count-th batch of questions, or in the middle of writing the count-th batch of answers."""
    calls, append = [], Journal.append

    def deadly_ask(ask, agent, part, settings):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(agent, part, settings)

    def deadly_append(self, rows):
        rows = list(rows)
        if self.path.name == "answers.jsonl":
            calls.append(1)
            if len(calls) == count:
                with self.path.open("a") as file:
                    file.write(json.dumps(rows[0]) + "\n" + json.dumps(rows[-1])[:20])
                os.kill(os.getpid(), signal.SIGKILL)
        append(self, rows)

    if where == "ask":
        ASKING.enter_context(asking(deadly_ask))
    else:
        Journal.append = deadly_append


ASKING = ExitStack()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kill", nargs=2)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reading.BATCH = 3

    def ask(told, agent, part, settings):
        found = told(agent, part, settings)
        with (options.out.parent / "asked.txt").open("a") as file:
            file.writelines(f"{question.id}\n" for _, question in part)
        return found

    ASKING.enter_context(asking(ask))
    if options.kill:
        die_at(options.kill[0], int(options.kill[1]))
    run(options.out, names=["none", "retrieval", "tmem"], resume=options.resume)
