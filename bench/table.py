"""The tables of docs/kernels.md, made from committed runs: python -m tmem.bench.table

Between `<!-- table NAME -->` and `<!-- end -->` stands what this writes; `--check` only says whether it is up to date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from . import targets

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "kernels.md"
CPU = ROOT / "bench" / "results" / "cpu-2-threads.json"
LAYER = "576→1536 r=8"


def _source(found: dict, path: Path) -> str:
    box, settings = found["machine"], found["settings"]
    versions = f"torch {found['versions']['torch']}"
    name = found["rows"][0]["device"] == "cuda" and box["gpus"][0]["name"] or f"{box['cpu']}, {settings['threads']} threads"
    return f"{name}, {versions}, commit {found['commit']}: `{path.relative_to(ROOT)}`"


def aims() -> list[str]:
    """What was aimed at and reached on the CPU."""
    found = json.loads(CPU.read_text())
    lines = ["| work | aim | reached |", "|---|---:|---:|"]
    for aim in targets.reached(found["rows"]):
        bold = "" if aim["met"] else "**"
        lines.append(f"| {aim['work']} | {aim['aim']} | {bold}{aim['reached']:.2f}x{bold} |")
    return [*lines, "", f"Bold: missed. {_source(found, CPU)}"]


def layer() -> list[str]:
    """One layer of the CPU's run against other ways, among them where tmem loses."""
    rows = [r for r in json.loads(CPU.read_text())["rows"] if r["bench"] == "lora" and not r["sweep"] and LAYER in r["case"]]
    return _ratios(rows)


def gpu() -> list[str]:
    """Every committed run on a GPU, or that there is none."""
    files = sorted((ROOT / "results" / "gpu").glob("*.json"))
    if not files:
        return ["No run on a GPU has been made yet: **every number on a GPU is owed.** `make gpu` makes them."]
    lines = []
    for file in files:
        found = json.loads(file.read_text())
        lines += [_source(found, file), "", *_ratios(found["rows"]), ""]
    return lines[:-1]


def _ratios(rows: list[dict]) -> list[str]:
    lines = []
    for bench in dict.fromkeys(r["bench"] for r in rows):
        mine = [r for r in rows if r["bench"] == bench]
        names = list(dict.fromkeys(r["provider"] for r in mine))
        lines += ["| case | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        for case, dtype in dict.fromkeys((r["case"], r["dtype"]) for r in mine):
            by = {r["provider"]: r for r in mine if (r["case"], r["dtype"]) == (case, dtype)}
            cells = [f"{by[n]['ms']:.3g} ms, {by[n]['ratio']:.2f}x" if n in by else "" for n in names]
            lines.append(f"| {case} {dtype} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1]


def filled(text: str) -> str:
    """The document with every table made anew."""
    tables = {"aims": aims, "layer": layer, "gpu": gpu}

    def made(match: re.Match) -> str:
        return f"<!-- table {match[1]} -->\n" + "\n".join(tables[match[1]]()) + "\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", made, text, flags=re.S)


def main() -> int:
    text = DOCUMENT.read_text()
    made = filled(text)
    if "--check" in sys.argv:
        return int(made != text)
    DOCUMENT.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
