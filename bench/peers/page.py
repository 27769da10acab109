"""The report as one HTML page that asks no other file or host for anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.peers import result
from bench.peers.reasons import REASONS
from bench.peers.result import IN_TABLE, MEASURES, OURS, Figure, Measure, Place, Result, Row
from callboard.agents.digest import frame
from callboard.agents.digest.html import esc, plural, table

# How it was measured, for readers.
_WAYS = (
    """Tasks write a line of 24 bytes each into a file of their process; everything is counted from these, never from
    what a peer says of itself.""",
    "Rows take turns, round by round; each round has a server of its own, empty.",
    "Throughput: one sender fills the queue, then a worker starts; from the first task's run to the last one's.",
    """Latency: one task at a time, from before the submit to the handler's first line, and to the result where there is
    one. Where there is none, the next task is sent when the last one ran.""",
    "CPU and memory are those of the worker's whole process tree; pages that processes share count once.",
)
_LATE = ' <span class="tag bad">not in time</span>'
_STRENGTH = {0: "memory", 1: "disk, soon", 2: "disk, first"}


def render(run: Result) -> str:
    """Return the page."""
    measured = [row for row in run.rows if row.rounds]
    places = result.places(run.rows)
    behind = [place for place in places if place.ahead]
    return frame.render(
        frame.Page(
            title="Callboard beside its peers",
            folder="Callboard beside its peers",
            kicker=f"One machine, {run.facts['cores']} cores, {run.facts['date']}",
            headline=_headline(places, behind),
            footer="Made by python -m bench.peers. This page is one file and asks no other for anything.",
            verdict=_verdict(run, measured),
            figures=[
                ("rows measured", str(len(measured))),
                ("rounds of each, at most", str(max((len(row.rounds) for row in measured), default=0))),
                ("no-op tasks a round", f"{run.plan['tasks']:,}"),
                ("load before", str(run.facts.get("load_before", "?"))),
            ],
            sections={
                "rows": ("Rows", _rows(run.rows)),
                "charts": ("Measures", _charts(measured)),
                "crash": ("Crashes", _crashes(run, measured)),
                "behind": ("Where we are not first", _behind(places, behind)),
                "machine": ("Machine and method", _machine(run)),
            },
            data="{}",
        )
    )


def _headline(places: Sequence[Place], behind: Sequence[Place]) -> str:
    compared = sum(1 for place in places if place.rivals)
    return f"First in {compared - len(behind)} of {compared} comparisons at equal or stronger durability"


def _verdict(run: Result, measured: Sequence[Row]) -> str:
    losers = [row.name for row in measured if result.lost(row)]
    rule = (
        "Every row states how firmly it stores a task. A row of ours is compared with those of the others that store "
        "at least as firmly."
    )
    words = [rule]
    if losers:
        names = ", ".join(esc(name) for name in losers)
        words.append(f'<span class="bad">Tasks did not run, or not again in time, in {names}.</span>')
    absent = len(run.rows) - len(measured)
    if absent:
        words.append(f"{plural(absent, 'row')} could not be measured; the table says why.")
    return " ".join(words)


def _rows(rows: Sequence[Row]) -> str:
    lines = [
        (
            _nowrap(row.name),
            f"{_tag(_STRENGTH[row.strength])}<br><small>{esc(row.durability)}</small>",
            *(_cell(measure, row) for measure in IN_TABLE),
            f"{result.lost(row)}{_LATE if result.lost(row) else ''}",
            str(result.doubled(row)),
        )
        for row in rows
        if row.rounds
    ]
    head = ["Row", "Durability", *(f"#{measure.short}" for measure in IN_TABLE), "#lost or late", "#doubled"]
    absent = [
        (_nowrap(row.name), f"<small>{esc(row.durability)}</small>", f'<span class="path">{esc(row.reason)}</span>')
        for row in rows
        if row.reason
    ]
    ways = [
        (_nowrap(row.name), esc(row.versions), esc(row.worker), esc(row.stores), esc(row.recovery))
        for row in rows
        if row.rounds
    ]
    tables = [table("Medians of the rounds", head, lines)]
    unasked = [(_nowrap(row.name), esc(title), esc(reason)) for row, title, reason in result.unasked(rows)]
    if unasked:
        tables.append(table("Measures that a row cannot have", ["Row", "Measure", "Why"], unasked))
    if absent:
        tables.append(table("Not measured, or not to the end", ["Row", "Durability", "Why"], absent))
    tables.append(table("How each was run", ["Row", "Versions", "Worker", "Stores of a task", "After a death"], ways))
    return _section(
        "rows", "Rows", "Durability stands in every row and belongs to every figure in it.", "".join(tables)
    )


def _nowrap(name: str) -> str:
    return f'<span style="white-space:nowrap">{esc(name)}</span>'


def _cell(measure: Measure, row: Row) -> str:
    figure = measure.figure(row)
    return esc(result.words(figure.median, measure.unit)) if figure else "-"


def _charts(rows: Sequence[Row]) -> str:
    return _section(
        "charts",
        "Measures",
        "Bars are medians, the fine line goes from the lowest to the highest round. Best at the top.",
        "".join(_chart(measure, rows) for measure in MEASURES),
    )


def _chart(measure: Measure, rows: Sequence[Row]) -> str:
    found = [(row, figure) for row in rows if (figure := measure.figure(row)) is not None]
    if not found:
        return ""
    found.sort(key=lambda pair: pair[1].median, reverse=not measure.is_less_better)
    longest = max((figure.high for _, figure in found if math.isfinite(figure.high)), default=1.0) or 1.0
    lines = [
        (
            f"{_nowrap(row.name)} {_tag(_STRENGTH[row.strength])}",
            bar(figure, longest, is_ours=row.peer == OURS),
            esc(result.words(figure.median, measure.unit)),
            esc(f"{result.words(figure.low, measure.unit)} to {result.words(figure.high, measure.unit)}"),
        )
        for row, figure in found
    ]
    wish = "less is better" if measure.is_less_better else "more is better"
    return table(f"{measure.title} ({wish})", ["Row", "", "#median", "#rounds"], lines, css="chart")


def bar(figure: Figure, longest: float, *, is_ours: bool) -> str:
    """Return a bar with a line from the lowest to the highest round, as an SVG that fills its cell."""
    if math.isinf(figure.median):
        return _LATE
    width, low, high = (min(value / longest, 1.0) * 100 for value in (figure.median, figure.low, figure.high))
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<rect class="rail" width="100" height="10"/>'
        f'<rect class="{"c0" if is_ours else "c1"}" width="{max(width, 0.4):.2f}" height="10"/>'
        f'<line x1="{low:.2f}" x2="{high:.2f}" y1="5" y2="5" stroke="currentColor" stroke-width="1.2"/></svg>'
    )


def _crashes(run: Result, rows: Sequence[Row]) -> str:
    plan = run.plan
    lines = []
    for row in rows:
        for number, crash in enumerate((found.crash for found in row.rounds if found.crash is not None), 1):
            again = sorted(crash.again_s)
            lines.append(
                (
                    f"{_nowrap(row.name)}{f' ({number})' if number > 1 else ''}",
                    f"<small>{esc(row.recovery)}</small>",
                    str(crash.hit),
                    esc(", ".join(f"{value:.1f} s" for value in again) or "none"),
                    f"{crash.lost}{_LATE if crash.lost else ''}",
                    str(crash.doubled),
                )
            )
    hint = (
        f"Two workers, {plan['slow']} tasks of {plan['slow_s']:g} s, kill -9 of all processes of the one that runs "
        f"most, a new worker a second later. Lost or late: not ended within {plan['again_within_s']:g} s of the kill. "
        "Doubled: ended twice, or begun again beside a living worker."
    )
    head = ["Row", "Setting that decides", "#tasks hit", "#second starts after", "#lost or late", "#doubled"]
    return _section("crash", "A worker's death", hint, table("kill -9 in mid-task", head, lines))


def _behind(places: Sequence[Place], behind: Sequence[Place]) -> str:
    lines = []
    for place in behind:
        reason = REASONS[place.measure.key]
        rivals = ", ".join(f"{name} {result.words(value, place.measure.unit)}" for name, value in place.ahead)
        mine = result.words(place.median, place.measure.unit)
        lines.append(
            (_nowrap(place.row), esc(place.measure.title), esc(mine), esc(rivals), esc(reason.why), esc(reason.cost))
        )
    ahead = len([place for place in places if place.rivals]) - len(behind)
    hint = f"First in the other {ahead}." if lines else "Nowhere in this run."
    head = ["Our row", "Measure", "#ours", "Ahead of us", "Why", "What it would take"]
    return _section("behind", "Where we are not first", hint, table("Behind", head, lines) if lines else "")


def _machine(run: Result) -> str:
    facts = table("The machine", ["Fact", "Value"], [(esc(name), esc(value)) for name, value in run.facts.items()])
    how = "".join(f"<li>{esc(way)}</li>" for way in _WAYS)
    return _section("machine", "Machine and method", "", f'{facts}<ul class="methods">{how}</ul>')


def _section(ident: str, title: str, hint: str, body: str) -> str:
    return f'<section id="{ident}"><h2>{esc(title)}</h2><p class="hint">{esc(hint)}</p>{body}</section>'


def _tag(text: str, css: str = "soft") -> str:
    return f' <span class="tag {css}">{esc(text)}</span>'
