"""What is told of a run to whoever looks: made from its records, its state and its actor's record, without asking."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from callboard.agents import run_log
from callboard.agents.llm.base import Usage
from callboard.agents.run_record import (
    ENDED,
    AgentRun,
    Begun,
    Join,
    Outcome,
    RunResult,
    RunState,
    RunStatus,
    run_name,
    spent,
)
from callboard.runtime.actor import record
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.bus.base import Stored
from callboard.runtime.errors import DecodeError
from callboard.runtime.record import Failure


class RunLine(Struct, frozen=True, kw_only=True):
    """One run in a list.

    Attributes:
        status: ``waiting``: its mail waits for a host, or it is parked.
        attempt: Number of its latest attempt, 1-based.
        agents: Agents that worked for it; None while it runs.
    """

    run: str
    status: RunStatus
    attempt: int = 1
    began_at: datetime | None = None
    ended_at: datetime | None = None
    agents: int | None = None
    cost_usd: Decimal | None = None
    missing: list[str] = []
    error: str = ""


class RunView(Struct, frozen=True, kw_only=True):
    """All that is known of one run: Run > agent runs > what each was sent and answered.

    Attributes:
        seq: Mail of the latest attempt, 0 where that is not known any more.
        job: What it was given.
        agents: In the order in which they were asked. Those of an ended run have long texts cut.
        joins: What its joins wait for, while it runs.
        outcomes: How the branches of its joins ended, by join.
        parent: The run that it is a part of.
        waits_for: Names of the messages that a parked run waits for.
    """

    run: str
    status: RunStatus
    attempt: int = 1
    seq: int = 0
    job: Any = None
    output: Any = None
    error: str = ""
    code: str = ""
    missing: list[str] = []
    parent: str = ""
    began_at: datetime | None = None
    ended_at: datetime | None = None
    deadline: datetime | None = None
    usage: Usage = Usage()
    cost_usd: Decimal | None = None
    agents: list[AgentRun] = []
    joins: list[Join] = []
    outcomes: Mapping[str, list[Outcome]] = {}
    waits_for: list[str] = []

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs or waits."""
        return self.status in ENDED


def decode_state(data: bytes) -> RunState:
    """Return the state of a run's actor.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return msgspec.json.decode(data, type=RunState)
    except msgspec.DecodeError as error:
        message = f"this is not the state of a run: {error}"
        raise DecodeError(message) from error


def running(actor: Address, found: run_log.Records, base: StateRecord | None, state: RunState, seq: int) -> RunView:
    """Return a run under way: by the records of its attempt, begun by mail ``seq``, and what former ones left."""
    begun = found.begun or Begun(run=run_name(actor), attempt=state.attempt + 1)
    parked = base.parked if base is not None else []
    former = [part for part in state.agents if part.status == "done"]
    agents = [*former, *found.agents]
    usage, cost = spent(agents)
    return RunView(
        run=begun.run,
        status="waiting" if parked or found.begun is None else "running",
        attempt=begun.attempt,
        seq=seq,
        job=begun.job,
        parent=begun.parent,
        began_at=begun.began_at,
        deadline=begun.deadline,
        usage=usage,
        cost_usd=cost,
        agents=agents,
        joins=found.joins,
        outcomes=found.outcomes,
        waits_for=[each.awaiting for each in parked],
    )


def ended(actor: Address, state: RunState, result: RunResult) -> RunView:
    """Return a run that has ended, by its state."""
    begun = state.begun or Begun(run=run_name(actor))
    return RunView(
        run=result.run,
        status=result.status,
        attempt=state.attempt,
        job=begun.job,
        output=result.output,
        error=result.error,
        code=result.code,
        missing=result.missing,
        parent=begun.parent,
        began_at=begun.began_at,
        ended_at=state.ended_at,
        deadline=begun.deadline,
        usage=result.usage,
        cost_usd=result.cost_usd,
        agents=state.agents,
        outcomes=state.joins,
    )


def broken(actor: Address, found: run_log.Records, letter: tuple[int, Failure, bytes, str] | None) -> RunView:
    """Return a run that ended without a word of its own: refused, ended in its sleep, or too often died under."""
    begun = found.begun or Begun(run=run_name(actor))
    failure = letter[1] if letter is not None else Failure(code="turn_cancelled", message="it was cancelled")
    is_cancelled = failure.code == "turn_cancelled"
    usage, cost = spent(found.agents)
    return RunView(
        run=begun.run,
        status="cancelled" if is_cancelled else "failed",
        attempt=begun.attempt,
        seq=found.seq,
        job=begun.job,
        error=failure.message,
        code=failure.code,
        parent=begun.parent,
        began_at=begun.began_at,
        deadline=begun.deadline,
        usage=usage,
        cost_usd=cost,
        agents=[replace(part, status="lost") if part.status == "running" else part for part in found.agents],
        outcomes=found.outcomes,
    )


def line(actor: Address, stored: Stored | None, last_mail: int) -> RunLine:
    """Return a run as one of a list, by its actor's record and the sequence of its last mail, 0 for none."""
    base = record.decode(stored.data) if stored is not None else StateRecord()
    try:
        state = decode_state(bytes(base.state)) if isinstance(base.state, Raw) else RunState()
    except DecodeError:
        # some other actor whose type begins as ours do
        state = RunState()
    is_open = last_mail and not base.has_applied(last_mail)
    result, begun = state.result, state.begun
    status: RunStatus = "waiting" if base.parked else "running" if is_open else result.status if result else "failed"
    is_ended = status in ENDED
    return RunLine(
        run=run_name(actor),
        status=status,
        attempt=state.attempt + (not is_ended) or 1,
        began_at=begun.began_at if begun is not None else None,
        ended_at=state.ended_at if is_ended else None,
        agents=len(state.agents) if is_ended and result else None,
        cost_usd=result.cost_usd if result is not None else None,
        missing=result.missing if result is not None and is_ended else [],
        error=result.error if result is not None and is_ended else "",
    )


def is_wordless(line: RunLine) -> bool:
    """Return whether a run ended and its state does not say how."""
    return line.status in ENDED and line.ended_at is None


def line_of(view: RunView) -> RunLine:
    """Return a run that was looked into as one of a list."""
    return RunLine(
        run=view.run,
        status=view.status,
        attempt=view.attempt,
        began_at=view.began_at,
        ended_at=view.ended_at,
        agents=len(view.agents),
        cost_usd=view.cost_usd,
        missing=view.missing,
        error=view.error,
    )
