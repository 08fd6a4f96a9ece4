"""The table of docs/models.md that says what every family can, made from the names of the tests: python tools/families.py

A cell is "tested" where a test of that ability has the family among its cases, "refused" where one says that it is refused.
Between `<!-- table families -->` and `<!-- end -->` stands what this writes; `--check` only says whether it is up to date.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "models.md"
MINE = "tests/models/test_abilities.py::"
FAMILIES = "tests/models/test_families.py::"
# Of every column the tests that try it; a test of the same name in MINE with `_is_refused` says that it is refused.
ABILITIES = {
    "trained": f"{MINE}test_trained",
    "trained as an adapter": f"{MINE}test_trained_as_an_adapter",
    "decoded": f"{FAMILIES}test_greedy_decoding_is_that_of_transformers",
    "captured": f"{MINE}test_captured",
    "GGUF": "tests/models/test_gguf.py::test_every_family_computes_what_the_folder_computes",
    "PEFT, out and in": f"{FAMILIES}test_what_was_learned_is_a_peft_adapter",
    "nf4": f"{MINE}test_nf4",
    "int8": f"{MINE}test_int8",
    "fp8": f"{MINE}test_fp8",
    "experts": f"{MINE}test_experts_adapted",
}
REFUSALS = {"trained": "test_trained", "GGUF": "test_gguf"}


def collected() -> dict[str, set[str]]:
    """Of every test, by its file and name, the words in the names of its cases."""
    files = sorted({test.partition("::")[0] for test in ABILITIES.values()})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *files]
    found: dict[str, set[str]] = {}
    for line in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if "::" in line:
            test, _, case = line.partition("[")
            found.setdefault(test, set()).update(case.removesuffix("]").split("-"))
    return found


def table() -> list[str]:
    tests = collected()
    rows = sorted(tests[ABILITIES["nf4"]])  # of every family
    lines = [f"| `model_type` | {' | '.join(ABILITIES)} |", f"|---|{'---|' * len(ABILITIES)}"]
    for family in rows:
        cells = []
        for ability, test in ABILITIES.items():
            refused = tests.get(f"{MINE}{REFUSALS.get(ability)}_is_refused", set())
            tried = family in tests.get(test, set())
            cells.append("tested" if tried else "refused" if {family, family.partition("+")[0]} & refused else "")
        lines.append(f"| `{family}` | {' | '.join(cells)} |".replace("|  |", "| |"))
    return lines


def filled(text: str) -> str:
    """A document with its table made anew."""
    made = "\n".join(table())
    return re.sub(r"(<!-- table families -->\n).*?(\n<!-- end -->)", lambda m: f"{m[1]}{made}{m[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    before = DOCUMENT.read_text(encoding="utf-8")
    after = filled(before)
    if "--check" in sys.argv:
        sys.exit(0 if after == before else f"{DOCUMENT.relative_to(ROOT)}: run python tools/families.py")
    DOCUMENT.write_text(after, encoding="utf-8")
