"""Presets: whatever a file holds, it is settings or one sentence."""

import dataclasses
import inspect
import json
import random
import re
import typing
from pathlib import Path

import click
import pytest
from tiny import PLAIN

from tmem import Memory, cli
from tmem.agent import config
from tmem.agent.config import agent_config, read, recorded, renamed
from tmem.evaluation.config import EvalConfig
from tmem.rl.config import train_config
from tmem.study import soak

EXTENDS = b'extends = "default"\n'


def settings(path):
    """All that `tmem train` makes of a preset."""
    return agent_config(path), train_config(path)


def said(tmp_path, text, before=EXTENDS):
    file = tmp_path / "mine.toml"
    file.write_bytes(before + (text if isinstance(text, bytes) else text.encode()))
    with pytest.raises(ValueError) as found:
        settings(file)
    sentence = str(found.value)
    assert sentence.startswith("preset: ") and len(sentence) < 750, sentence
    return sentence


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('answer = ""', r"\[answer\]: expected a table of settings, got ''"),
        ("train = 5", r"\[train\]: expected a table"),
        ("[[learn]]\nlr = 1", r"\[learn\]: expected a table"),
        ('[learn]\n__module__ = "x"', r"\[learn\] has no setting '__module__'"),
        ('[train]\n__post_init__ = "x"', r"\[train\] has no setting '__post_init__'"),
        ("[learn.lr]\na = 1", r"\[learn\] lr: expected a number, got \{'a': 1\}"),
        ("[learn]\n" + "lr" + ".a" * 3000 + " = 1", r"\[learn\] lr: expected a number, got \{'a': \{"),
        ("[learn]\nlr = " + "[" * 5000 + "]" * 5000, "is not valid TOML"),
        ("[learn]\nlr = " + "{a=" * 5000 + "1" + "}" * 5000, "is not valid TOML"),
        ("[learn]\nlr = " + "9" * 5000, "is not valid TOML"),
        ("[learn]\nlr = " + "9" * 400, r"\[learn\] lr: expected 2147483647 or less, got 999"),
        ("[learn]\nlr = nan", r"\[learn\] lr: expected 0 or more"),
        ("[learn]\nlr = -inf", r"\[learn\] lr: expected 0 or more"),
        ("[learn]\nlr = true", r"\[learn\] lr: expected a number"),
        ("[learn]\nepochs = 1.5", r"\[learn\] epochs: expected a whole number, got 1.5"),
        ("[learn]\nepochs = 0", r"\[learn\] epochs: expected 1 or more"),
        ("[learn]\nepochs = 1979-05-27", r"\[learn\] epochs: expected a whole number"),
        ("[adapter]\ntargets = []", r'\[adapter\] targets: expected a list of strings such as \["gate_proj", "up_proj"\], got'),
        ("[adapter]\ntargets = [1]", r"\[adapter\] targets: expected a list of strings"),
        ("[adapter]\ntargets = [['x']]", r"\[adapter\] targets: expected a list of strings"),
        ('[adapter]\ntargets = "x"', r"\[adapter\] targets: expected a list of strings"),
        (b'[learn]\nunknown = "\xe9"', "is not valid TOML: 'utf-8' codec can't decode"),
        (b"\xff\xfe[\x00l\x00", "is not valid TOML"),
        ("[learn", "is not valid TOML"),
        ("[memory]\nrank = 4", r"has \[memory\]; it is called \[adapter\] now"),
        ("[write]\nmemory = false", r"\[write\] has no setting 'memory'; it is called under_delta now"),
        ('[learn]\nextends = "long"', r"\[learn\] has no setting 'extends'; it stands above the first table"),
        ("[learn]\nrenderings = []", r"\[learn\] renderings: expected a list of strings such as"),
        ("[learn]\nrenderings = '{question}'", r"\[learn\] renderings: expected a list of strings such as"),
        ("[learn]\nrenderings = ['{question}']", r"\[answer\] asked: expected one of \[learn\] renderings, got 'Answer in"),
        ("[answer]\nasked = '{question}!'", r"\[answer\] asked: expected one of \[learn\] renderings, got '\{question\}!'"),
        ("[answer]\nasked = 'why?'", r"\[answer\] asked: expected a text with \{question\}, and no braces but .*, got 'why\?'"),
        ("[answer]\nasked = 5", r"\[answer\] asked: expected a string, got 5"),
        ("[learn]\nrenderings = ['{question} {answer}']", r"\[learn\] renderings: expected a text .*, got '\{question\} \{ans"),
        ("[learn]\nrenderings = ['{question} {']", r"\[learn\] renderings: expected a text with \{question\}, and no braces"),
        ("[learn]\nrenderings = ['{question!r}']", r"\[learn\] renderings: expected a text with \{question\}, and no"),
        ("[learn]\nrenderings = ['{unknown}']", r"\[learn\] renderings: expected a text with \{question\}, and no"),
        ("[learn]\nepochs = 1", r"\[learn\] epochs: expected 2 or more, as \[answer\] asked is rendering 2 and each .*, got 1"),
        ("[other]", r"has \[other\]; expected the tables adapter, learn"),
    ],
)
def test_what_is_wrong_in_a_preset_is_one_sentence(tmp_path, text, sentence):
    assert re.search(sentence, said(tmp_path, text))


