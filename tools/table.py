"""The tables of docs/kernels.md and docs/rsvd.md, made from committed runs: python tools/table.py

Between `<!-- table NAME -->` and `<!-- end -->` stands what this writes; `--check` only says whether it is up to date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tmem.bench import rsvd, targets
from tmem.bench.measure import absences
from tmem.study import init

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "docs" / "kernels.md", ROOT / "docs" / "rsvd.md")
RSVD = ROOT / "bench" / "results" / "rsvd-cpu-2-threads.json"
INIT = ROOT / "bench" / "results" / "init-cpu-2-threads.json"
PROMISES = ROOT / "bench" / "results" / "promises-cpu.json"
CPU = ROOT / "bench" / "results" / "cpu-2-threads.json"
LAYER = "576→1536 r=8"


def _source(found: dict, path: Path) -> str:
    box, settings = found["machine"], found["settings"]
    versions = f"torch {found['versions']['torch']}"
    name = found["rows"][0].get("device") == "cuda" and box["gpus"][0]["name"] or f"{box['cpu']}, {settings['threads']} threads"
    return f"{name}, {versions}, commit {found['commit']}: `{path.relative_to(ROOT)}`"


def aims() -> list[str]:
    """What was aimed at and reached on the CPU."""
    found = json.loads(CPU.read_text(encoding="utf-8"))
    lines = ["| work | aim | reached |", "|---|---:|---:|"]
    for aim in targets.reached(found["rows"]):
        bold = "" if aim["met"] else "**"
        lines.append(f"| {aim['work']} | {aim['aim']} | {bold}{aim['reached']:.2f}x{bold} |")
    return [*lines, "", f"Bold: missed. {_source(found, CPU)}"]


def layer() -> list[str]:
    """One layer of the CPU's run against other ways, among them where tmem loses."""
    found = json.loads(CPU.read_text(encoding="utf-8"))["rows"]
    rows = [r for r in found if r["bench"] == "lora" and not r["sweep"] and LAYER in r["case"]]
    return _ratios(rows)


def gpu() -> list[str]:
    """Every committed run on a GPU, or that there is none."""
    files = sorted((ROOT / "results" / "gpu").glob("*.json"))
    if not files:
        return ["No run on a GPU has been made yet: **every number on a GPU is owed.** `make gpu` makes them."]
    lines = []
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        limits, tests, checked = found["ceilings"], found["tests"], found["sanitizer"]
        lines += [
            f"{_source(found, file)}. Copy {limits['copy GB/s']:,.0f} GB/s, GEMM {limits['bfloat16 GF/s'] / 1e3:.0f} TF/s in"
            f" bf16, {limits['float32 GF/s'] / 1e3:.0f} in fp32. Tests: {tests['verdict'][0]} (commit {tests['commit']});"
            f" compute-sanitizer: {', '.join(checked['verdict'])}.",
            "", *_ratios(found["rows"]), "",
        ]  # fmt: skip
    return lines[:-1]


def _ms(ms: float) -> str:
    return f"{1e3 * ms:.3g} µs" if ms < 0.1 else f"{ms:.3g} ms" if ms < 1000 else f"{ms:.0f} ms"


