"""The account of a run: what was submitted against what is on record, and what a killed worker left behind.

Nothing here trusts the run: the ids come from the submitter, the records from the ledger stream as it was read
afterwards, and the two are compared as lists, so a task that is missing, recorded twice, or recorded without ever
having been submitted shows up by name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a record's ``submitted`` that the account needs."""

    seq: int = 0
    at: datetime | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a record's ``error`` that a person reads."""

    message: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger record (docs/wire.md, section 3), without its result. Unknown fields are ignored when decoding."""

    task: str
    capability: str
    status: str
    worker: str = ""
    claimed_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 1
    crashes: int = 0
    submitted: Submitted = Submitted()
    error: Failure | None = None


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a worker held when it was killed, and when it had claimed it, where that is known."""

    task: str
    claimed_at: datetime | None = None


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """A worker killed on purpose.

    Attributes:
        held: What it held as it last answered, milliseconds before.
        replaced_by: Workers that were started in its place.
    """

    worker: str
    at: datetime
    signal: str = "SIGKILL"
    held: list[Held] = []
    replaced_by: list[str] = []


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One finished task.

    Attributes:
        label: What a person calls it: its file, or its id.
        submitted_at: When the broker stored it.
        claimed_at: Begin of the run that finished it.
        taken_over_s: Time from the kill to the next claim, for tasks taken over.
        error: What went wrong, unless it completed.
    """

    task: str
    label: str
    capability: str
    status: str
    worker: str
    claimed_at: datetime | None
    finished_at: datetime | None
    attempts: int
    crashes: int
    taken_over_s: float | None = None
    submitted_at: datetime | None = None
    error: str = ""


class WorkerTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker did; ``busy_s`` sums its tasks, so it exceeds the run's length when slots run side by side."""

    worker: str
    name: str
    tasks: int
    by_capability: dict[str, int]
    busy_s: float
    first_at: datetime | None
    last_at: datetime | None
    fate: Literal["finished", "killed", "replacement"]


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The account.

    Attributes:
        submitted: Number of different ids that were submitted.
        recorded: Number of those with at least one record.
        statuses: Number of tasks by final status.
        lost: Submitted, no record.
        doubled: More than one record.
        phantom: On record, never submitted.
        repeated: Records of tasks that ran more than once (attempts over 1, or a worker died under them).
        taken_over: Tasks the killed worker held and another finished, in order of their claim.
        unclaimed: Tasks the killed worker held that nobody finished (then they are lost, too).
    """

    submitted: int
    recorded: int
    statuses: dict[str, int]
    lost: list[str]
    doubled: list[str]
    phantom: list[str]
    repeated: list[str]
    workers: list[WorkerTotal]
    entries: list[Entry]
    taken_over: list[Entry]
    unclaimed: list[str]
    kill: Kill | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every submitted task is on record exactly once, and nothing else is."""
        return not (self.lost or self.doubled or self.phantom)

    @property
    def failed(self) -> list[Entry]:
        """The tasks on record without a result: they count, and did not complete."""
        return [entry for entry in self.entries if entry.status != "completed"]


def read_record(data: bytes) -> Record:
    """Decode a ledger record from its JSON.

    Raises:
        msgspec.MsgspecError: It is no ledger record.
    """
    return msgspec.json.decode(data, type=Record)


def account(
    submitted_ids: Iterable[str],
    records: Iterable[Record],
    *,
    kill: Kill | None = None,
    labels: Mapping[str, str] | None = None,
    workers: Sequence[str] = (),
) -> Ledger:
    """Compare what was submitted with what is on record.

    Args:
        submitted_ids: Every id the submitter got an acknowledgement for.
        records: Every record read from the ledger, repeats included.
        kill: The worker that was killed on purpose, if any.
        labels: What a person calls a task (its file), by id; the id itself where there is none.
        workers: Ids of all workers in the order they were started, so that one that finished nothing is listed, too.
    """
    submitted = set(submitted_ids)
    kept = sorted(records, key=lambda record: (record.claimed_at is None, record.claimed_at, record.task))
    counts = Counter(record.task for record in kept)
    first = {record.task: record for record in reversed(kept)}
    entries = [_entry(record, kill, labels or {}) for record in kept if first[record.task] is record]
    recorded = submitted & counts.keys()
    taken_over = [entry for entry in entries if entry.taken_over_s is not None]
    return Ledger(
        submitted=len(submitted),
        recorded=len(recorded),
        statuses=dict(sorted(Counter(first[task].status for task in recorded).items())),
        lost=sorted(submitted - counts.keys()),
        doubled=sorted(task for task, count in counts.items() if count > 1),
        phantom=sorted(counts.keys() - submitted),
        repeated=sorted(entry.task for entry in entries if entry.attempts > 1 or entry.crashes),
        workers=_worker_totals(entries, kill, workers),
        entries=entries,
        taken_over=taken_over,
        unclaimed=sorted(held.task for held in kill.held if held.task not in counts) if kill else [],
        kill=kill,
    )


def _entry(record: Record, kill: Kill | None, labels: Mapping[str, str]) -> Entry:
    return Entry(
        task=record.task,
        label=labels.get(record.task, record.task),
        capability=record.capability,
        status=record.status,
        worker=record.worker,
        claimed_at=record.claimed_at,
        finished_at=record.finished_at,
        attempts=record.attempts,
        crashes=record.crashes,
        taken_over_s=_taken_over_s(record, kill),
        submitted_at=record.submitted.at,
        error=record.error.message if record.error else "",
    )


def _taken_over_s(record: Record, kill: Kill | None) -> float | None:
    """Return seconds from the kill to the claim that finished the task; None when the killed worker did not hold it."""
    if kill is None or record.worker == kill.worker or record.claimed_at is None:
        return None
    was_held = any(held.task == record.task for held in kill.held)
    if not (was_held or record.crashes) or record.claimed_at < kill.at:
        return None
    return round((record.claimed_at - kill.at).total_seconds(), 3)


def _worker_totals(entries: Sequence[Entry], kill: Kill | None, workers: Sequence[str]) -> list[WorkerTotal]:
    groups: dict[str, list[Entry]] = {worker: [] for worker in workers}
    for entry in entries:
        groups.setdefault(entry.worker, []).append(entry)
    if kill:
        groups.setdefault(kill.worker, [])
    totals: list[WorkerTotal] = []
    for number, (worker, group) in enumerate(groups.items(), start=1):
        spans = [(entry.claimed_at, entry.finished_at) for entry in group]
        whole = [(begin, end) for begin, end in spans if begin and end]
        by_capability: dict[str, int] = defaultdict(int)
        for entry in group:
            by_capability[entry.capability] += 1
        totals.append(
            WorkerTotal(
                worker=worker,
                name=f"Worker {number}",
                tasks=len(group),
                by_capability=dict(sorted(by_capability.items())),
                busy_s=round(sum((end - begin).total_seconds() for begin, end in whole), 3),
                first_at=min((begin for begin, _ in whole), default=None),
                last_at=max((end for _, end in whole), default=None),
                fate=_fate(worker, kill),
            )
        )
    return totals


def _fate(worker: str, kill: Kill | None) -> Literal["finished", "killed", "replacement"]:
    if kill is None or worker not in (kill.worker, *kill.replaced_by):
        return "finished"
    return "killed" if worker == kill.worker else "replacement"
