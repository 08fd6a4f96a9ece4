"""What may be imported from `tmem`: every name is there, light until it is used, and described; docs/api.md says the same."""

import importlib.util
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import tmem

ROOT = Path(__file__).parents[1]


def things():
    """(name, object) for every public class, function, method and property."""
    for name in tmem.__all__:
        thing = getattr(tmem, name)
        if isinstance(thing, types.ModuleType):
            members = [(member, getattr(thing, member)) for member in thing.__all__]
        else:
            members = [(member, value) for member, value in vars(thing).items() if not member.startswith("_")]
            yield name, thing
        members += [(f"{c}.{m}", v) for c, cls in members if isinstance(cls, type) for m, v in vars(cls).items() if m[0] != "_"]
        for member, value in members:
            value = getattr(value, "__func__", value)
            if callable(value) or isinstance(value, property):
                yield f"{name}.{member}", value


def test_every_name_is_there_and_listed():
    assert len(set(tmem.__all__)) == len(tmem.__all__) and set(tmem.__all__) <= set(dir(tmem))
    for name in tmem.__all__:
        assert getattr(tmem, name) is getattr(tmem, name)
    with pytest.raises(AttributeError, match="module 'tmem' has no attribute 'Memry'"):
        tmem.Memry  # noqa: B018


def test_a_star_brings_the_names_and_an_import_nothing_heavy():
    code = (
        "import sys, tmem\n"
        "print({'torch', 'numpy', 'transformers'} & set(sys.modules))\n"
        "tmem.Episode, tmem.Pair, tmem.Question\n"
        "print({'torch', 'numpy', 'transformers'} & set(sys.modules))\n"
        "from tmem import *\n"
        "print(sorted(set(tmem.__all__) - set(globals())))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:3] == ["set()", "set()", "[]"]


def test_everything_public_is_described():
    found = dict(things())
    assert {"Memory.ask", "AdapterBank.route", "Task.score", "ops.lora_linear"} <= found.keys()
    assert [name for name, thing in found.items() if len(inspect.getdoc(thing) or "") < 20] == []


def test_every_op_says_shapes_and_errors():
    for name, op in things():
        if name.startswith("ops.") and name != "ops.kernel_for":
            doc = inspect.getdoc(op)
            assert "Raises" in doc and re.search(r"\[\w+(,\w+)*\]|\[S,\.\.\.\]", doc), name


@pytest.fixture(scope="module")
def api():
    pytest.importorskip("griffe2md", reason="the generator needs Python 3.11")
    import api

    return api


@pytest.fixture(scope="module")
def page(api):
    return api.page()


def test_the_page_of_the_api_is_the_docstrings(page):
    assert (ROOT / "docs" / "api.md").read_text() == page, "run `make docs` and commit docs/api.md"


def test_the_generator_checks_or_writes_a_file_and_takes_no_other_word(api, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "page", lambda: "made\n")
    file = tmp_path / "api.md"
    assert api.main(["--check", str(file)]) == 1 and not file.exists()
    assert api.main([str(file)]) == 0 and file.read_text() == "made\n"
    assert api.main(["--check", str(file)]) == 0
    file.write_text("older\n")
    assert api.main(["--check", str(file)]) == 1 and file.read_text() == "older\n"
    with pytest.raises(SystemExit, match="2"):
        api.main(["--chek"])
    assert "unrecognized arguments: --chek" in capsys.readouterr().err and [f.name for f in tmp_path.iterdir()] == ["api.md"]


def test_the_page_of_the_api_has_all_of_it(page):
    headings = re.findall(r"^#{3,4} `(\w+)`$", page, re.MULTILINE)
    assert sorted(headings) == sorted(name.rpartition(".")[2] for name, _ in things())


def test_nothing_of_the_page_is_lost_in_markdown(page):
    """A tag or a link that a docstring does not mean would vanish from the page."""
    prose = re.sub(r"```.*?```|`[^`\n]*`|^ {4}.*$", "", page, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"</?[a-zA-Z][^\n]*>|\]\(", prose) == []


def test_types_are_marked():
    assert Path(importlib.util.find_spec("tmem").origin).with_name("py.typed").is_file()
