"""Dates as benchmark files write them: read for their order, shown with their weekday, and relative ones resolved."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

__all__ = ["resolved", "shown", "when"]

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
           "december")  # fmt: skip
_TIME = r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,][0-9]{1,9})?)?\s*(?P<half>[ap]\.?m\.?)?"
_WEEKDAY = r"\(?(?P<weekday>mon|tue|wed|thu|fri|sat|sun)[a-z]*\)?"
_ZONE = r"\s*(?P<zone>z|utc|gmt|[+-][0-9]{2}(?::?[0-9]{2})?)?"
_NAMED = (  # "8 May, 2023", "May 8th, 2023"
    r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?\s+(?P<name>[a-z]{3,9})\.?,?\s+(?P<year>[0-9]{4})",
    r"(?P<name>[a-z]{3,9})\.?\s+(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?,?\s+(?P<year>[0-9]{4})",
)
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        # "2023/05/20 (Sat) 02:21", "2023-05-20T02:21:00Z", "2023-05-20 02:21", "2023/05/20"
        rf"(?P<year>[0-9]{{4}})([-/.])(?P<month>[0-9]{{1,2}})\2(?P<day>[0-9]{{1,2}})(?:\s*,?\s*{_WEEKDAY})?"
        rf"(?:(?:\s*,?\s*|t){_TIME}{_ZONE})?",
        # "1:56 pm on 8 May, 2023", "Monday, 8 May 2023"
        *(rf"(?:{_TIME}\s*(?:on|,)?\s*)?(?:{_WEEKDAY},?\s*)?{date}" for date in _NAMED),
        # "8 May 2023, 1:56 pm", "Mon, 8 May 2023 13:56:00 +0000"
        *(rf"(?:{_WEEKDAY},?\s*)?{date}(?:\s*,\s*|\s+at\s+|\s+){_TIME}{_ZONE}" for date in _NAMED),
    )
)

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DAYS = {"the day before yesterday": -2, "yesterday": -1, "last night": -1, "today": 0, "tonight": 0, "this morning": 0,
         "this afternoon": 0, "this evening": 0, "tomorrow": 1, "tomorrow night": 1, "tomorrow morning": 1,
         "the day after tomorrow": 2}  # fmt: skip
_SIDES = {"last": -1, "this": 0, "next": 1}
_COUNTED = re.compile(rf"(?:(in) )?(an?|[0-9]{{1,4}}|{'|'.join(_NUMBERS)}) (day|week|month|year)s?( ago)?")
_NAMED_PERIOD = re.compile(r"(last|this|next) ([a-z]+)")


def when(date: str) -> datetime | None:
    """The moment that a date names, in UTC where it says a zone; None for one of another form, or that no calendar has."""
    found = _read(date)
    return found and found[0] - found[1]


def shown(date: str) -> str:
    """A date with its weekday, as LongMemEval has it, "2023/05/20 (Sat) 02:21"; as it is if it has one or cannot be read."""
    found = _read(date)
    if not found or found[2].get("weekday"):
        return date
    at, _, parts = found
    time = f" {at:%H:%M}" if parts["hour"] else ""
    return f"{at.year:04}/{at.month:02}/{at.day:02} ({DAYS[at.weekday()]}){time}"


def _read(date: str) -> tuple[datetime, timedelta, dict[str, str | None]] | None:
    """The local time, how far it is ahead of UTC, and the parts that the date has."""
    match = next((m for form in _FORMS if (m := form.fullmatch(date.strip()))), None)
    if match is None:
        return None
    parts = match.groupdict()
    hour = int(parts["hour"] or 0)
    if half := parts["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (half[0].lower() == "p")
    day = parts["year"], parts.get("month") or _month(parts["name"]), parts["day"]
    try:
        at = datetime(*map(int, day), hour, *(int(parts[p] or 0) for p in ("minute", "second")))
        ahead = _ahead(parts.get("zone"))
        at - ahead  # may be before the first year
    except (ValueError, OverflowError):
        return None
    return at, ahead, parts


def _month(name: str) -> int:
    return next((i for i, month in enumerate(_MONTHS, 1) if month.startswith(name.lower())), 0)


def _ahead(zone: str | None) -> timedelta:
    if not zone or zone[0] not in "+-":
        return timedelta()
    return datetime.strptime(zone.replace(":", "").ljust(5, "0"), "%z").utcoffset() or timedelta()


def resolved(said: str, at: datetime) -> str | None:
    """What "yesterday", "last Friday", "two weeks ago" or "next month" is at that time: "7 May 2023", "the week before 8 May
    2023", "June 2023", "2022". None for anything else, and for "this Friday", which may lie on either side.

    "last Friday" is the last one before that day, "next Friday" the first one after it.
    """
    words = " ".join(said.lower().split()).strip(" .!,")
    words = re.sub(r"^(?:on|during) ", "", words)
    try:
        if words in _DAYS:
            return _day(at + timedelta(_DAYS[words]))
        if (counted := _COUNTED.fullmatch(words)) and bool(counted[1]) != bool(counted[4]):
            return _counted(at, counted[2], counted[3], 1 if counted[1] else -1)
        named = _NAMED_PERIOD.fullmatch(words)
        return _period(at, _SIDES[named[1]], named[2]) if named else None
    except (ValueError, OverflowError):  # before the first year, or after the last
        return None


def _counted(at: datetime, number: str, unit: str, sign: int) -> str:
    count = 1 if number in ("a", "an") else _NUMBERS.index(number) + 1 if number in _NUMBERS else int(number)
    if unit in ("day", "week"):
        return _day(at + timedelta(sign * count * (7 if unit == "week" else 1)))
    return _shifted(at, sign * count, unit)


def _period(at: datetime, side: int, name: str) -> str | None:
    if name in ("month", "year"):
        return _shifted(at, side, name)
    if name in ("week", "weekend"):
        return f"the {name} {('before', 'of', 'after')[side + 1]} {_day(at)}"
    weekday = next((i for i, day in enumerate(DAYS) if name.startswith(day.lower()) and name.endswith("day")), None)
    if weekday is None or not side:
        return None
    ahead = (weekday - at.weekday()) % 7
    return _day(at + timedelta(ahead or 7 if side > 0 else ahead - 7))


def _shifted(at: datetime, count: int, unit: str) -> str:
    """The month or year so many after that time, as far as it is said: "June 2023", "2022"."""
    months = at.year * 12 + at.month - 1 + count * (12 if unit == "year" else 1)
    month = datetime(months // 12, months % 12 + 1, 1)
    return f"{month.year}" if unit == "year" else f"{_MONTHS[month.month - 1].title()} {month.year}"


def _day(at: datetime) -> str:
    return f"{at.day} {_MONTHS[at.month - 1].title()} {at.year}"
