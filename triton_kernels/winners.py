"""winners: the file of one architecture in which `make gpu` leaves the configurations that won its tournament.

{"rows": [{"kernel", "activation", "factor", "rank", "bd", "warps", "stages", "rows", "few"}, ...]}, and whatever else tells
where it was made. It is the same for every batch, as the table is.
"""

import json
from dataclasses import replace
from pathlib import Path

PLACE = ("kernel", "activation", "factor", "rank")
SIZES = {  # what a configuration may be made of; backward alone may have no rows: then it is shrink and gram
    "bd": (16, 32, 64, 128, 256, 512),
    "warps": (1, 2, 4, 8, 16),
    "stages": (1, 2, 3, 4, 5, 6, 7, 8),
    "rows": (64, 128),
    "few": (16, 64),
}
PARTS = (64, 128, 256, 512, 1024)  # what `rows` may be of attend
LINKED = ("backward", "gram", "gram of few slots")  # they sum the rows of a segment in one order: see configs.Config


def read(path: Path, known: dict) -> dict:
    """place -> configuration, as the file has it; {} where there is no file. known: place -> the configuration without it, of
    every place. Raises ValueError that says all that is wrong."""
    if not path.exists():
        return {}
    try:
        return accepted(json.loads(path.read_text(encoding="utf-8"))["rows"], known)
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no table of configurations ({why}); take it away, or let `make gpu` write it") from error


def accepted(rows: list[dict], known: dict) -> dict:
    """place -> configuration of these records. Raises ValueError that says all that is wrong, KeyError for no place."""
    wrong, found = [], {}
    for row in rows:
        place = tuple(row[name] for name in PLACE)
        name = " ".join(map(str, place))
        if place not in known or place in found:
            wrong.append(f"{name} is {'there twice' if place in found else 'no kernel of the table'}")
        elif row.keys() != {*PLACE, *SIZES}:
            wrong.append(f"{name} has {', '.join(sorted(row))}")
        else:
            wrong += (f"{field} of {name} is {row[field]!r}" for field in SIZES if not _may_be(place[0], field, row[field]))
            found[place] = replace(known[place], **{field: row[field] for field in SIZES})
    if not wrong:
        split = (rank for rank in sorted({place[3] for place in found}) if len(orders(known | found, rank)) > 1)
        wrong = [f"rows of {', '.join(LINKED)} differ at rank {rank}" for rank in split]
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def orders(rows: dict, rank: int) -> set[int]:
    """In steps of how many rows the gradients of 16-bit rows are summed at this rank: one, or bits would depend on a batch."""
    return {c.rows for (kernel, bits, _, of), c in rows.items() if kernel in LINKED and bits == 16 and of == rank} - {0}


def row(place: tuple, config) -> dict:
    """A record of the file."""
    return dict(zip(PLACE, place)) | {field: getattr(config, field) for field in SIZES}


def _may_be(kernel: str, field: str, value: object) -> bool:
    if type(value) is not int:
        return False
    if (kernel, field) == ("attend", "rows"):
        return value in PARTS
    return value in SIZES[field] or (value == 0 and (kernel, field) == ("backward", "rows"))
