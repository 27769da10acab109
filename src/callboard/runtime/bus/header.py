"""Names of the headers that the broker and Callboard read, and the builder for the broker's own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

MSG_ID = "Nats-Msg-Id"
EXPECTED_SUBJECT_SEQ = "Nats-Expected-Last-Subject-Sequence"
TTL = "Nats-TTL"
ROLLUP = "Nats-Rollup"
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQ = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"
SCHEDULE_TZ = "Nats-Schedule-Time-Zone"
SCHEDULER = "Nats-Scheduler"
SCHEDULE_NEXT = "Nats-Schedule-Next"
STREAM_SOURCE = "Nats-Stream-Source"

CONTENT_TYPE = "Content-Type"
TRACEPARENT = "traceparent"
DEADLINE = "Cb-Deadline"
NOT_BEFORE = "Cb-Not-Before"
REPLY_TO = "Cb-Reply-To"
ATTEMPT = "Cb-Attempt"
TASK_ID = "Cb-Task-Id"
LANE = "Cb-Lane"
REQUEUE_OF = "Cb-Requeue-Of"
CLAIM_CHECK = "Cb-Claim-Check"
SENDER = "Cb-Sender"
KIND = "Cb-Kind"
PRIORITY = "Cb-Priority"
CORRELATION = "Cb-Correlation-Id"
CAUSATION = "Cb-Causation-Id"
RUN = "Cb-Run"
SCHEMA = "Cb-Schema-Version"
ATTACHMENTS = "Cb-Attachments"
MAIL_ID = "Cb-Mail-Id"
MAIL_KIND = "Cb-Mail-Kind"
TYPE = "Cb-Type"
KEY = "Cb-Key"
CHAIN = "Cb-Chain"
TIMER = "Cb-Timer"
TIMER_GENERATION = "Cb-Timer-Generation"
ERROR = "Cb-Error"
STORED_AT = "Cb-Stored-At"
STREAM = "Cb-Stream"
# On an ask: say whether it would be taken, and do nothing else.
TRIAL = "Cb-Trial"
PART = "Cb-Part"
REPLAY = "Cb-Replay"
REPLAY_SUBJECT = "Cb-Replay-Subject"

# What the server makes up itself bears a status: nobody listens on the subject of a message with a reply subject.
STATUS = "Status"
NO_RESPONDERS = "503"

Headers = Mapping[str, str]


def build(
    *,
    msg_id: str | None = None,
    expected_seq: int | None = None,
    ttl_s: float | None = None,
    rollup: bool = False,
    extra: Headers | None = None,
) -> dict[str, str] | None:
    """Return the headers for a stored write, or None when there are none (a header-less publish is cheaper).

    Args:
        msg_id: Idempotency key; a second write with it inside the stream's window is acknowledged as a duplicate.
        expected_seq: Sequence that must be the subject's last; 0 means that nothing may stand there yet.
        ttl_s: Lifetime in whole seconds, at least 1; the stream must allow it.
        rollup: Remove every earlier message on the subject in the same write.
        extra: Further headers.
    """
    headers = dict(extra) if extra else {}
    if msg_id is not None:
        headers[MSG_ID] = msg_id
    if expected_seq is not None:
        headers[EXPECTED_SUBJECT_SEQ] = str(expected_seq)
    if ttl_s is not None:
        headers[TTL] = f"{max(1, round(ttl_s))}s"
    if rollup:
        headers[ROLLUP] = "sub"
    return headers or None


def without_batch(headers: Headers | None) -> Headers | None:
    """Return headers as their sender gave them: the broker leaves those of an atomic batch on its messages."""
    if headers is None or BATCH_ID not in headers:
        return headers
    return {name: value for name, value in headers.items() if not name.startswith("Nats-Batch-")} or None


def at(due: datetime, target: str) -> dict[str, str]:
    """Return the headers that make a stored write fire once, at ``due``, onto ``target`` in the same stream."""
    stamp = due.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {SCHEDULE: f"@at {stamp}", SCHEDULE_TARGET: target}


def cancel_schedule() -> dict[str, str]:
    """Return the headers of an empty write on a schedule's own subject that ends the schedule; also inside a batch.

    It replaces the schedule and is itself gone a second later (``Nats-TTL``), so readers of schedules skip what has no
    ``Nats-Schedule``. Ending one that has fired or never was does no harm. A batch may hold only one write with these
    or with a schedule's headers on a subject (10111), so a schedule that is set anew is written, not cancelled before.

    Seen with nats-server 2.15.1: a purge of the subject through the API works too, but not in a batch; headers
    ``Nats-Schedule-Next: purge`` and ``Nats-Scheduler: <subject>`` on a message of any *other* subject (10212 on its
    own) do in a batch and leave no trace, but need such a message for each schedule.
    """
    return {ROLLUP: "sub", TTL: "1s"}


def recurring(rule: str, target: str, *, time_zone: str | None = None) -> dict[str, str]:
    """Return the headers for a recurring schedule.

    Args:
        rule: ``@every 90s`` (1 s at least), ``@hourly`` and the like, or a cron line of six fields, seconds first.
        target: Subject, in the same stream, of each firing.
        time_zone: IANA name; only for cron lines.
    """
    headers = {SCHEDULE: rule, SCHEDULE_TARGET: target}
    if time_zone is not None:
        headers[SCHEDULE_TZ] = time_zone
    return headers
