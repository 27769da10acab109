"""The records of a run as they stand in its actor's step journal, while it runs and for a week after."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from callboard.agents.run_record import ANSWERED, ASKED, BEGUN, JOINED, JOINING, AgentRun, Begun, Join, Outcome
from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus
from callboard.runtime.client import TaskHandle
from callboard.runtime.errors import DecodeError, NotFoundError

T = TypeVar("T")

# What the engine records of a task that a turn submits and waits for.
_SUBMITTED, _CALLED = "~submit ", "~call "


class Records(Struct, frozen=True, kw_only=True):
    """What stands of one attempt at a run.

    Attributes:
        seq: Sequence of the mail that began it; 0 where nothing stands.
        agents: In the order in which they were asked.
        joins: What each join waited for; ``outcomes`` how its branches ended, if it has.
        tasks: Tasks that were submitted to pools and have no result here yet.
    """

    seq: int = 0
    begun: Begun | None = None
    agents: list[AgentRun] = []
    joins: list[Join] = []
    outcomes: dict[str, list[Outcome]] = {}
    tasks: list[TaskHandle] = []

    @property
    def open_agents(self) -> list[AgentRun]:
        """Agents that were asked and have not answered."""
        return [part for part in self.agents if part.status == "running" and part.agent]


class _Joined(Struct, frozen=True):
    name: str
    outcomes: list[Outcome]


async def read(bus: Bus, actor: Address, seq: int = 0) -> Records:
    """Return the records of an attempt at a run: that of mail ``seq``, the latest for 0.

    One batched get of all its steps, a request for each 500 of them.

    Raises:
        NotFoundError: If there is no stream of actors.
        DecodeError: If a record cannot be read.
    """
    where = f"cb.step.{actor.type}.{actor.token}.{seq or '*'}"
    found = await bus.get_many(subjects.ACTORS, [f"{where}.*.*.*"])
    by_seq: dict[int, dict[str, StepRecord]] = {}
    for stored in sorted(found, key=lambda each: each.seq):
        mail, _, entry = stored.subject.split(".", 4)[4].partition(".")
        by_seq.setdefault(int(mail), {})[entry] = step.decode(stored.data)
    if not by_seq:
        return Records(seq=seq)
    latest = max(by_seq)
    return await _assemble(bus, latest, [each for each in by_seq[latest].values() if each.kind == "done"])


async def _assemble(bus: Bus, seq: int, records: list[StepRecord]) -> Records:
    begun: Begun | None = None
    agents: dict[tuple[str, int], AgentRun] = {}
    joins: list[Join] = []
    outcomes: dict[str, list[Outcome]] = {}
    submitted: dict[str, TaskHandle] = {}
    called: set[str] = set()
    for each in records:
        match each.name:
            case name if name == BEGUN:
                begun = await _value(bus, each, Begun)
            case name if name in (ASKED, ANSWERED):
                part = await _value(bus, each, AgentRun)
                agents[part.name, part.try_] = _merged(agents.get((part.name, part.try_)), part)
            case name if name == JOINING:
                joins.append(await _value(bus, each, Join))
            case name if name == JOINED:
                joined = await _value(bus, each, _Joined)
                outcomes[joined.name] = joined.outcomes
            case name if name.startswith(_SUBMITTED):
                submitted[each.args_digest] = await _value(bus, each, TaskHandle)
            case name if name.startswith(_CALLED):
                called.add(each.args_digest)
    open_tasks = [handle for digest, handle in submitted.items() if digest not in called]
    return Records(
        seq=seq,
        begun=begun,
        agents=marked(list(agents.values()), outcomes),
        joins=joins,
        outcomes=outcomes,
        tasks=open_tasks,
    )


def marked(agents: list[AgentRun], outcomes: dict[str, list[Outcome]]) -> list[AgentRun]:
    """Return agent runs with those that a join gave up marked as it did: lost, or cancelled."""
    given_up = {each.name: each for found in outcomes.values() for each in found if each.status != "done"}
    return [
        replace(part, error=given_up[part.name].error) if part.status == "running" and part.name in given_up else part
        for part in agents
    ]


def _merged(known: AgentRun | None, part: AgentRun) -> AgentRun:
    """Return the record of the answer with what only that of the question has."""
    if known is None or known.status != "running":
        return part if known is None else known
    return replace(part, input=known.input) if part.status != "running" else part


async def _value(bus: Bus, found: StepRecord, kind: type[T]) -> T:
    if found.blob is not UNSET:
        try:
            data = await BlobStore(bus).get(found.blob)
        except NotFoundError as error:
            message = f"the value of step {found.name!r} lay in the object store and was swept"
            raise DecodeError(message) from error
    else:
        data = bytes(found.value) if isinstance(found.value, Raw) else b"null"
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        message = f"the record {found.name!r} of a run cannot be read: {error}"
        raise DecodeError(message) from error
