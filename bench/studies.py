"""What a person sees of a study: tables and pictures."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..report.figure import figure
from ..study import init
from . import rsvd


def tables(name: str, found: dict) -> list[Table]:
    return {"init": _init_tables, "rsvd": _rsvd_tables}[name](found)


def draw(name: str, found: dict, beside: Path) -> list[Path]:
    """Beside `x.json`: the pictures of a study. Returns what was drawn."""
    return {"init": _draw_init, "rsvd": _draw_rsvd}[name](found, beside)


def _table(title: str, *columns: str) -> Table:
    table = Table(title="\n" + title, title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


# init ----------------------------------------------------------------------------------------------------------------


def _init_tables(found: dict) -> list[Table]:
    table = _table(
        "each init at its best reach: paraphrases recalled over the later half of the steps",
        "init", "reach", "lr", "loss @4", "recall", "over sigma",
    )  # fmt: skip
    for row in init.summary(found["rows"]):
        (mean, low, high), (more, least, most) = row["recall"], row["over_sigma"]
        table.add_row(
            row["init"], f"{row['reach']:g}", f"{row['lr']:.1e}",
            "diverged" if row["loss"][0] is None else f"{row['loss'][0]:.2f}",
            f"{mean:.2f} [{low:.2f}, {high:.2f}]", f"{more:+.2f} [{least:+.2f}, {most:+.2f}]",
        )  # fmt: skip
    table.caption = "reach chosen on other seeds and words; [95 % interval by bootstrap over seeds, paired for the difference]"
    table.caption_justify = "left"
    return [table]


def _draw_init(found: dict, beside: Path) -> list[Path]:
    drawn = [_learning(found["rows"], beside.with_name(f"{beside.stem}-learning.png"))]
    return [*drawn, _energy(found["energy"], beside.with_name(f"{beside.stem}-energy.png"))]


def _curve(axes, rows: list[dict], key: str, band: bool = False, **style) -> None:
    """Mean over seeds against steps; where a run diverged, the curve ends."""
    steps = sorted({r["steps"] for r in rows})
    points = [(at, [r[key] for r in rows if r["steps"] == at]) for at in steps]
    points = [(at, init.interval(values)) for at, values in points if None not in values]
    if points:
        x, y = zip(*points)
        (line,) = axes.plot(x, [mean for mean, _, _ in y], **style)
        if band:
            axes.fill_between(x, [low for _, low, _ in y], [high for _, _, high in y], color=line.get_color(), alpha=0.12, lw=0)


def _learning(rows: list[dict], path: Path) -> Path:
    shades = {name: f"C{i}" for i, name in enumerate(init.INITS)}
    judged = [r for r in rows if r["phase"] == "judging"]
    tuned = [r for r in rows if r["phase"] == "tuning" and r["optimizer"] == "adamw"]
    plain = [r for r in rows if r["optimizer"] == "sgd"]
    names = list(dict.fromkeys(r["init"] for r in judged))
    with figure(path, (10.5, 9.5)) as picture:
        (loss, recall), (norm, same), (one, other) = picture.subplots(3, 2)
        for name in names:
            mine = [r for r in judged if r["init"] == name]
            reach = f"{name}, reach {mine[0]['reach']:g}"
            _curve(loss, [r for r in mine if r["loss"] is None or r["steps"]], "loss", color=shades[name], label=reach)
            _curve(recall, mine, "recall", band=name in ("sigma", "random", "activation"), color=shades[name])
            swept = [r for r in tuned if r["init"] == name and r["swept"]]
            last = max(r["steps"] for r in swept)
            points = []
            for at in sorted({r["reach"] for r in swept}):
                here = [r for r in swept if r["reach"] == at]
                norms = [r["norm"] for r in here if r["steps"] == last]
                if None not in norms:
                    found = init.late(here)
                    points.append((sum(norms) / len(norms), sum(found.values()) / len(found)))
            norm.plot(*zip(*points), marker=".", color=shades[name])
            _curve(same, [r for r in tuned if r["init"] == name and not r["swept"]], "loss", color=shades[name])
        for name in dict.fromkeys(r["init"] for r in plain):
            mine = [r for r in plain if r["init"] == name]
            _curve(one, [r for r in mine if not r["swept"]], "loss", color=shades[name], label=name)
            for at, dash in zip(sorted({r["reach"] for r in mine if r["swept"]}), (":", "-", "--")):
                here = [r for r in mine if r["swept"] and r["reach"] == at]
                _curve(other, here, "loss", color=shades[name], linestyle=dash, label=f"{name}, reach {at:g}")
        loss.set(yscale="log", xlabel="steps", ylabel="loss of what is taught, nats", title="each at its best reach, judged")
        recall.set(xlabel="steps", ylabel="paraphrases recalled", ylim=(0, 1), title="the same: closed-book recall")
        norm.set(xscale="log", xlabel="‖ΔW‖ after the last step", ylabel="recall, later half of the steps", ylim=(0, 1),
                 title="at equal ‖ΔW‖ (one dot per reach)")  # fmt: skip
        titles = (f"the confound: one AdamW lr {init.SAME_LR['adamw']:g}", f"and one SGD lr {init.SAME_LR['sgd']:g}",
                  "SGD at equal reach")  # fmt: skip
        for axes, title in zip((same, one, other), titles):
            axes.set(yscale="log", xlabel="steps", ylabel="loss, nats", title=title)
        loss.legend(frameon=False, fontsize=7)
        one.legend(frameon=False, fontsize=7)
        other.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return path


def _energy(rows: list[dict], path: Path) -> Path:
    labels = {"own": "16 directions of its inputs on other texts", "top": "16 largest of the weight",
              "bottom": "16 smallest of the weight", "random": "16 random ones"}  # fmt: skip
    with figure(path, (10.5, 5.4)) as picture:
        panels = picture.subplots(2, 3, sharex=True, sharey=True)
        for axes, name in zip(panels.flat, init.ATTENTION + init.MLP):
            mine = [r for r in rows if r["name"] == name]
            for kind, label in labels.items():
                style = {"color": "0.5", "linestyle": ":"} if kind == "random" else {"marker": "."}
                axes.plot([r["layer"] for r in mine], [r[kind] for r in mine], label=label, **style)
            axes.set(title=name, yscale="log")
        for axes in panels[:, 0]:
            axes.set_ylabel("share of ‖x‖²")
        for axes in panels[1]:
            axes.set_xlabel("layer")
        panels[0, 0].legend(frameon=False, fontsize=7)
        picture.suptitle("where the inputs of a layer lie, seen from its weight's right-singular directions", fontsize=10)
    return path


# rsvd ----------------------------------------------------------------------------------------------------------------


def _rsvd_tables(found: dict) -> list[Table]:
    out = []
    for work in dict.fromkeys(r["work"] for r in found["rows"]):
        rows = [r for r in found["rows"] if r["work"] == work]
        table = _table(
            f"{work}, {rows[0]['dtype']}, rank {rsvd.RANK}: time, captured energy E, error of σ over σ_r, medians",
            "way", "setting", "ms", "ratio", "E", "worst", "σ", "worst",
        )  # fmt: skip
        chosen = {id(r) for way in dict.fromkeys(r["way"] for r in rows) if (r := rsvd.fastest(rows, way))}
        for r in rows:
            style = "bold" if id(r) in chosen else ""
            table.add_row(
                r["way"], r["setting"], f"{r['ms']:.0f}", f"{r['ratio']:.2f}x", *(f"{e:.4f}" for e in r["energy"]),
                *(f"{e:.1%}" for e in r["sigma"]), style=style,
            )  # fmt: skip
        ours = rows[0]
        share = ours["least_ms"] / ours["ms"]
        table.caption = (
            f"bold: the fastest setting with a median E of {rsvd.AIM} or more. The first's limit: {ours['least_ms']:.0f} ms "
            f"for {ours['reads']} reads of the matrices and its flops, {share:.0%} reached"
        )
        table.caption_justify = "left"
        out.append(table)
    return out


def _draw_rsvd(found: dict, beside: Path) -> list[Path]:
    """What is missing of the energy against time: to the left and down is better. Lines: medians; hollow: worst matrix."""
    path = beside.with_name(f"{beside.stem}-energy.png")
    works = list(dict.fromkeys(r["work"] for r in found["rows"]))
    with figure(path, (8.5, 5 * len(works))) as picture:
        for axes, work in zip(picture.subplots(len(works), 1, squeeze=False).flat, works):
            rows = [r for r in found["rows"] if r["work"] == work]
            kinds = dict.fromkeys((r["way"], r["setting"].split()[0] if r["way"] == "tmem" else "") for r in rows)
            for i, (way, kind) in enumerate(kinds):
                mine = sorted((r for r in rows if r["way"] == way and r["setting"].startswith(kind)), key=lambda r: r["ms"])
                lost = [[max(1 - r["energy"][k], 1e-6) for r in mine] for k in (0, 1)]
                times = [r["ms"] for r in mine]
                label = f"{way} {kind}".strip()
                axes.plot(times, lost[0], marker="o", color=f"C{i}", label=label, linewidth=2 if way == "tmem" else 1)
                axes.plot(times, lost[1], marker="o", color=f"C{i}", linestyle="", markerfacecolor="none")
            axes.axhline(1 - rsvd.AIM, color="0.5", linestyle=":", linewidth=1)
            axes.annotate(f"E = {rsvd.AIM}", (axes.get_xlim()[1], 1 - rsvd.AIM), ha="right", va="bottom", fontsize=8)
            axes.set(xscale="log", yscale="log", xlabel="ms for all matrices", ylabel="energy not captured, 1 - E",
                     title=f"{work}: median (filled) and worst matrix (hollow)")  # fmt: skip
            axes.legend(frameon=False, fontsize=8)
    return [path]
