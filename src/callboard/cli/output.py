"""What commands print: JSON for programs, tables for people (with rich on a terminal, plain text elsewhere)."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TextIO

import click

# C0 but tab and line feed, DEL, C1; then what turns the direction of a line, ends one, or is not seen at all, so that a
# text does not look like another one to who decides about it.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
_UNITS = {"s": 1.0, "m": MINUTE_S, "h": HOUR_S, "d": DAY_S, "w": 7 * DAY_S}


def emit(value: object, *, file: TextIO | None = None) -> None:
    """Write one JSON value on one line; anything msgspec can encode."""
    import msgspec

    click.echo(msgspec.json.encode(value), file=file)


def tell(text: str, *, end: str = "\n") -> None:
    """Write a line, or with another ``end`` a piece of one, of what somebody else wrote: an id, an error, a result."""
    click.echo((visible(text) if sys.stdout.isatty() else text) + end, nl=False)


def visible(text: str) -> str:
    """Return ``text`` without what a terminal would take for orders; line ends and tabs stay."""
    return _CONTROL.sub(_spelled, text)


def one_line(text: str) -> str:
    """Return ``text`` on one line, so that it cannot look like the lines around it."""
    return " ".join(text.split())


def table(rows: Sequence[Sequence[str]], *, head: Sequence[str], empty: str) -> None:
    """Write rows under their heads, or ``empty`` when there is none."""
    if not rows:
        click.echo(empty, err=not sys.stdout.isatty())
        return
    if not sys.stdout.isatty():
        widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
        for row in [head, *rows]:
            line = "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo(line.rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(visible(str(cell))) for cell in row))
    Console().print(shown)


def note(text: str) -> None:
    """Say something to the person on standard error; it never mixes with results."""
    click.echo(visible(text) if sys.stderr.isatty() else text, err=True)


def ended(status: str, why: str, *, between: str = ": ") -> str:
    """Return how something ended and why, without saying one word twice: a reason may begin with the status."""
    return why if why.startswith(status) else f"{status}{between}{why}" if why else status


def stamp(moment: datetime | None) -> str:
    """Return a time as people read it here: local, to the second."""
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: float) -> str:
    """Return bytes in a unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def shorten(text: str, width: int = 80) -> str:
    """Return the beginning of ``text`` on one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _spelled(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"  # noqa: PLR2004 - two digits hold no more


class Span(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """A length of time: ``90``, ``90s``, ``5m``, ``1.5h``, ``2d``. The value is seconds."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value).strip().lower()
        number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
        try:
            seconds = float(number) * _UNITS[unit]
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            self.fail(f"{value!r} is not a length of time: write 90s, 5m, 1.5h or 2d", param, ctx)
        return seconds


class Moment(click.ParamType):  # type: ignore[type-arg]  # as above
    """A point in time: ISO 8601 (without an offset: local time), or a span before now such as ``2h``."""

    name = "WHEN"

    def __init__(self, *, is_future: bool = False) -> None:
        self._sign = 1 if is_future else -1

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return an aware time in UTC."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            from callboard.runtime.clock import SYSTEM_CLOCK

            try:
                return SYSTEM_CLOCK.now() + self._sign * timedelta(seconds=Span().convert(text, param, ctx))
            except (click.UsageError, OverflowError):
                self.fail(f"{text!r} is not a time: write 2026-11-21T09:30:00Z, or a span such as 2h", param, ctx)
        return moment.astimezone(UTC)


SPAN = Span()
SINCE = Moment()
UNTIL = Moment(is_future=True)
