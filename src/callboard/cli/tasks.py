"""``callboard tasks``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import SINCE, emit, note, shorten, stamp, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.bus.base import Bus
    from callboard.runtime.context import Progress
    from callboard.runtime.lookup import Queue, Whereabouts
    from callboard.runtime.record import AttemptRecord, Submission, TaskRecord

_POLL_S = 0.3
STATUSES = ("completed", "failed", "cancelled", "expired")


@click.group("tasks")
def command() -> None:
    """List, show, watch and cancel tasks."""


@command.command("ls", epilog=example("callboard tasks ls", "callboard tasks ls --status failed --since 1h --json"))
@click.option("--capability", help="Only of this one.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that ended so.")
@click.option("--since", type=SINCE, help="Only those that ended since: a span (2h) or a time.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--before", "before_seq", type=int, help="The page before this sequence (`next` in --json).")
@json_option
@global_options
@pass_session
def ls(session: Session, /, capability: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Show how much work waits for each capability, and the tasks that finished last, newest first."""
    session.run(_ls(session, capability, **options))


async def _ls(
    session: Session,
    /,
    capability: str | None,
    *,
    status: str | None,
    since: datetime | None,
    limit: int,
    before_seq: int | None,
) -> None:
    from callboard.runtime import audit, lookup

    wanted = audit.Filter(capability=capability, status=status, attempts=False)
    async with session.bus("tasks-ls") as bus:
        waiting = [q for q in await lookup.queues(bus) if capability in (None, q.capability)]
        entries = await audit.newest(bus, wanted, limit=limit, since=since, before_seq=before_seq)
    finished = [(entry, entry.result) for entry in entries if entry.result is not None]
    if session.json:
        following = entries[-1].seq if len(entries) == limit else None
        emit({"queues": waiting, "finished": [{"seq": e.seq, **_brief(r)} for e, r in finished], "next": following})
        return
    if before_seq is None:
        _queues(waiting)
        click.echo()
    table(
        [
            (r.task, r.capability, r.status, stamp(r.finished_at), str(r.attempts), r.worker, _says(r))
            for _, r in finished
        ],
        head=("TASK", "CAPABILITY", "STATUS", "FINISHED", "RUNS", "WORKER", ""),
        empty="no finished task fits",
    )


def _queues(queues: list[Queue]) -> None:
    table(
        [(q.capability, str(q.waiting), str(q.claimed), _remark(q)) for q in queues],
        head=("CAPABILITY", "WAITING", "CLAIMED", ""),
        empty="no capability has work or was ever offered",
    )


def _remark(queue: Queue) -> str:
    remarks = [] if queue.has_consumer else ["nobody has ever offered it"]
    if queue.paused is not None:
        remarks.append("paused" if queue.paused in ("", "paused") else f"paused: {shorten(queue.paused, 60)}")
    return "; ".join(remarks)


def _brief(record: TaskRecord) -> dict[str, object]:
    """Return a record without what may be large: payload, result and trace."""
    from msgspec import UNSET

    error = record.error
    return {
        "task": record.task,
        "capability": record.capability,
        "status": record.status,
        "attempts": record.attempts,
        "crashes": record.crashes if record.crashes is not UNSET else 0,
        "worker": record.worker,
        "claimed_at": record.claimed_at if record.claimed_at is not UNSET else None,
        "finished_at": record.finished_at,
        "error": {"code": error.code, "message": error.message} if error is not UNSET else None,
    }


def _says(record: TaskRecord) -> str:
    from msgspec import UNSET

    if record.error is not UNSET:
        return shorten(f"{record.error.code}: {record.error.message}", 60)
    return ""


@command.command(
    "show", epilog=example("callboard tasks show search/2026-11-21/7", "callboard tasks show '~17' --json")
)
@click.argument("task_id", metavar="TASK")
@click.option("--capability", help="Narrow the search to this one.")
@json_option
@global_options
@pass_session
def show(session: Session, /, task_id: str, capability: str | None) -> None:
    """Show all that is known of a task: where it is, its record, its earlier runs and what it said last."""
    from callboard.runtime import lookup

    async def work() -> Whereabouts:
        async with session.bus("tasks-show") as bus:
            return await lookup.find(bus, task_id, capability=capability)

    found = session.run(work())
    if session.json:
        emit(found)
    else:
        _show(found)


def _show(found: Whereabouts) -> None:
    lines = [("task", found.task), ("capability", found.capability), ("state", found.state)]
    if found.workers:
        lines.append(("runs on", ", ".join(found.workers)))
    if found.since is not None:
        lines.append(("submitted", stamp(found.since)))
    if found.due:
        lines.append(("due", found.due))
    if found.progress is not None:
        lines.append(("progress", _progress_line(found.progress)))
    if found.record is not None:
        lines += _record_lines(found.record)
    if found.is_dead:
        lines.append(("dead letter", f"callboard dead show {found.task}"))
    say(lines, found.attempts)


def say(lines: list[tuple[str, str]], runs: list[AttemptRecord]) -> None:
    """Write what is known of a task, and its earlier runs."""
    from msgspec import UNSET

    for name, text in lines:
        tell(f"{name + ':':<13}{text}")
    for run in runs:
        error = f"  {run.error.code}: {shorten(run.error.message)}" if run.error is not UNSET else ""
        tell(f"{f'{run.n}:':<13}run {run.attempt} {run.kind} at {stamp(run.at)} on {run.worker}{error}")