def test_a_preset_that_is_no_file_is_one_sentence(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    for name in (tmp_path / "folder.toml", "", "no\0thing", "../presets", "{}", "%s"):
        with pytest.raises(ValueError, match="preset: no preset"):
            read(name)


WORDS = ["", '""', "-1", "0", "1e999", "nan", "1979-05-27T07:32:00Z", "[]", "[[]]", "{}", "{a = {b = 1}}", "true", '"\\u0000"',
         "9" * 30, "-0.0", "0x7fffffffffffffff", "'''\n'''", "[1, 'a', {}]", "07:32:00"]  # fmt: skip


def test_hundreds_of_changed_presets_are_settings_or_one_sentence(tmp_path):
    rng, files = random.Random(0), sorted(config.PRESETS.glob("*.toml"))
    ends = {"fine": 0, "said": 0}
    for _ in range(900):
        text = rng.choice(files).read_text(encoding="utf-8")
        lines = text.splitlines()
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(lines))
            key = lines[at].split(" = ")[0]
            lines[at] = rng.choice([
                f"{key} = {rng.choice(WORDS)}", f"{key}.{key} = 1", f"extends = {rng.choice(WORDS)}",
                f"[{key}]", f"[[{key}]]", "", f"[{rng.choice(config.TABLES)}]",
                f"{rng.choice(config.TABLES)} = {rng.choice(WORDS)}", lines[at][: rng.randint(0, 20)], f"__class__ = {key!r}",
                rng.choice(lines), lines[at].replace("=", "= -"), lines[at] + rng.choice("[]{}\"'\\"),
            ])  # fmt: skip
        data = "\n".join(lines).encode()
        if rng.random() < 0.2:
            data = data[: (at := rng.randrange(len(data)))] + bytes([rng.randrange(256)]) + data[at + 1 :]
        file = tmp_path / "mine.toml"
        file.write_bytes(data)
        try:
            found = settings(file)
        except ValueError as error:
            assert str(error).startswith("preset: "), error
            ends["said"] += 1
        else:
            for part in (*vars(found[0]).values(), found[1]):
                for name, kind in typing.get_type_hints(type(part)).items():
                    assert type(getattr(part, name)) is (typing.get_origin(kind) or kind), name
            ends["fine"] += 1
    assert min(ends.values()) > 30, ends


def test_the_presets_that_come_with_it_are_settings():
    for file in sorted(config.PRESETS.glob("*.toml")):
        assert settings(Path(file)) == settings(file.stem)


def write(folder, **texts):
    """Presets by name in `folder`; their paths."""
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return [folder / f"{name}.toml" for name in texts]


def test_a_preset_says_what_differs_from_the_one_it_extends(tmp_path):
    (tmp_path / "deep").mkdir()
    (mine,) = write(tmp_path, mine='extends = "deep/below.toml"\n[learn]\nepochs = 3\n')
    write(tmp_path / "deep", below='extends = "long"\n[learn]\nepochs = 2\nbatch = 4\n[write]\nwindow = 99\n')
    long, found = agent_config("long"), agent_config(mine)
    learn = dataclasses.replace(long.learn, epochs=3, batch=4)
    assert found == dataclasses.replace(long, learn=learn, write=dataclasses.replace(long.write, window=99))
    assert train_config(mine) == train_config("long") == train_config("default")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", r"\[adapter\] is missing; begin the file with extends = \"default\", or say all of \[adapter\] in it"),
        ("[adapter]\nrank = 4\ninit = 'random'", r"\[adapter\] lacks targets, last_layers, train_a, optimizer; begin the file"),
        ("extends = 5", "extends: expected a preset's name or path, got 5"),
        ("[[extends]]", "extends: expected a preset's name or path, got"),
        ("extends = 'defualt'", "no preset 'defualt'; expected one of careful, default"),
        ("extends = 'other.toml'", "no preset 'other.toml'; expected one of careful"),
        ("extends = 'mine.toml'", "mine.toml extends .*mine.toml, which is built on it; take one"),
        ("extends = '" + "x" * 5000 + ".toml'", "no preset 'xxx"),
        ('extends = "\\u0000.toml"', "no preset '.x00.toml'"),
    ],
)
def test_a_preset_that_lacks_something_is_refused_in_one_sentence(tmp_path, text, sentence):
    """A setting that nothing says has no value: half a preset was once 43 times slower than the one that it was cut from."""
    assert re.search(sentence, said(tmp_path, text, b""))


