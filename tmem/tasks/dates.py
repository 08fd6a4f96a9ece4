"""Dates as benchmark files write them: read for their order, shown with their weekday."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

__all__ = ["shown", "when"]

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
