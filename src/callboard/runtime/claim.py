"""A claim: a task this worker holds, from its arrival until its answer to the broker."""

from __future__ import annotations

import re
from datetime import datetime
from enum import Enum
from typing import Literal

from msgspec import UNSET

from callboard.runtime import codec, ids, record, subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Delivery
from callboard.runtime.errors import InputError, InvalidNameError
from callboard.runtime.record import Submission
from callboard.runtime.redact import without_secrets
from callboard.runtime.subjects import Lane

_ATTEMPT = re.compile(r"[1-9][0-9]{0,4}")
REPLAYED = f"it bears {header.REPLAY}: a replay of history has no effects, so no handler runs it"
StopReason = Literal["cancel", "timeout", "deadline", "drain"]


class Stage(Enum):
    """Where a claim stands."""

    SCREENING = "screening"
    READY = "ready"
    RUNNING = "running"
    SETTLING = "settling"


class Claim:
    """One delivery in this worker's hands. Mutable; owned by its pool, read by the lease keeper's thread.

    Attributes:
        extended_at: Monotonic seconds when the lease was last known to be ours: arrival or latest extension.
        must_ask: The worker is too young to know whether it is a first delivery.
        is_doubtful: It says that it is a first delivery, and the broker may have forgotten an earlier one.
        must_yield: Somebody who goes first with the same task asks about it too: it will not be run here.
        is_chosen: It has been decided that it runs here; whoever asks from now on is told that it is held.
        is_stale: Its lease was once overdue: somebody else may have got the task, whatever was extended since.
        linked_at: ``Bus.connected_at`` of the link it came by.
        number: Next attempt record's number.
        is_restart: Whether a ``started`` record must precede the run.
        started_at: Monotonic start of the run, None before.
        ends_at: Monotonic second at which the sweeper stops the run, None for no limit.
        ready_at: Monotonic seconds since when it has waited for a slot.
        is_json: Whether the payload can stand in a record as it is; None when nobody has looked yet.
        problem: Why its headers cannot be used; it goes by its sequence's name then.
        stop_reason: Why the run was cancelled, set before the cancellation.
    """

    __slots__ = (
        "arrived_at", "attempt", "capability", "claimed_at", "context_deadline", "crashes", "delivery", "ends_at",
        "extended_at", "is_doubtful", "is_json", "is_restart", "is_stale", "is_suspect", "lane", "linked_at",
        "is_chosen", "must_ask", "must_yield", "number", "own_id", "payload", "problem", "ready_at", "reply_to",
        "stage", "started_at", "stop_reason", "stop_text", "task_id", "token",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, *, capability: str, lane: Lane, now_s: float, now: datetime) -> None:
        """Take a delivery that has just arrived."""
        headers = delivery.headers
        self.delivery = delivery
        self.token = delivery.token
        self.capability = capability
        self.lane = lane
        self.payload = delivery.data
        self.is_json: bool | None = None
        self.problem: InputError | None = None
        self.arrived_at = self.extended_at = self.ready_at = now_s
        self.claimed_at = now
        self.stage = Stage.READY
        self.attempt = 1
        self.crashes = 0
        self.number = 1
        self.is_restart = False
        self.is_suspect = False
        self.is_doubtful = False
        self.must_ask = self.must_yield = self.is_chosen = False
        self.is_stale = False
        self.linked_at = 0.0
        self.started_at: float | None = None
        self.ends_at: float | None = None
        self.stop_reason: StopReason | None = None
        self.stop_text = ""
        self.context_deadline: datetime | None = None
        self.reply_to: str | None = None
        if headers is None:
            self.task_id = self.own_id = f"~{delivery.seq}"
            return
        is_fired = delivery.subject.startswith("cb.due.")
        self.own_id = ids.task_id_of(delivery.seq, is_fired=is_fired)
        self.task_id = headers.get(header.TASK_ID) or headers.get(header.MSG_ID) or self.own_id
        attempt = headers.get(header.ATTEMPT, "1")
        self.attempt = int(attempt) if _ATTEMPT.fullmatch(attempt) else 1
        try:
            if self.has_client_id and not (is_fired and self.attempt > 1):
                ids.check(self.task_id)
        except InvalidNameError as error:
            self.task_id = self.own_id
            self.problem = error
        if header.REPLAY in headers:
            self.problem = InputError(REPLAYED)
        reply_to = headers.get(header.REPLY_TO)
        # nobody can be told on a subject that is none; the record is there all the same
        self.reply_to = reply_to if reply_to and subjects.may_answer_on(reply_to) else None
        if is_fired:
            # a schedule fires onto one subject whatever the lane; the header keeps it for the record
            fired_lane = headers.get(header.LANE)
            self.lane = "high" if fired_lane == "high" else "low" if fired_lane == "low" else lane

    def traits(self) -> dict[str, str | int]:
        """Return what a span of its run says."""
        return {
            "messaging.system": "nats",
            "messaging.operation.name": "process",
            "messaging.destination.name": self.delivery.subject,
            "callboard.capability": self.capability,
            "callboard.task": self.task_id,
            "callboard.attempt": self.attempt,
        }

    @property
    def has_client_id(self) -> bool:
        """Whether the id could have been submitted before: everything but the one its own sequence gives."""
        return self.task_id is not self.own_id

    @property
    def content_type(self) -> str | None:
        """The payload's ``Content-Type``, None when absent."""
        headers = self.delivery.headers
        return headers.get(header.CONTENT_TYPE) if headers is not None else None

    @property
    def result_subject(self) -> str:
        """Subject of its ledger record."""
        if not self.has_client_id:
            return f"cb.result.{self.capability}.{self.task_id}"
        return subjects.result(self.capability, self.task_id)

    def submission(self) -> Submission:
        """Return the copy of what was submitted that goes into records."""
        delivery = self.delivery
        headers = delivery.headers
        check = headers.get(header.CLAIM_CHECK) if headers is not None else None
        payload, payload_b64 = record.as_payload(delivery.data, is_json=self._may_embed())
        kept = without_secrets(headers) if headers is not None else {}
        kept.pop(header.CLAIM_CHECK, None)
        return Submission(
            seq=delivery.seq,
            at=record.stored_at(delivery.time_ns),
            lane=self.lane,
            payload=payload,
            payload_b64=payload_b64,
            claim_check=check or UNSET,
            headers=kept or UNSET,
        )

    def _may_embed(self) -> bool:
        if not codec.is_json(self.content_type):
            return False
        data = self.delivery.data
        if self.is_json is None:
            # it was never decoded (it expired, was cancelled, or its headers are wrong)
            self.is_json = record.is_json_text(data)
        elif self.is_json and not data.isascii():
            # a decoder skips fields that nobody reads without a look at their UTF-8
            self.is_json = _is_utf8(data)
        return self.is_json

    def __repr__(self) -> str:
        """Return what tests and logs want to see; never the payload."""
        return f"<Claim {self.capability} {self.task_id} {self.stage.value} attempt={self.attempt}>"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
