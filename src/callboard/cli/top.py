"""``callboard top``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import click

from callboard.cli.output import SPAN, emit, note, shorten, size, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from callboard.runtime.overview import Overview, PoolRow, StreamRow, TypeRow, WorkerRow

EVERY_S = 2.0
HOUR_S, DAY_HOURS = 3600.0, 24.0
MILLISECOND_S, TEN_MILLISECONDS_S, TEN_S, MINUTE_S = 0.001, 0.01, 10.0, 60.0
LOW_HOURS = 24.0
_STYLES = {
    "deaf": "bold red",
    "offline": "bold red",
    "suspect": "yellow",
    "draining": "yellow",
    "starting": "yellow",
}


class Section(NamedTuple):
    """A part of the page: a table under a title, and for each row whether it asks for attention (a style's name)."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    styles: list[str]


class Show(Protocol):
    """Puts an overview where the output goes."""

    def __call__(self, found: Overview, /) -> None:
        """Show it, in place of the one before on a terminal."""
        ...


@click.command("top", epilog=example("callboard top", "callboard top --once", "callboard top --json | jq '.pools'"))
@click.option("--every", "every_s", type=SPAN, default=EVERY_S, help="Time between two looks.  [default: 2s]")
@click.option("--once", is_flag=True, help="Look once; also without it when the output is no terminal.")
@json_option
@global_options
@pass_session
def command(session: Session, /, *, every_s: float, once: bool) -> None:
    """Watch the deployment: pools, actors, workers and streams, with rates and times; Ctrl-C ends it.

    What waits and what is claimed is the broker's own count. What runs, how long runs took and what ended comes from
    the workers' beats and is a second old at most. With --json each look is one object on one line.
    """
    import sys

    is_once = once or not (session.json or sys.stdout.isatty())
    try:
        session.run(_watch(session, every_s, is_once=is_once))
    except KeyboardInterrupt:
        # this is how a person leaves
        return


async def _watch(session: Session, /, every_s: float, *, is_once: bool) -> None:
    from callboard.runtime.clock import SYSTEM_CLOCK
    from callboard.runtime.errors import BusError
    from callboard.runtime.overview import observing

    async with session.bus("top") as bus, observing(bus, session.settings()) as observer:
        with _shown(session, is_once=is_once) as show:
            while True:
                try:
                    show(await observer.look())
                except BusError as error:
                    if is_once or not error.retryable:
                        raise
                    note(f"no look was possible: {error}")
                if is_once:
                    return
                await SYSTEM_CLOCK.sleep(max(every_s, 0.1))


@contextmanager
def _shown(session: Session, /, *, is_once: bool) -> Iterator[Show]:
    if session.json:
        yield emit
        return
    if is_once:
        yield _print
        return
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:

        def show(found: Overview, /) -> None:
            live.update(_picture(found), refresh=True)

        yield show


def _print(found: Overview, /) -> None:
    click.echo(title(found))
    for section in sections(found):
        click.echo(f"\n{section.title}")
        table(section.rows, head=section.head, empty="  none")


def _picture(found: Overview) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from callboard.cli.output import visible

    parts: list[RenderableType] = [Text(visible(title(found)), style="bold")]
    for section in sections(found):
        shown = Table(box=None, pad_edge=False, header_style="dim", title=section.title, title_justify="left")
        for name in section.head:
            shown.add_column(name, overflow="ellipsis", no_wrap=True)
        for row, style in zip(section.rows, section.styles, strict=True):
            shown.add_row(*(Text(visible(cell)) for cell in row), style=style)
        parts += [Text(""), shown if section.rows else Text(f"{section.title}: none", style="dim")]
    return Group(*parts)


# --- the page, as plain values


def title(found: Overview) -> str:
    """Return the line above all."""
    alive = [row for row in found.workers if row.status != "offline"]
    slots, busy = sum(row.slots for row in alive), sum(row.busy for row in alive)
    waiting = sum(row.waiting for row in found.pools)
    registry = ""
    if found.registry is not None:
        by = f"led by {found.registry.leader}" if found.registry.is_led else "led by nobody"
        counts = found.registry.agents.items()
        agents = ", ".join(f"{number} {status}" for status, number in counts) or "no agents"
        registry = f"\nregistry {by} (epoch {found.registry.epoch})  {agents}"
    moment = found.at.astimezone().strftime("%H:%M:%S")
    return f"{moment}  {found.server}  {len(alive)} workers  {busy}/{slots} slots busy  {waiting} tasks wait{registry}"


def sections(found: Overview) -> list[Section]:
    """Return all parts of the page."""
    return [
        Section(
            "POOLS",
            ("CAPABILITY", "POOL", "WORKERS", "BUSY/SLOTS", "WAITING", "OLDEST", "CLAIMED", *_FLOW, ""),
            [_pool(row) for row in found.pools],
            ["red" if row.waiting and not row.workers else "yellow" if row.paused else "" for row in found.pools],
        ),
        Section(
            "ACTORS",
            ("TYPE", "WORKERS", "PARTITIONS", "RUNNING/AWAKE", "WAITING", "OUT/S", "P50", "P95"),
            [_type(row) for row in found.actors],
            [""] * len(found.actors),
        ),
        Section(
            "WORKERS",
            ("WORKER", "STATUS", "BUSY/SLOTS", "TURNS", "RESTARTS", "SILENT", "UP", "LABELS"),
            [_worker(row, found) for row in found.workers],
            [_STYLES.get(row.status, "") for row in found.workers],
        ),
        Section(
            "STREAMS",
            ("STREAM", "MESSAGES", "SIZE", "LEFT", "FULL IN", "WHEN FULL"),
            [_stream(row) for row in found.streams],
            ["red" if row.hours_left is not None and row.hours_left < LOW_HOURS else "" for row in found.streams],
        ),
    ]


_FLOW = ("IN/S", "OUT/S", "P50", "P95")


def _pool(row: PoolRow) -> tuple[str, ...]:
    paused = None if row.paused is None else shorten(f"paused: {row.paused}" if row.paused else "paused", 40)
    return (
        row.capability,
        ",".join(row.pools) or "-",
        str(row.workers),
        f"{row.busy}/{row.slots}",
        str(row.waiting),
        span(row.oldest_s),
        str(row.claimed),
        rate(row.in_per_s),
        rate(row.out_per_s),
        span(row.p50_s),
        span(row.p95_s),
        paused or ("nobody offers it" if row.waiting and not row.workers else ""),
    )


def _type(row: TypeRow) -> tuple[str, ...]:
    return (
        row.type,
        str(row.workers),
        str(row.partitions),
        f"{row.running}/{row.active}",
        str(row.waiting),
        rate(row.out_per_s),
        span(row.p50_s),
        span(row.p95_s),
    )


def _worker(row: WorkerRow, found: Overview) -> tuple[str, ...]:
    return (
        row.worker,
        row.status,
        f"{row.busy}/{row.slots}",
        str(row.turns),
        str(row.restarts),
        span(row.silent_s),
        span((found.at - row.started_at).total_seconds()),
        ",".join(f"{key}={value}" for key, value in sorted(row.labels.items())) or "-",
    )


def _stream(row: StreamRow) -> tuple[str, ...]:
    hours = row.hours_left
    left = "-" if row.bytes_left is None else size(row.bytes_left)
    return (
        row.name,
        str(row.messages),
        size(row.size_bytes),
        left,
        "-" if hours is None else span(hours * HOUR_S),
        row.when_full if row.bytes_left is not None else "-",
    )


def span(seconds: float | None) -> str:
    """Return a length of time in the unit that fits: ``0.4ms``, ``12ms``, ``1.5s``, ``42s``, ``3.2m``, ``7.0h``."""
    if seconds is None:
        return "-"
    if seconds < TEN_MILLISECONDS_S:
        return f"{seconds / MILLISECOND_S:.1f}ms" if seconds else "0s"
    if seconds < 1:
        return f"{seconds / MILLISECOND_S:.0f}ms"
    if seconds < MINUTE_S:
        return f"{seconds:.1f}s" if seconds < TEN_S else f"{seconds:.0f}s"
    if seconds < HOUR_S:
        return f"{seconds / MINUTE_S:.1f}m"
    hours = seconds / HOUR_S
    return f"{hours:.1f}h" if hours < 2 * DAY_HOURS else f"{hours / DAY_HOURS:.0f}d"


def rate(per_s: float | None) -> str:
    """Return a rate with as many places as it needs."""
    if per_s is None:
        return "-"
    return f"{per_s:.1f}" if per_s < TEN_S else f"{per_s:.0f}"
