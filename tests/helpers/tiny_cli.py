"""The `tmem` command on a tiny model."""

import pytest
from click.testing import CliRunner
from tiny import Letters, model
from tiny_run import PRESET

from tmem import cli
from tmem.files.journal import read_jsonl
from tmem.models import loading


@pytest.fixture
def tmem(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(PRESET.replace('reward = "shout"', ""))
    monkeypatch.setattr(loading, "load_model", lambda name=None, **_: (model(max_position_embeddings=2048), Letters()))
    monkeypatch.setattr(loading, "save_model", lambda *_, **__: None)

    def call(*words):
        words = [str(tmp_path / w) if w in ("OUT", "OUT2") else w for w in words]
        words += ["--preset", str(tmp_path / "tiny.toml")] if "--preset" not in words else []
        return CliRunner().invoke(cli.main, words, env={"COLUMNS": "160"})

    return call


def rows(path, name="answers"):
    return read_jsonl(path / f"{name}.jsonl")
