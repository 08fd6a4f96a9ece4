"""What the documents name is there: links, and the files and tests in backticks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(f for f in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/*.md")))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
# A path below a folder of this repository, as in `tests/ops/test_ops.py::test_every_instruction_set[avx2]`.
NAMED = re.compile(
    r"`(?:python )?((?:tmem|csrc|bench|tests|tools|triton_kernels|docs|examples|results)/[\w./-]+)(?:::(\w+))?[^`]*`"
)


def missing(document: Path, text: str) -> list[str]:
    links = [link for link in LINK.findall(text) if "://" not in link and not (document.parent / link).exists()]
    named = []
    for path, test in NAMED.findall(text):
        file = ROOT / path
        if not file.exists() or test and f"def {test}(" not in file.read_text(encoding="utf-8"):
            named.append(f"{path}::{test}" if test else path)
    return links + named


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda f: str(f.relative_to(ROOT)))
def test_what_a_document_names_is_there(document):
    assert missing(document, document.read_text(encoding="utf-8")) == []


def test_the_reader_sees_what_is_not_there():
    links, named = (
        "[a](README.md) [b](gone.md#part) [c](https://example.org)",
        "`tests/test_docs.py::test_gone` `tests/` `tmem/gone.py`",
    )
    assert missing(ROOT / "README.md", links + named) == ["gone.md", "tests/test_docs.py::test_gone", "tmem/gone.py"]