def _ratios(rows: list[dict]) -> list[str]:
    lines = []
    for bench in dict.fromkeys(r["bench"] for r in rows):
        mine, left_out = ([r for r in rows if r["bench"] == bench and ("absent" in r) == absent] for absent in (False, True))
        names = list(dict.fromkeys(r["provider"] for r in mine))
        lines += ["| case | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        for case, dtype in dict.fromkeys((r["case"], r["dtype"]) for r in mine):
            by = {r["provider"]: r for r in mine if (r["case"], r["dtype"]) == (case, dtype)}
            cells = [f"{_ms(by[n]['ms'])}, {by[n]['ratio']:.2f}x" if n in by else "" for n in names]
            lines.append(f"| {case} {dtype} | " + " | ".join(cells) + " |")
        lines += ["", *(line for why in absences(left_out) for line in (f"Left out: {why}.", ""))]
    return lines[:-1]


def rsvd_() -> list[str]:
    """The fastest setting of each way that captures enough, and what was aimed at."""
    return _decompositions(json.loads(RSVD.read_text(encoding="utf-8")), RSVD)


def rsvd_gpu() -> list[str]:
    """The same on every GPU that was tried."""
    lines = []
    for file in sorted((ROOT / "results" / "gpu").glob("*.json")):
        lines += [*_decompositions(json.loads(file.read_text(encoding="utf-8"))["rsvd"], file), ""]
    return lines[:-1]


def _decompositions(found: dict, path: Path) -> list[str]:
    lines = []
    for work in dict.fromkeys(r["work"] for r in found["rows"]):
        rows = [r for r in found["rows"] if r["work"] == work]
        lines += ["| way | setting | ms | over tmem | E, median | worst | σ, median | worst |", "|---|---|" + "---:|" * 6]
        for way in dict.fromkeys(r["way"] for r in rows):
            mine = [r for r in rows if r["way"] == way]
            default = [r for r in mine if (r["way"], r["setting"]) == rsvd.OURS]
            row = default[0] if default else rsvd.fastest(mine, way) or max(mine, key=lambda r: r["energy"][0])
            lines.append(
                f"| {way} | {row['setting']} | {row['ms']:.0f} | {row['ratio']:.2f}x | "
                + " | ".join([*(f"{e:.4f}" for e in row["energy"]), *(f"{e:.1%}" for e in row["sigma"])]) + " |"
            )  # fmt: skip
        ours = rows[0]
        lines += ["", f"{ours['work']}, {ours['dtype']}, rank {rsvd.RANK}; the fastest setting of each way with a median E of "
                  f"{rsvd.AIM}, or its best. σ: largest error of a singular value over σ_r. tmem "
                  f"reaches {ours['least_ms'] / ours['ms']:.0%} of what the measured copy and GEMM rates allow for its reads "
                  f"and flops. {_source(found, path)}", ""]  # fmt: skip
    lines += ["| work | aim | reached |", "|---|---:|---:|"]
    for aim in found["aims"]:
        lines.append(f"| {aim['work']} | {aim['aim']} | {'' if aim['met'] else '**missed** '}{aim['reached']:.2f}x |")
    return lines


def init_() -> list[str]:
    """What each init reached where it was judged."""
    found = json.loads(INIT.read_text(encoding="utf-8"))
    lines = ["| init | reach | lr | loss after 4 steps | recall | 95 % | over sigma | 95 % |", "|---|" + "---:|" * 7]
    for row in init.summary(found["rows"]):
        (mean, low, high), (more, least, most) = row["recall"], row["over_sigma"]
        lines.append(
            f"| {row['init']} | {row['reach']:g} | {row['lr']:.1e} | {row['loss'][0]:.2f} | {mean:.3f} "
            f"| {low:.2f} to {high:.2f} | {more:+.3f} | {least:+.3f} to {most:+.3f} |"
        )
    note = "Recall over the later half of the steps; intervals by bootstrap over conversations."
    return [*lines, "", f"{note} {_source(found, INIT)}"]


def promises() -> list[str]:
    """What each way keeps of the promises of a call."""
    found = json.loads(PROMISES.read_text(encoding="utf-8"))
    broke = {(row["promise"], row["way"]): row["broke"] for row in found["rows"]}
    names, ways = (list(dict.fromkeys(keys)) for keys in zip(*broke))
    lines = ["| promise | " + " | ".join(ways) + " |", "|---|" + "---|" * len(ways)]
    lines += [f"| {name} | " + " | ".join(broke[name, way] or "holds" for way in ways) + " |" for name in names]
    return [*lines, "", _source(found, PROMISES)]


def filled(text: str) -> str:
    """The document with every table made anew."""
    tables = {"aims": aims, "layer": layer, "gpu": gpu, "rsvd": rsvd_, "rsvd_gpu": rsvd_gpu, "init": init_}
    tables["promises"] = promises

    def made(match: re.Match) -> str:
        return f"<!-- table {match[1]} -->\n" + "\n".join(tables[match[1]]()) + "\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", made, text, flags=re.S)


def main() -> int:
    stale = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        made = filled(text)
        stale |= made != text
        if "--check" not in sys.argv:
            document.write_text(made, encoding="utf-8")
    return int(stale) if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