def test_presets_that_extend_each_other_are_refused(tmp_path):
    one, *_ = write(tmp_path, one='extends = "two.toml"', two='extends = "./three.toml"', three='extends = "two.toml"')
    with pytest.raises(ValueError, match="three.toml extends .*two.toml, which is built on it"):
        read(one)


def test_what_only_training_needs_may_be_missing_elsewhere(tmp_path):
    text = (config.PRESETS / "default.toml").read_text(encoding="utf-8")
    (mine,) = write(tmp_path, mine=text.split("[train]")[0])
    assert agent_config(mine) == agent_config("default")
    with pytest.raises(ValueError, match=r"\[train\] is missing; begin the file"):
        train_config(mine)


def test_no_setting_has_a_value_that_no_preset_says():
    for kind in (*typing.get_type_hints(config.AgentConfig).values(), config.AgentConfig, type(train_config())):
        for f in dataclasses.fields(kind):
            assert f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING, (kind, f.name)


# What each preset read as when it still said everything itself; the others by what differs from `default`.
ASKED = "Answer in a few words; if you do not know, answer: {unknown}.\n{question}"
DEFAULT = {
    "adapter": {"rank": 16, "targets": ["gate_proj", "up_proj", "down_proj"], "last_layers": 12, "init": "random",
                "train_a": False, "optimizer": "adamw"},
    "learn": {"lr": 0.06, "epochs": 12, "batch": 32, "every": 16, "rehearse": 64, "contrast": 0, "unknown": "unknown",
              "renderings": ["{question}", ASKED, "From what you remember: {question}"],
              "reverse": "Which question has the answer: {answer}?", "target": 0.0,
              "clip": 0.0, "weight_decay": 0.1, "norm_cap": 0.0, "max_pair_tokens": 512},
    "write": {"window": 448, "replies": 24, "max_new": 32, "max_pairs": 16, "starts": 3, "unknown": "unknown",
              "under_delta": False},
    "answer": {"max_new": 16, "asked": ASKED, "sure": 0.0, "gain": 0.07},
    "train": {"seed": 0, "task": "passages", "difficulty": 1, "policy": "lora", "policy_rank": 16, "data": [], "join": 1,
              "cut_words": 190, "swap_names": 0.3, "resolve_dates": True, "corpus": [], "objectives": 1, "turns": 3,
              "turn_tokens": 96, "each": False, "method": "tmem", "environment": "", "warm_steps": 800, "warm_plain": 800,
              "warm_episodes": 4, "warm_pairs": 6, "warm_recall": 0.1, "warm_read": 0.5, "warm_keep": 0.25, "warm_lr": 8e-4,
              "warm_decay": 0.25,
              "rl_steps": 0, "rl_episodes": 3, "rl_group": 4, "rl_questions": 0, "rl_answers": "sampled",
              "rl_credit": "rollout", "rl_lr": 1e-5, "rl_warmup": 3, "rl_decay": 0.0,
              "rl_average": "tokens", "rl_updates": 1, "rl_ratio": "token", "rl_clip": 0.2, "rl_clip_high": 0.0,
              "rl_truncate": 0.0, "rl_kl": 0.0, "rl_resample": 0, "rl_dead": "counted", "normalise": True, "reward": "f1",
              "length_cost": 0.0, "format_cost": 0.0, "replay": "snapshot", "refresh_a": 0, "grad_clip": 1.0,
              "micro_tokens": 2048, "checkpointing": False, "layout": "ddp", "drift": 0.0, "probe": 2, "control_steps": 0,
              "eval_episodes": 4, "eval_split": "dev", "save_every": 300.0},
}  # fmt: skip
# What was the default before it wrote from spans: the loop of the first presets.
STREAM = {
    "learn": {"lr": 0.043, "epochs": 12, "batch": 16, "every": 1, "reverse": "", "target": 0.02,
              "weight_decay": 0.0},
    "write": {"window": 384, "replies": 1, "max_new": 160, "max_pairs": 32, "starts": 1, "under_delta": True},
    "answer": {"gain": 0.0},
    "train": {"task": "stream", "policy": "full", "cut_words": 250, "swap_names": 0.5, "warm_steps": 32, "warm_plain": 1000,
              "warm_episodes": 4, "warm_pairs": 0, "warm_read": 0.0, "warm_keep": 0.0, "warm_lr": 2e-4,
              "warm_decay": 0.0, "rl_steps": 3,
              "eval_episodes": 10, "eval_split": "test", "save_every": 180.0},
}  # fmt: skip


