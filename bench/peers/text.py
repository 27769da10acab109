"""The report in a terminal: one table, durability in every row."""

from __future__ import annotations

from bench.peers import result
from bench.peers.result import IN_TABLE, Result, Row
from bench.table import columns


def render(run: Result) -> str:
    """Return the table, what was not measured, and where we are not first."""
    head = ("row", *(measure.short for measure in IN_TABLE), "lost or late", "doubled", "durability")
    lines = [columns([head, *(_cells(row) for row in run.rows if row.rounds)])]
    lines += [f"{row.name}: {' '.join(row.reason.split())}" for row in run.rows if row.reason]
    lines += [f"{row.name} has no {title}: {reason}" for row, title, reason in result.unasked(run.rows)]
    for place in result.places(run.rows):
        if place.ahead:
            best, value = place.ahead[0]
            unit = place.measure.unit
            mine = result.words(place.median, unit)
            lines.append(f"not first: {place.row}, {place.measure.title}: {mine}, {best} {result.words(value, unit)}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    cells = []
    for measure in IN_TABLE:
        figure = measure.figure(row)
        if figure is None:
            cells.append("-")
            continue
        spread = (figure.high - figure.low) / 2 / figure.median if len(row.rounds) > 1 and figure.median else 0.0
        cells.append(result.words(figure.median, measure.unit) + (f" ±{spread:.0%}" if 0 < spread < 10 else ""))
    return (row.name, *cells, str(result.lost(row)), str(result.doubled(row)), row.durability)
