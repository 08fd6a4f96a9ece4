"""Presets: whatever a file holds, it is settings or one sentence."""

import dataclasses
import random
import re
from pathlib import Path

import pytest

from tmem.agent import config
from tmem.agent.config import agent_config, build, read
from tmem.rl.config import TrainConfig


def settings(path):
    """All that `tmem train` makes of a preset."""
    return agent_config(path), build(TrainConfig, read(path).get("train", {}), "train")


def said(tmp_path, text):
    file = tmp_path / "mine.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as found:
        settings(file)
    sentence = str(found.value)
    assert sentence.startswith("preset: ") and len(sentence) < 700, sentence
    return sentence


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('answer = ""', r"\[answer\]: expected a table of settings, got ''"),
        ("train = 5", r"\[train\]: expected a table"),
        ("[[learn]]\nlr = 1", r"\[learn\]: expected a table"),
        ('[learn]\n__module__ = "x"', r"\[learn\] has no setting '__module__'"),
        ('[train]\n__post_init__ = "x"', r"\[train\] has no setting '__post_init__'"),
        ("[learn.lr]\na = 1", r"\[learn\] lr: expected a number such as 0.001, got \{'a': 1\}"),
        ("[learn]\n" + "lr" + ".a" * 3000 + " = 1", r"\[learn\] lr: expected a number such as 0.001, got \{'a': \{"),
        ("[learn]\nlr = " + "[" * 5000 + "]" * 5000, "is not valid TOML"),
        ("[learn]\nlr = " + "{a=" * 5000 + "1" + "}" * 5000, "is not valid TOML"),
        ("[learn]\nlr = " + "9" * 5000, "is not valid TOML"),
        ("[learn]\nlr = " + "9" * 400, r"\[learn\] lr: expected 2147483647 or less, got 999"),
        ("[learn]\nlr = nan", r"\[learn\] lr: expected 0 or more"),
        ("[learn]\nlr = -inf", r"\[learn\] lr: expected 0 or more"),
        ("[learn]\nlr = true", r"\[learn\] lr: expected a number"),
        ("[learn]\nepochs = 1.5", r"\[learn\] epochs: expected a whole number such as 10, got 1.5"),
        ("[learn]\nepochs = 0", r"\[learn\] epochs: expected 1 or more"),
        ("[learn]\nepochs = 1979-05-27", r"\[learn\] epochs: expected a whole number"),
        ("[adapter]\ntargets = []", r"\[adapter\] targets: expected a list of names such as \['gate_proj'"),
        ("[adapter]\ntargets = [1]", r"\[adapter\] targets: expected a list of names"),
        ("[adapter]\ntargets = [['x']]", r"\[adapter\] targets: expected a list of names"),
        ('[adapter]\ntargets = "x"', r"\[adapter\] targets: expected a list of names"),
        (b'[learn]\nunknown = "\xe9"', "is not valid TOML: 'utf-8' codec can't decode"),
        (b"\xff\xfe[\x00l\x00", "is not valid TOML"),
        ("[learn", "is not valid TOML"),
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
    for _ in range(600):
        text = rng.choice(files).read_text(encoding="utf-8")
        lines = text.splitlines()
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(lines))
            key = lines[at].split(" = ")[0]
            lines[at] = rng.choice([
                f"{key} = {rng.choice(WORDS)}", f"{key}.{key} = 1", f"[{key}]", f"[[{key}]]", "",
                f"[{rng.choice(config.TABLES)}]", f"{rng.choice(config.TABLES)} = {rng.choice(WORDS)}",
                lines[at][: rng.randint(0, 20)], f"__class__ = {key!r}",
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
            for default in (*vars(found[0]).values(), found[1]):
                for f in dataclasses.fields(default):
                    assert type(getattr(default, f.name)) is type(f.default), f.name
            ends["fine"] += 1
    assert min(ends.values()) > 30, ends


def test_the_presets_that_come_with_it_are_settings():
    for file in sorted(config.PRESETS.glob("*.toml")):
        assert settings(Path(file)) == settings(file.stem)
