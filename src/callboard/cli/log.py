"""``callboard log``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import SINCE, emit, shorten, stamp, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.bus.base import Stored

_STREAMS = ("CB_LEDGER", "CB_AUDIT", "CB_AUDIT_GAPS", "CB_DEAD")
_SHOWN_BYTES = 65_536


@click.command(
    "log",
    epilog=example(
        "callboard log --since 1h",
        "callboard log --agent billing/42 --limit 50 --json",
        "callboard log --subject 'cb.result.search.*' --correlation 4bf92f3577b34da6a3ce929d0e0e4736",
    ),
)
@click.option("--agent", metavar="TYPE[/KEY]", help="Only mail, steps and events of this actor.")
@click.option("--task", help="Only what bears this task's id.")
@click.option("--subject", "topic", metavar="PATTERN", help="Only these subjects; * and > as in NATS.")
@click.option(
    "--correlation", metavar="ID", help="Only what bears this id: trace, message or task id, in header or body."
)
@click.option("--stream", "streams", multiple=True, type=click.Choice(_STREAMS), help="Only these.  [default: all]")
@click.option("--since", type=SINCE, help="Only what was stored since: a span (2h) or a time.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option(
    "--before", type=SINCE, help="Only what was stored before; the `stored_at` of the last line gives the next page."
)
@json_option
@global_options
@pass_session
def command(session: Session, /, **options: Any) -> None:  # noqa: ANN401 - click's
    """Show the history of messages, newest last: results, attempts, dead letters, mail, steps and events."""
    found = session.run(_log(session, **options))
    for stream, stored in found:
        if session.json:
            emit(_as_json(stream, stored))
        else:
            text = shorten(stored.data.decode(errors="replace"), 100)
            tell(f"{stamp(stored.time)}  {stored.subject}  {text}")


async def _log(
    session: Session,
    /,
    *,
    agent: str | None,
    task: str | None,
    topic: str | None,
    correlation: str | None,
    streams: tuple[str, ...],
    since: datetime | None,
    limit: int,
    before: datetime | None,
) -> list[tuple[str, Stored]]:
    from callboard.runtime import audit, subjects
    from callboard.runtime.bus.topology import AUDIT, DEAD, LEDGER
    from callboard.runtime.errors import NotFoundError

    token = subjects.escape(task) if task is not None else None

    def keeps(stored: Stored) -> bool:
        if before is not None and stored.time >= before:
            return False
        if token is not None and token not in stored.subject.split("."):
            return False
        return correlation is None or _bears(stored, correlation)

    chosen = list(streams) or ([AUDIT] if agent else [LEDGER, AUDIT, DEAD])
    found: list[tuple[str, Stored]] = []
    async with session.bus("log") as bus:
        for stream in chosen:
            filters = _filters(agent, topic)
            try:
                page = await audit.newest_stored(bus, stream, filters=filters, limit=limit, since=since, keeps=keeps)
            except NotFoundError:
                if streams:
                    raise
                continue
            found += [(stream, stored) for stored in page]
    found.sort(key=lambda pair: (pair[1].time, pair[0], pair[1].seq))
    return found[-limit:]


def _filters(agent: str | None, topic: str | None) -> tuple[str, ...]:
    from callboard.runtime import subjects

    if topic is not None:
        return (topic,)
    if agent is None:
        return ()
    kind, slash, key = agent.partition("/")
    subjects.check_name(kind, what="actor type")
    end = subjects.escape(key) if slash else "*"
    # mail is stored with its partition between type and key; steps may go on after the key
    return f"cb.mbox.{kind}.*.{end}", f"cb.event.{kind}.{end}", f"cb.step.{kind}.{end}.>"


def _bears(stored: Stored, correlation: str) -> bool:
    headers = stored.headers or {}
    if any(correlation in (value, *value.split("-")) for value in headers.values()):
        return True
    return correlation.encode() in stored.data


def _as_json(stream: str, stored: Stored) -> dict[str, object]:
    import msgspec

    from callboard.runtime import record

    body: object = None
    if len(stored.data) <= _SHOWN_BYTES and record.is_json_text(stored.data):
        body = msgspec.Raw(stored.data)
    return {
        "stream": stream,
        "seq": stored.seq,
        "stored_at": stored.time,
        "subject": stored.subject,
        "headers": dict(stored.headers or {}),
        "size_bytes": len(stored.data),
        "body": body,
    }
