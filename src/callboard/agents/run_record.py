"""What is kept of a run: the run itself, the agents that worked for it, and the joins that waited for them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from msgspec import Struct

from callboard.agents.llm.base import Usage
from callboard.agents.message import AgentResult
from callboard.runtime.actor import address
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.step import short_id
from callboard.runtime.errors import InvalidNameError

# The actor types of flows begin with it.
PREFIX = "run-"
# The steps in which a run's records stand, beside those of the flow's own code. "message" is what went in and out.
BEGUN = "run"
ASKED = "agent begun"
ANSWERED = "agent"
JOINING = "join"
JOINED = "joined"

RunStatus = Literal["running", "waiting", "done", "partial", "failed", "cancelled"]
PartStatus = Literal["running", "done", "failed", "lost", "cancelled"]
ENDED: frozenset[str] = frozenset({"done", "partial", "failed", "cancelled"})


class AgentRun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One agent's part in a run: what it was asked, what it answered, what that cost.

    Attributes:
        name: Name within the run, such as ``summarise-2`` or ``review[1]/check``.
        status: ``lost``: no answer came in time, nobody hosts it, or its join no longer waited.
            ``cancelled``: the run was.
        agent: Who, ``type/key``; "" for a pool.
        capability: What was asked for, "" where somebody was named.
        try_: Number of the agent that was asked, 1-based; above 1 a former one had failed.
        attempt: Number of the run's attempt, 1-based; above 1 after ``runs retry``.
        input: What it was sent, as plain values.
        began_at: When it was asked.
        ended_at: When that was over, None before.
        until: When its answer stops being wanted.
        ask: Id of the question; an order to cancel goes by it.
        result: What it answered, with text, output, tokens and price; None before, or where nothing came.
        error: Why there is none, ``code: text``.
        is_optional: Whether the run can do without it.
    """

    name: str
    status: PartStatus
    agent: str = ""
    capability: str = ""
    try_: int = 1
    attempt: int = 1
    input: Any = None
    began_at: datetime | None = None
    ended_at: datetime | None = None
    until: datetime | None = None
    ask: str = ""
    result: AgentResult | None = None
    error: str = ""
    is_optional: bool = False


class Join(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a join waits for; it stands before the first branch begins.

    Attributes:
        name: Name within the run.
        expected: Names of the branches, in order.
        optional: Those of them that may fail.
        how: ``collect``, ``vote``, ``first``, ``reduce``.
        quorum: How many must be done; None where every branch that is not optional must.
        deadline: Until when it waits; what has not come then is lost.
    """

    name: str
    expected: list[str]
    optional: list[str] = []
    how: str = "collect"
    quorum: int | None = None
    deadline: datetime | None = None


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one branch of a join ended."""

    name: str
    status: PartStatus
    error: str = ""


class RunResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a flow answers, and what its run came to.

    Attributes:
        run: Its name, ``<flow>/<id>``.
        status: ``partial``: done, without everything that was expected.
        output: What the flow's function returned, as plain values.
        missing: Names of agent runs and branches that failed or were lost on the way.
        error: Why it failed or was cancelled.
        code: Code of that error.
        usage: Tokens of all its agents, as far as they told.
        cost_usd: Their price; None where no agent told one.
    """

    run: str
    status: RunStatus
    output: Any = None
    missing: list[str] = []
    error: str = ""
    code: str = ""
    usage: Usage = Usage()
    cost_usd: Decimal | None = None


class Begun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first record of an attempt at a run: what it was given.

    Attributes:
        job: The job, as plain values.
        type: Name of the job's type as the sender gave it, "" where it gave none.
        parent: The run that it is a part of, ``<flow>/<id>``.
        deadline: When its result stops being wanted.
    """

    run: str
    attempt: int = 1
    job: Any = None
    type: str = ""
    parent: str = ""
    began_at: datetime | None = None
    deadline: datetime | None = None


class RunState(Struct, kw_only=True, omit_defaults=True):
    """The state of a run's actor: nothing while its first attempt runs, everything that is to stay when that has ended.

    Attributes:
        attempt: Attempts that have ended.
        result: How the last one ended.
        begun: What it was given, and when it began.
        ended_at: When it ended.
        agents: Agents that worked for it, in the order in which they were asked; long texts are cut.
        joins: Its joins and how their branches ended.
        kept: Results by name and digest that a further attempt begins with; empty once it is done.
    """

    attempt: int = 0
    result: RunResult | None = None
    begun: Begun | None = None
    ended_at: datetime | None = None
    agents: list[AgentRun] = []
    joins: dict[str, list[Outcome]] = {}
    kept: dict[str, Any] = {}


def again(ask: str) -> str:
    """Return the id of a question that is asked a second time, because its first answer is not kept any more."""
    return short_id(f"{ask}/again")


def run_name(actor: Address) -> str:
    """Return a run's name, ``<flow>/<id>``, by its actor's address."""
    return f"{actor.type.removeprefix(PREFIX)}/{actor.key}"


def run_address(run: str) -> Address:
    """Return the address of a run's actor by its name, ``<flow>/<id>`` or ``run-<flow>/<id>``.

    Raises:
        InvalidNameError: If it is no such name.
    """
    flow, slash, key = run.partition("/")
    if not slash or not key or not flow.removeprefix(PREFIX):
        message = f"{run[:80]!r} names no run: it reads <flow>/<id>, such as digest/7f3a; see `callboard runs ls`"
        raise InvalidNameError(message, name=run[:80])
    return address.parse(f"{PREFIX}{flow.removeprefix(PREFIX)}/{key}")


def is_run(actor: Address) -> bool:
    """Return whether an actor is a run, by its type."""
    return actor.type.startswith(PREFIX)


def spent(parts: Iterable[AgentRun]) -> tuple[Usage, Decimal | None]:
    """Return tokens and price of all these; the price is None where nobody told one."""
    found = [part.result for part in parts if part.result is not None]
    usage = Usage(
        input_tokens=sum(each.usage.input_tokens for each in found),
        output_tokens=sum(each.usage.output_tokens for each in found),
        cached_tokens=sum(each.usage.cached_tokens for each in found),
    )
    prices = [each.cost_usd for each in found if each.cost_usd is not None]
    return usage, sum(prices, Decimal(0)) if prices else None