def over(base: dict, **tables: dict) -> dict:
    """The tables of a preset that extends another one."""
    return {table: {**base.get(table, {}), **tables.get(table, {})} for table in {**base, **tables}}


DIFFERS = {
    "default": {},
    "careful": {"learn": {"lr": 0.043, "epochs": 15, "contrast": 16, "reverse": "", "target": 0.02},
                "answer": {"sure": 0.5, "gain": 0.0}},
    "stream": STREAM,
    "long": {"learn": {"lr": 0.02, "epochs": 8, "rehearse": 16, "target": 0.05, "weight_decay": 0.0, "reverse": ""},
             "answer": {"max_new": 24, "sure": 0.5, "gain": 0.0}},
    "paper": over(
        STREAM, adapter={"rank": 6, "last_layers": 4, "init": "sigma", "optimizer": "sgd"},
        learn={"lr": 5e-4, "epochs": 5, "rehearse": 0, "target": 0.0},
        write={"window": 4096, "max_new": 1024}, answer={"max_new": 64},
        train={"warm_steps": 0, "warm_plain": 16, "warm_lr": 3e-4, "rl_steps": 200, "rl_episodes": 64, "rl_group": 8,
               "rl_lr": 1e-6, "micro_tokens": 16384, "checkpointing": True, "layout": "fsdp", "eval_episodes": 64},
    ),
    "search": {
        "learn": {"reverse": "", "target": 0.02}, "answer": {"gain": 0.0},
        "train": {"task": "search", "objectives": 3, "turn_tokens": 80, "each": True, "warm_steps": 12, "warm_plain": 12,
                  "warm_episodes": 2, "warm_pairs": 0, "warm_read": 0.0, "warm_keep": 0.0, "warm_lr": 1e-3, "rl_steps": 6,
                  "rl_episodes": 2, "rl_group": 4, "rl_answers": "greedy", "rl_lr": 1e-4, "rl_dead": "dropped", "probe": 0,
                  "eval_episodes": 20},
    },
    "verifiers": {
        "train": {"task": "verifiers", "reward": "score", "turns": 8, "turn_tokens": 128, "warm_steps": 0, "warm_plain": 0,
                  "warm_read": 0.0, "warm_keep": 0.0, "rl_steps": 20, "rl_episodes": 4, "rl_group": 8, "rl_lr": 5e-5,
                  "probe": 0, "eval_episodes": 20},
    },
    "study": over(
        STREAM, train={"warm_steps": 24, "warm_episodes": 6, "warm_pairs": 4, "rl_steps": 16, "rl_episodes": 4,
                       "rl_group": 6, "rl_questions": 16, "rl_answers": "scored", "rl_lr": 5e-5, "format_cost": 0.01,
                       "micro_tokens": 1024, "eval_episodes": 32, "save_every": 600.0},
    ),
}  # fmt: skip


def test_the_presets_are_what_they_were_when_each_said_everything():
    assert {file.stem for file in config.PRESETS.glob("*.toml")} == DIFFERS.keys()
    for name, differs in DIFFERS.items():
        agent, train = settings(name)
        found = json.loads(json.dumps({**dataclasses.asdict(agent), "train": dataclasses.asdict(train)}))
        assert found == {table: {**values, **differs.get(table, {})} for table, values in DEFAULT.items()}, name


def test_settings_that_were_recorded_before_have_the_names_of_now():
    now = dataclasses.asdict(agent_config("long"))
    write = {k: v for k, v in now["write"].items() if k != "under_delta"} | {"memory": False}
    before = {"memory": now["adapter"], "learn": now["learn"], "write": write, "answer": now["answer"]}
    assert renamed(before) == now == renamed(now) == recorded(before)


def test_before_presets_said_it_pairs_were_taught_and_asked_bare():
    now = json.loads(json.dumps(dataclasses.asdict(agent_config(PLAIN))))
    before = json.loads(json.dumps(now))
    del before["learn"]["renderings"], before["answer"]["asked"]
    assert recorded(before) == now == recorded(now) and "asked" not in before["answer"]
    assert recorded({"learn": 5}) == {"learn": 5}


def test_whatever_takes_a_preset_and_is_given_none_takes_the_same():
    calls = [Memory.from_pretrained, EvalConfig, soak.compare_settings, agent_config, train_config]
    names = {f.__qualname__: inspect.signature(f).parameters for f in calls}
    found = {name: (shown.get("preset") or shown["name"]).default for name, shown in names.items()}
    for name in ("train", "eval", "budget", "info", "bench"):
        found[name] = next(o.default for o in cli.main.get_command(click.Context(cli.main), name).params if o.name == "preset")
    assert set(found.values()) == {config.DEFAULT_PRESET}, found