def submitted_lines(submitted: Submission) -> list[tuple[str, str]]:
    """Return what is to be told of what was submitted."""
    from msgspec import UNSET

    lines = [("submitted", stamp(submitted.at))]
    if submitted.payload is not UNSET:
        lines.append(("payload", shorten(bytes(submitted.payload).decode(errors="replace"), 200)))
    return lines


def _record_lines(record: TaskRecord) -> list[tuple[str, str]]:
    import msgspec
    from msgspec import UNSET

    lines = []
    if record.submitted is not UNSET:
        lines += submitted_lines(record.submitted)
    runs = str(record.attempts)
    if record.crashes is not UNSET:
        runs += f", not counting {record.crashes} cut short when a worker died"
    lines += [("finished", stamp(record.finished_at)), ("runs", runs), ("worker", record.worker)]
    if isinstance(record.result, msgspec.Raw):
        lines.append(("result", shorten(bytes(record.result).decode(), 400)))
    if record.result_blob is not UNSET:
        lines.append(("result", f"{record.result_blob.size_bytes} bytes in CB_BLOBS/{record.result_blob.name}"))
    if record.error is not UNSET:
        lines.append(("error", f"{record.error.code}: {record.error.message}"))
        if record.error.trace is not UNSET:
            lines.append(("trace", "\n" + record.error.trace.rstrip()))
    return lines


def _progress_line(progress: Progress) -> str:
    from msgspec import UNSET

    parts = [stamp(progress.at)]
    if progress.percent is not UNSET:
        parts.append(f"{progress.percent:5.1f} %")
    parts += [text for text in (progress.stage, progress.text) if text is not UNSET]
    return "  ".join(parts)


@command.command("watch", epilog=example("callboard tasks watch search/2026-11-21/7"))
@click.argument("task_id", metavar="TASK")
@click.option("--capability", help="Narrow the search to this one.")
@json_option
@global_options
@pass_session
def watch(session: Session, /, task_id: str, capability: str | None) -> None:
    """Print what a task says of its progress, from its beginning (one hour back) until it is finished.

    Ends with status 0 when it completed, 1 otherwise. With --json each event is a line, the record is the last one.
    """
    record = session.run(_watch(session, task_id, capability))
    if session.json:
        emit({"event": "finished", "record": record})
    else:
        tell(f"{stamp(record.finished_at)}  {record.status}  {_says(record)}".rstrip())
    click.get_current_context().exit(0 if record.status == "completed" else 1)


async def _watch(session: Session, /, task_id: str, capability: str | None) -> TaskRecord:
    from callboard.runtime import lookup
    from callboard.runtime.client import Client
    from callboard.runtime.clock import SYSTEM_CLOCK

    async with session.bus("tasks-watch") as bus:
        found = await lookup.find(bus, task_id, capability=capability)
        client = Client(bus)
        seen = await _print_events(session, bus, task_id, after_seq=0)
        while found.record is None:
            record = await client.record(found.capability, task_id)
            # events come before the record: what is there now is all there will be
            seen = await _print_events(session, bus, task_id, after_seq=seen)
            if record is not None:
                return record
            await SYSTEM_CLOCK.sleep(_POLL_S)
        return found.record


async def _print_events(session: Session, /, bus: Bus, task_id: str, *, after_seq: int) -> int:
    from callboard.runtime import lookup, subjects

    seq, subject = after_seq, subjects.task_event(task_id)
    while True:
        stored = await bus.get_next(lookup.ACTORS, seq + 1, subject)
        if stored is None:
            return seq
        seq = stored.seq
        progress = lookup.as_progress(stored)
        if progress is None:
            continue
        if session.json:
            emit({"event": "progress", "progress": progress})
        else:
            tell(_progress_line(progress))


@command.command("cancel", epilog=example("callboard tasks cancel search/2026-11-21/7 --reason 'wrong query'"))
@click.argument("task_ids", metavar="TASK...", nargs=-1, required=True)
@click.option("--capability", help="Narrow the search to this one.")
@click.option("--reason", default="cancelled by request", show_default=True, help="Stands in the record.")
@json_option
@global_options
@pass_session
def cancel(session: Session, /, task_ids: tuple[str, ...], capability: str | None, reason: str) -> None:
    """Cancel tasks wherever they are: scheduled, waiting or running. A finished one stays as it is (status 1)."""
    found = session.run(_cancel(session, task_ids, capability, reason))
    if session.json:
        emit([{"task": task, "found": where} for task, where in found])
    else:
        for task, where in found:
            tell(f"{task}  {'had finished before' if where == 'finished' else f'cancelled while {where}'}")
    click.get_current_context().exit(1 if any(where == "finished" for _, where in found) else 0)


async def _cancel(
    session: Session, /, task_ids: tuple[str, ...], capability: str | None, reason: str
) -> list[tuple[str, str]]:
    from callboard.runtime import lookup
    from callboard.runtime.client import Client
    from callboard.runtime.errors import TaskNotFoundError

    results: list[tuple[str, str]] = []
    async with session.bus("tasks-cancel") as bus:
        client = Client(bus)
        for task_id in task_ids:
            try:
                found = await lookup.find(bus, task_id, capability=capability)
            except TaskNotFoundError:
                for earlier, where in results:
                    note(f"{earlier}: {where}")
                raise
            if found.record is not None:
                results.append((task_id, "finished"))
                continue
            done = await client.cancel(found.capability, task_id, reason=reason, place=found.place)
            results.append((task_id, done.found))
    return results
