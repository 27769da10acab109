"""Which worker did what when: one lane of SVG per worker, the kill marked across all of them."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from callboard.agents.digest.html import esc, plural, seconds
from callboard.agents.digest.ledger import Entry, Ledger, WorkerTotal

_WIDTH: Final = 1000.0
_ROW: Final = 12
_MAX_ROWS: Final = 12
_TINY: Final = 2.0  # thousandths of the width; about two pixels
_JOINED: Final = 20.0  # a joined bar is cut here, so that pointing at it still says when
_COLOURS: Final = 6
_FLAG_FLIPS_AT: Final = 60  # per cent; further right the kill's label stands on its left


_WAIT_HEIGHT: Final = 24
_WAIT_STEPS: Final = 250
_LEAST_WAIT: Final = 2.0  # one waiting task among thousands must be seen


class _Bar(NamedTuple):
    begin: float
    end: float
    row: int
    css: str
    tasks: int
    label: str


class _Span(NamedTuple):
    begin: datetime
    end: datetime
    css: str
    label: str


class _Scale(NamedTuple):
    start: datetime
    length_s: float

    def x(self, at: datetime) -> float:
        return min(max((at - self.start).total_seconds() / self.length_s, 0.0), 1.0) * _WIDTH


def capability_classes(ledger: Ledger) -> dict[str, str]:
    """Return a colour class for each capability, in the order in which they began."""
    return {
        name: f"c{index % _COLOURS}"
        for index, name in enumerate(dict.fromkeys(entry.capability for entry in ledger.entries))
    }


def tag(worker: WorkerTotal) -> str:
    """Return the mark behind a worker's name: killed, or started in the killed one's place; else nothing."""
    if worker.fate == "killed":
        return '<span class="tag bad">killed</span>'
    return '<span class="tag soft">replacement</span>' if worker.fate == "replacement" else ""


def timeline(ledger: Ledger, *, start: datetime, end: datetime) -> str:
    """Return the timeline as HTML with one SVG per worker.

    Tasks of one slot that are too short to be seen apart are drawn as one bar that says how many it stands for, so the
    size of the page does not grow with the number of tasks.
    """
    scale = _Scale(start, max((end - start).total_seconds(), 0.001))
    colours = capability_classes(ledger)
    by_worker: dict[str, list[Entry]] = defaultdict(list)
    for entry in ledger.entries:
        by_worker[entry.worker].append(entry)
    lanes = "".join(_lane(worker, by_worker[worker.worker], ledger, scale, colours) for worker in ledger.workers)
    body = f"{_flag(ledger, scale)}{_waiting(ledger, scale)}{lanes}{_axis(scale)}"
    return f'<div class="timeline">{body}</div>{_legend(ledger, colours)}'


def _lane(worker: WorkerTotal, entries: Sequence[Entry], ledger: Ledger, scale: _Scale, colours: dict[str, str]) -> str:
    kill = ledger.kill
    is_killed = kill is not None and kill.worker == worker.worker
    bars, rows = _bars(_finished(entries, colours) + (_cut_off(ledger) if is_killed else []), scale)
    height = rows * _ROW
    shapes = [f'<rect class="lane-ground" width="{_WIDTH:.0f}" height="{height}"/>']
    fate = ""
    if kill and is_killed:
        dead = scale.x(kill.at)
        shapes.append(f'<rect class="dead" x="{dead:.1f}" width="{_WIDTH - dead:.1f}" height="{height}"/>')
        fate = f" Killed {seconds((kill.at - scale.start).total_seconds())} into the run."
    shapes.extend(_shape(item, scale) for item in bars)
    if kill:
        x = scale.x(kill.at)
        css = "kill own" if is_killed else "kill"
        shapes.append(f'<line class="{css}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    label = f"{worker.name}: {plural(worker.tasks, 'task')} on record.{fate}"
    mark = tag(worker)
    return (
        f'<div class="lane"><div class="who"><b>{esc(worker.name)}</b>{mark}<span>{plural(worker.tasks, "task")}</span>'
        f'</div><svg viewBox="0 0 {_WIDTH:.0f} {height}" height="{max(height, 3 * _ROW)}" preserveAspectRatio="none" '
        f'role="img" aria-label="{esc(label)}">{"".join(shapes)}</svg></div>'
    )


def _waiting(ledger: Ledger, scale: _Scale) -> str:
    """Return a lane with the number of tasks that nobody was running, as it rose and fell.

    A task that the killed worker held waits from the kill until it is claimed anew; when it was claimed first is not on
    record.
    """
    waits = [
        (entry.submitted_at if entry.taken_over_s is None or ledger.kill is None else ledger.kill.at, entry.claimed_at)
        for entry in ledger.entries
    ]
    known = [(begin, end) for begin, end in waits if begin and end and begin <= end]
    if not known:
        return ""
    begins, ends = sorted(scale.x(begin) for begin, _ in known), sorted(scale.x(end) for _, end in known)
    places = [step * _WIDTH / _WAIT_STEPS for step in range(_WAIT_STEPS + 1)]
    depths = [bisect_right(begins, x) - bisect_left(ends, x + 1e-9) for x in places]
    most = max(*depths, 1)
    points = "".join(
        f"H{x:.0f}V{_WAIT_HEIGHT - max(depth / most * _WAIT_HEIGHT, _LEAST_WAIT if depth else 0):.1f}"
        for x, depth, before in zip(places, depths, [-1, *depths], strict=False)
        if depth != before
    )
    label = f"Tasks waiting: at most {most:,}"
    return (
        f'<div class="lane waiting"><div class="who"><b>Waiting</b><span>{most:,} at most</span></div>'
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_WAIT_HEIGHT}" height="{_WAIT_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(label)}"><rect class="lane-ground" width="{_WIDTH:.0f}" height="{_WAIT_HEIGHT}"/>'
        f'<path class="queue" d="M0 {_WAIT_HEIGHT}{points}H{_WIDTH:.0f}V{_WAIT_HEIGHT}Z"><title>{esc(label)}</title>'
        f"</path></svg></div>"
    )


def _bars(spans: Sequence[_Span], scale: _Scale) -> tuple[list[_Bar], int]:
    """Lay tasks out in rows so that none overlap (a row is about a slot), then join what is too small to see."""
    free: list[tuple[datetime, int]] = []
    rows: list[list[_Bar]] = []
    for span in sorted(spans):
        if free and (free[0][0] <= span.begin or len(rows) == _MAX_ROWS):
            row = heapq.heappop(free)[1]
        else:
            row = len(rows)
            rows.append([])
        heapq.heappush(free, (span.end, row))
        bar = _Bar(scale.x(span.begin), scale.x(span.end), row, span.css, 1, span.label)
        previous = rows[row][-1] if rows[row] else None
        if previous and previous.css == bar.css and " " not in bar.css and _is_joined(previous, bar):
            rows[row][-1] = bar._replace(begin=previous.begin, tasks=previous.tasks + 1)
        else:
            rows[row].append(bar)
    return [bar for row in rows for bar in row], max(len(rows), 1)


def _finished(entries: Sequence[Entry], colours: dict[str, str]) -> list[_Span]:
    return [
        _Span(
            entry.claimed_at,
            entry.finished_at,
            colours[entry.capability] + (" over" if entry.taken_over_s is not None else ""),
            entry.label,
        )
        for entry in entries
        if entry.claimed_at and entry.finished_at
    ]


def _cut_off(ledger: Ledger) -> list[_Span]:
    """Return what the killed worker was doing when it was killed, as far as its claims are known."""
    if ledger.kill is None:
        return []
    labels = {entry.task: entry.label for entry in ledger.entries}
    at = ledger.kill.at
    return [
        _Span(held.claimed_at, at, "cut off", labels.get(held.task, held.task))
        for held in ledger.kill.held
        if held.claimed_at
    ]


def _is_joined(one: _Bar, other: _Bar) -> bool:
    is_tiny = other.end - other.begin < _TINY and (one.tasks > 1 or one.end - one.begin < _TINY)
    return is_tiny and other.begin - one.end < _TINY / 2 and other.end - one.begin < _JOINED


def _shape(bar: _Bar, scale: _Scale) -> str:
    width = max(bar.end - bar.begin - 0.5, 0.7)
    begin, length = (value * scale.length_s / _WIDTH for value in (bar.begin, bar.end - bar.begin))
    what = bar.label if bar.tasks == 1 else plural(bar.tasks, "short task")
    extra = (
        ", taken over from the killed worker"
        if "over" in bar.css
        else ", cut off by the kill"
        if "cut" in bar.css
        else ""
    )
    return (
        f'<rect class="task {bar.css}" x="{bar.begin:.1f}" y="{bar.row * _ROW + 1}" width="{width:.1f}" '
        f'height="{_ROW - 2}"><title>{esc(what)}{extra}: at {seconds(begin)}, for {seconds(length)}</title></rect>'
    )


def _flag(ledger: Ledger, scale: _Scale) -> str:
    if ledger.kill is None:
        return ""
    share = scale.x(ledger.kill.at) / _WIDTH * 100
    side = "left" if share < _FLAG_FLIPS_AT else "right"
    place = share if side == "left" else 100 - share
    after = seconds((ledger.kill.at - scale.start).total_seconds())
    text = f"{ledger.kill.signal} at {after}"
    span = f'<span class="{side}" style="{side}:{place:.2f}%">{esc(text)}</span>'
    return f'<div class="flags" aria-hidden="true">{span}</div>'


def _axis(scale: _Scale) -> str:
    rough = scale.length_s / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    ticks = [index * step for index in range(int(scale.length_s / step) + 1) if index * step < scale.length_s * 0.97]
    marks = "".join(
        f'<span style="left:{tick / scale.length_s * 100:.2f}%">{tick:.{digits}f} s</span>' for tick in ticks
    )
    return f'<div class="axis" aria-hidden="true">{marks}</div>'


def _legend(ledger: Ledger, colours: dict[str, str]) -> str:
    items = [f'<li><i class="{css}"></i>{esc(name)}</li>' for name, css in colours.items()]
    if ledger.kill:
        if any(held.claimed_at for held in ledger.kill.held):
            items.append('<li><i class="cut"></i>cut off by the kill</li>')
        items.append('<li><i class="over"></i>taken over after the kill</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'
