"""JSON of one record a line: nothing but white space differs from what json.dumps gives."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmem.files import layout
from tmem.files.layout import laid_out

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=6) | st.dictionaries(st.text(), v, max_size=6), max_leaves=60)


def flat(value):
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not any(isinstance(member, (dict, list)) for member in members)


def without_space(text):
    """The text without white space between its tokens, read one string at a time."""
    found, at = [], 0
    while at < len(text):
        if text[at] == '"':
            _, end = json.decoder.scanstring(text, at + 1)
            found.append(text[at:end])
            at = end
        else:
            found.append(text[at].strip(" \n"))
            at += 1
    return "".join(found)


@settings(deadline=None)
@given(VALUES, st.sampled_from([0, 12, 40, 400]))
def test_it_says_what_json_says_to_the_character(value, width):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "WIDTH", width)
        text = laid_out(value)
    assert json.loads(text) == value
    assert without_space(text) == without_space(json.dumps(value, ensure_ascii=False))


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), SCALARS), min_size=1))
def test_a_list_of_records_has_a_record_a_line(records):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "WIDTH", 0)
        first, *lines, last = laid_out({"rows": records}).split("\n")
    assert (first, lines[0], lines[-1], last) == ("{", ' "rows": [', " ]", "}")
    assert [json.loads(line.removesuffix(",")) for line in lines[1:-1]] == records


@settings(deadline=None)
@given(VALUES, st.integers(0, 60))
def test_a_long_line_holds_a_flat_record(value, width):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "WIDTH", width)
        lines = laid_out(value).split("\n")
    for line in lines:
        member = line.strip(" ").removesuffix(",")
        if len(member) > width and member[-1] not in "[{":
            key = json.decoder.scanstring(member, 1)[1] if member[0] == '"' else 0
            member = member[key + 2 :] if member[key : key + 2] == ": " else member
            assert len(member) <= width or member in ("]", "}") or flat(json.loads(member))


def test_what_it_looks_like(monkeypatch):
    monkeypatch.setattr(layout, "WIDTH", 24)
    value = {"n": 2, "rows": [{"f1": 0.5, "ci": [0.25, 0.75]}, {"name": "Zoë " * 6}], "none": {}, 3: (1, 2)}
    assert laid_out(value) == "\n".join(
        [
            "{",
            ' "n": 2,',
            ' "rows": [',
            "  {",
            '   "f1": 0.5,',
            '   "ci": [0.25, 0.75]',
            "  },",
            '  {"name": "Zoë Zoë Zoë Zoë Zoë Zoë "}',
            " ],",
            ' "none": {},',
            ' "3": [1, 2]',
            "}",
        ]
    )


@pytest.mark.parametrize("bad, error", [(math.nan, ValueError), ([math.inf], ValueError), ({"a": {1, 2}}, TypeError)])
def test_what_json_cannot_say_is_refused(bad, error):
    with pytest.raises(error):
        laid_out(bad)
