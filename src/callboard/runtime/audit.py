"""Reading what happened: the ledger in stream order or newest first, and any other stream the same way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Literal

from msgspec import UNSET, Struct

from callboard.runtime import record, subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import DecodeError, NotFoundError
from callboard.runtime.record import AttemptRecord, Submission, TaskRecord

Kind = Literal["result", "attempt", "unreadable"]

# The first look back reads this many messages for each one wanted; every further look reads four times as many.
_LOOK_BACK = 4
_MIN_WINDOW = 64


class Entry(Struct, frozen=True, kw_only=True):
    """One message of the ledger.

    Attributes:
        seq: Its place in the stream.
        stored_at: When the broker stored it.
        kind: What it is; ``unreadable`` when another program wrote something else on the subject.
        problem: Why it is unreadable.
    """

    seq: int
    stored_at: datetime
    kind: Kind
    task: str
    capability: str
    result: TaskRecord | None = None
    attempt: AttemptRecord | None = None
    problem: str = ""


class Filter(Struct, frozen=True, kw_only=True):
    """What to keep; None keeps all.

    Attributes:
        status: completed, failed, cancelled or expired; attempts pass only when it is None.
        correlation: A task id, the trace id of ``traceparent``, or the value of any header of the submission.
        attempts: Whether attempt records are wanted beside results.
    """

    capability: str | None = None
    task: str | None = None
    status: str | None = None
    correlation: str | None = None
    attempts: bool = True

    def subjects(self) -> tuple[str, ...]:
        """Return the subjects to read, as narrow as the broker can filter."""
        capability = self.capability or "*"
        task = subjects.escape(self.task) if self.task is not None else "*"
        results = f"cb.result.{capability}.{task}"
        return (results, f"cb.attempt.{capability}.{task}.*") if self.attempts else (results,)

    def keeps(self, entry: Entry) -> bool:
        """Return whether an entry passes what the broker cannot filter."""
        if self.status is not None and (entry.result is None or entry.result.status != self.status):
            return False
        return self.correlation is None or _is_about(entry, self.correlation)


async def read(
    bus: Bus, wanted: Filter, *, since: datetime | None = None, start_seq: int | None = None, follow: bool = False
) -> AsyncIterator[Entry]:
    """Yield the ledger's entries in stream order; ends at the present end unless ``follow``.

    Raises:
        NotFoundError: If there is no ledger.
    """
    stream = bus.read(subjects.LEDGER, subjects=wanted.subjects(), start_time=since, start_seq=start_seq, follow=follow)
    async with closing(stream) as messages:
        async for stored in messages:
            entry = as_entry(stored)
            if wanted.keeps(entry):
                yield entry


async def newest(
    bus: Bus, wanted: Filter, *, limit: int, since: datetime | None = None, before_seq: int | None = None
) -> list[Entry]:
    """Return the last ``limit`` entries, newest first. Reads backwards in growing windows.

    Args:
        bus: Where.
        wanted: Which.
        limit: How many at most.
        since: Nothing stored earlier.
        before_seq: Only what stands before this sequence; the next page.

    Raises:
        NotFoundError: If there is no ledger.
    """
    found = await newest_stored(
        bus,
        subjects.LEDGER,
        filters=wanted.subjects(),
        limit=limit,
        since=since,
        before_seq=before_seq,
        keeps=lambda stored: wanted.keeps(as_entry(stored)),
    )
    return [as_entry(stored) for stored in found]


async def newest_stored(
    bus: Bus,
    stream: str,
    *,
    limit: int,
    filters: Sequence[str] = (),
    since: datetime | None = None,
    before_seq: int | None = None,
    keeps: Callable[[Stored], bool] = lambda _: True,
) -> list[Stored]:
    """Return the last ``limit`` messages of any stream that pass, newest first; see ``newest``.

    Raises:
        NotFoundError: If the stream does not exist.
    """
    info = await bus.stream_info(stream)
    if info is None:
        message = f"stream {stream} does not exist: run `callboard provision`"
        raise NotFoundError(message)
    end = min(before_seq or info.last_seq + 1, info.last_seq + 1)
    window = max(_MIN_WINDOW, limit * _LOOK_BACK)
    found: list[Stored] = []
    while len(found) < limit and end > info.first_seq and info.messages:
        start = max(info.first_seq, end - window)
        page = await _page(bus, stream, filters, start=start, end=end)
        in_time = [stored for stored in page if since is None or stored.time >= since]
        found = [stored for stored in in_time if keeps(stored)] + found
        if len(in_time) < len(page):
            break
        end, window = start, window * 4
    return found[::-1][:limit]


async def _page(bus: Bus, stream: str, filters: Sequence[str], *, start: int, end: int) -> list[Stored]:
    page = []
    async with closing(bus.read(stream, subjects=filters, start_seq=start)) as messages:
        async for stored in messages:
            if stored.seq >= end:
                break
            page.append(stored)
    return page


@asynccontextmanager
async def closing(messages: AsyncIterator[Stored]) -> AsyncIterator[AsyncIterator[Stored]]:
    """End a read that is left early, so that its consumer does not stay behind."""
    try:
        yield messages
    finally:
        close = getattr(messages, "aclose", None)
        if close is not None:
            await close()


def as_entry(stored: Stored) -> Entry:
    """Return a message of the ledger as an entry; never raises for what it holds."""
    parts = stored.subject.split(".")
    capability, task = (parts[2], subjects.unescape(parts[3])) if len(parts) > 3 else ("", stored.subject)  # noqa: PLR2004
    result: TaskRecord | None = None
    attempt: AttemptRecord | None = None
    kind: Kind = "unreadable"
    problem = ""
    try:
        if stored.subject.startswith("cb.result."):
            result, kind = record.decode_task(stored.data), "result"
        else:
            attempt, kind = record.decode_attempt(stored.data), "attempt"
    except DecodeError as error:
        problem = str(error)
    return Entry(
        seq=stored.seq,
        stored_at=stored.time,
        kind=kind,
        task=task,
        capability=capability,
        result=result,
        attempt=attempt,
        problem=problem,
    )


def trace_of(submitted: Submission) -> str | None:
    """Return the trace id of a submission's ``traceparent``, or None."""
    if submitted.headers is UNSET:
        return None
    parts = submitted.headers.get(header.TRACEPARENT, "").split("-")
    return parts[1] if len(parts) == 4 else None  # noqa: PLR2004 - version-trace-span-flags


def _is_about(entry: Entry, correlation: str) -> bool:
    if entry.task == correlation:
        return True
    submitted = entry.result.submitted if entry.result is not None else UNSET
    if submitted is UNSET:
        return False
    values = submitted.headers.values() if submitted.headers is not UNSET else ()
    return correlation == trace_of(submitted) or correlation in values
