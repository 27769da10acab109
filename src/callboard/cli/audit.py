"""``callboard audit``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from callboard.cli.output import SINCE, emit, note, shorten, stamp, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.actor.repair import Comparison
    from callboard.runtime.audit import Entry, Filter

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS = (
    *("seq", "stored_at", "kind", "task", "capability", "status", "attempt", "worker"),
    *("claimed_at", "finished_at", "error"),
)


@click.group("audit")
def command() -> None:
    """Read the ledger, the record of every finished task and of every run that did not finish one; mend the audit."""


def _filters(function: F) -> F:
    options = (
        click.option("--capability", help="Only of this one."),
        click.option("--task", help="Only of this one."),
        click.option("--status", type=click.Choice(["completed", "failed", "cancelled", "expired"])),
        click.option("--correlation", metavar="ID", help="Only with this trace id, task id or header value."),
        click.option("--since", type=SINCE, help="Only what was stored since: a span (2h) or a time."),
        json_option,
        global_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command(
    "tail",
    epilog=example("callboard audit tail --follow", "callboard audit tail --capability search --since 1h --json"),
)
@click.option("--limit", type=click.IntRange(0, 10_000), default=20, show_default=True, help="How many of the past.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@_filters
@pass_session
def tail(session: Session, /, *, limit: int, follow: bool, since: datetime | None, **chosen: Any) -> None:  # noqa: ANN401
    """Print the last entries, oldest first; with --json one object a line."""
    session.run(_tail(session, _filter(chosen), limit=limit, follow=follow, since=since))


def _filter(chosen: dict[str, Any]) -> Filter:
    from callboard.runtime.audit import Filter

    return Filter(**chosen)


async def _tail(session: Session, /, wanted: Filter, *, limit: int, follow: bool, since: datetime | None) -> None:
    from callboard.runtime import audit, subjects

    async with session.bus("audit-tail") as bus:
        info = await bus.stream_info(subjects.LEDGER)
        past = await audit.newest(bus, wanted, limit=limit, since=since) if limit else []
        for entry in reversed(past):
            _print(session, entry)
        if not follow:
            return
        after = max([info.last_seq if info is not None else 0, *(entry.seq for entry in past)])
        async for entry in audit.read(bus, wanted, start_seq=after + 1, follow=True):
            _print(session, entry)


def _print(session: Session, /, entry: Entry) -> None:
    if session.json:
        emit(entry)
        return
    row = _row(entry)
    what = row["status"] or f"run {row['attempt']} {row['kind']}"
    tell(f"{stamp(entry.stored_at)}  {what:<12} {entry.task}  {row['worker']}  {shorten(row['error'])}".rstrip())


@command.command("export", epilog=example("callboard audit export --since 30d --format csv --out audit.csv"))
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File; else standard output.")
@_filters
@pass_session
def export(session: Session, /, *, form: str, out: Path | None, since: datetime | None, **chosen: Any) -> None:  # noqa: ANN401
    """Write all entries in the order of the stream: JSON Lines with everything, or CSV with the columns of a table."""
    from callboard.runtime.errors import InputError

    if out is None:
        count = session.run(_export(session, _filter(chosen), sys.stdout, form=form, since=since))
    else:
        try:
            with out.open("w", encoding="utf-8", newline="") as file:
                count = session.run(_export(session, _filter(chosen), file, form=form, since=since))
        except OSError as error:
            message = f"{out} cannot be written: {error.strerror}"
            raise InputError(message) from error
    if session.json and out is not None:
        emit({"entries": count, "file": str(out)})
    elif not session.json:
        note(f"{count} {'entry' if count == 1 else 'entries'}")


async def _export(session: Session, /, wanted: Filter, file: TextIO, *, form: str, since: datetime | None) -> int:
    import msgspec

    from callboard.runtime import audit

    count = 0
    table = csv.DictWriter(file, _COLUMNS)
    if form == "csv":
        table.writeheader()
    async with session.bus("audit-export") as bus:
        async for entry in audit.read(bus, wanted, since=since):
            count += 1
            if form == "csv":
                table.writerow(_row(entry))
            else:
                file.write(msgspec.json.encode(entry).decode() + "\n")
    return count


@command.command("repair", epilog=example("callboard audit repair --check", "callboard audit repair"))
@click.option("--check", is_flag=True, help="Only compare; copy nothing.")
@json_option
@global_options
@pass_session
def repair(session: Session, /, *, check: bool) -> None:
    """Compare the audit copy of the actors' messages with the originals, and copy late what it lacks.

    Ends with status 1 when something is missing that was not repaired. Running it twice is harmless.
    """
    from callboard.runtime.actor import repair as repairs

    async def work() -> Comparison:
        async with session.bus("audit-repair") as bus:
            return await repairs.compare(bus, repair=not check)

    found = session.run(work())
    if session.json:
        emit(found)
    else:
        _tell_comparison(found, is_check=check)
    is_whole = not found.lost and (not found.missed or not check)
    click.get_current_context().exit(0 if is_whole else 1)


def _tell_comparison(found: Comparison, *, is_check: bool) -> None:
    tell(f"{found.compared} messages from sequence {found.first} to {found.upto} compared, {found.copies} copies")
    if found.behind:
        tell(f"{found.behind} later ones are not copied yet")
    if found.missed:
        first = ", ".join(map(str, found.missing[:10]))
        more = "" if found.missed <= len(found.missing[:10]) else ", …"
        tell(f"{found.missed} lacked a copy: {first}{more}")
        told = "copy them with `callboard audit repair`" if is_check else f"{found.repaired} of them copied now"
        tell(told)
    for gap in found.lost:
        tell(f"{gap.actor}: turns {gap.first} to {gap.last} are in neither stream")
    if not found.missed and not found.lost:
        tell("the copy is whole")


def _row(entry: Entry) -> dict[str, str]:
    """Return an entry as the columns of a table."""
    from msgspec import UNSET

    row = dict.fromkeys(_COLUMNS, "")
    row.update(
        seq=str(entry.seq),
        stored_at=entry.stored_at.isoformat(),
        kind=entry.kind,
        task=entry.task,
        capability=entry.capability,
        error=entry.problem,
    )
    result, attempt = entry.result, entry.attempt
    if result is not None:
        row.update(status=result.status, attempt=str(result.attempts), worker=result.worker)
        row["finished_at"] = result.finished_at.isoformat()
        row["claimed_at"] = result.claimed_at.isoformat() if result.claimed_at is not UNSET else ""
        row["error"] = f"{result.error.code}: {result.error.message}" if result.error is not UNSET else ""
    if attempt is not None:
        row.update(kind=attempt.kind, attempt=str(attempt.attempt), worker=attempt.worker)
        row["error"] = f"{attempt.error.code}: {attempt.error.message}" if attempt.error is not UNSET else ""
    return row
