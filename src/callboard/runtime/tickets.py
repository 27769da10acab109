"""Tickets in the stream: each change is an event on ``cb.event.ticket.<id>``, guarded by the version before it.

The history is the truth; what anybody keeps in a table is made from it. Writers on any host change a ticket by
compare-and-set: of those that saw one version, one wins.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from callboard.runtime import codec, subjects
from callboard.runtime import ticket as rules
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored, Write
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import (
    ConflictError,
    DecodeError,
    InvalidNameError,
    TicketError,
    TicketNotFoundError,
    TicketStateError,
)
from callboard.runtime.ticket import Readiness, State, Ticket

Kind = Literal["created", "updated", "moved", "deleted"]

# Serialises changes of dependencies: two that are harmless alone may make a circle together.
_GRAPH = "cb.event.ticket.~graph"
_TRIES = 50
_PAUSE_S = 0.01
_ALL = "cb.event.ticket.*"


class TicketEvent(Struct, frozen=True, kw_only=True):
    """One change of a ticket.

    Attributes:
        ticket: The ticket after it; of a deleted one, as it was.
        was: Its state before; "" for a new one.
        seq: Place of the change in the stream, the same for all readers.
    """

    kind: Kind
    ticket: Ticket
    was: str = ""
    seq: int = 0


class _Standing(NamedTuple):
    event: TicketEvent
    seq: int


class Tickets:
    """All tickets of a deployment. Holds nothing and needs no closing."""

    def __init__(self, bus: Bus, *, by: str, clock: Clock = SYSTEM_CLOCK) -> None:
        """Use them.

        Args:
            bus: The connection; not owned.
            by: Who makes the changes, for the history.
            clock: Time.
        """
        self._bus = bus
        self._by = by
        self._clock = clock

    # --- reading

    async def get(self, id_: str) -> Ticket:
        """Return a ticket. One round trip.

        Raises:
            TicketNotFoundError: If there is none, or it was deleted.
            InvalidNameError: If the id cannot be used.
        """
        return (await self._standing(id_)).event.ticket

    async def ls(
        self, *, state: Collection[State] = (), project: str = "", assignee: str = "", parent: str = ""
    ) -> list[Ticket]:
        """Return tickets, the most urgent first, then the oldest. One request for 500.

        Args:
            state: Only those that stand so; none for all.
            project: Only of this project.
            assignee: Only of this assignee.
            parent: Only parts of this ticket.
        """
        found = [
            ticket
            for ticket in (await self._all()).values()
            if (not state or ticket.state in state)
            and project in ("", ticket.project)
            and assignee in ("", ticket.assignee)
            and parent in ("", ticket.parent)
        ]
        return sorted(found, key=lambda ticket: (-ticket.priority, ticket.created_at, ticket.id))

    async def history(self, id_: str) -> list[TicketEvent]:
        """Return all changes of a ticket, oldest first; of a deleted one too.

        Raises:
            TicketNotFoundError: If there never was one.
            InvalidNameError: If the id cannot be used.
        """
        found = [event async for event in self._events(self._subject(id_), follow=False)]
        if not found:
            raise _unknown(id_)
        return found

    async def watch(self, id_: str = "") -> AsyncIterator[TicketEvent]:
        """Iterate over the changes of a ticket, or of all, from the first one on and for ever; none is left out.

        Changes of one ticket come in the order of their versions, to every reader.

        Raises:
            InvalidNameError: If the id cannot be used.
        """
        async for event in self._events(self._subject(id_) if id_ else _ALL, follow=True):
            yield event

    async def readiness(self, id_: str) -> Readiness:
        """Return whether the work on a ticket may begin. Two round trips.

        Raises:
            TicketNotFoundError: If there is none.
        """
        ticket = await self.get(id_)
        return rules.readiness(ticket, await self._many(ticket.dependencies))

    async def runnable(self) -> list[Ticket]:
        """Return the open, assigned and blocked tickets that wait for no other, in the order of ``ls``."""
        everyone = await self._all()
        return [
            ticket
            for ticket in await self.ls(state=tuple(rules.WAITING))
            if rules.readiness(ticket, everyone) == "runnable"
        ]

    # --- changing

    async def create(
        self,
        id_: str,
        title: str,
        *,
        parent: str = "",
        dependencies: Collection[str] = (),
        budget_usd: Decimal | str | None = None,
        **fields: Any,  # noqa: ANN401 - those of a ticket, checked
    ) -> Ticket:
        """Open a ticket.

        Args:
            id_: What it is called; once taken it is never free again.
            title: One line.
            parent: The ticket that it is a part of.
            dependencies: Ids of tickets to be finished before.
            budget_usd: What it may cost.
            **fields: Any of ``ticket.CHANGEABLE``.

        Raises:
            TicketError: If the id is taken or a field cannot be used.
            TicketNotFoundError: If the parent, or a dependency, does not exist.
            TicketCycleError: If it would depend on itself.
            InvalidNameError: If the id cannot be used.
        """
        subject = self._subject(id_)
        now = self._clock.now()
        bare = Ticket(id=id_, title=title, creator=self._by, created_at=now, parent=parent, changed_by=self._by)
        given = {"dependencies": tuple(dependencies), **fields}
        given |= {} if budget_usd is None else {"budget_usd": budget_usd}
        made = rules.updated(rules.checked(bare), given, by=self._by, now=now)
        made = msgspec.structs.replace(made, version=1)
        if parent:
            _ = await self.get(parent)
        event = TicketEvent(kind="created", ticket=made)
        try:
            await self._store(subject, event, expected=0, has_new_edges=bool(made.dependencies))
        except ConflictError as error:
            message = f"there is, or was, a ticket {id_!r}: take another id"
            raise TicketError(message) from error
        return made

    async def update(self, id_: str, *, expected: int | None = None, **changes: Any) -> Ticket:  # noqa: ANN401 - fields
        """Change fields of a ticket; its state changes by ``transition``.

        Args:
            id_: The ticket.
            expected: Change it only if it has this version; default: whatever it has.
            **changes: Any of ``ticket.CHANGEABLE``.

        Raises:
            TicketError: If a field is fixed or cannot be used.
            TicketNotFoundError: If there is no such ticket, or a dependency does not exist.
            TicketCycleError: If it would depend on itself.
            ConflictError: If it has another version.
        """

        def change(ticket: Ticket) -> Ticket:
            return rules.updated(ticket, changes, by=self._by, now=self._clock.now())

        return await self._change(id_, "updated", change, expected=expected, has_new_edges="dependencies" in changes)

    async def transition(
        self, id_: str, to: State, *, reason: str = "", assignee: str = "", expected: int | None = None
    ) -> Ticket:
        """Bring a ticket into another state; where it ends, those that depend on it and cannot begin end as well.

        Args:
            id_: The ticket.
            to: The state.
            reason: Why.
            assignee: Who does it from now on.
            expected: Move it only if it has this version; default: whatever it has.

        Raises:
            TicketStateError: If it cannot go there.
            TicketNotFoundError: If there is none.
            ConflictError: If it has another version: somebody else was first.
        """

        def change(ticket: Ticket) -> Ticket:
            return rules.moved(ticket, to, by=self._by, now=self._clock.now(), reason=reason, assignee=assignee)

        moved = await self._change(id_, "moved", change, expected=expected)
        if moved.state in ("failed", "cancelled"):
            _ = await self.settle()
        return moved

    async def cancel(self, id_: str, *, reason: str = "", expected: int | None = None) -> Ticket:
        """Cancel a ticket; what depends on it follows its ``on_failure``.

        Raises:
            TicketStateError: If it is done, failed or cancelled.
            TicketNotFoundError: If there is none.
            ConflictError: If it has another version.
        """
        return await self.transition(id_, "cancelled", reason=reason, expected=expected)

    async def delete(self, id_: str, *, expected: int | None = None) -> None:
        """Take a ticket out of all lists; its history stays. Those that depend on it see it as failed.

        Raises:
            TicketError: If somebody works on it: cancel it first.
            TicketNotFoundError: If there is none.
            ConflictError: If it has another version.
        """

        def change(ticket: Ticket) -> Ticket:
            if ticket.state in ("running", "review"):
                message = f"ticket {id_} is {ticket.state}: cancel it before you delete it"
                raise TicketError(message)
            now = self._clock.now()
            return msgspec.structs.replace(ticket, version=ticket.version + 1, changed_at=now, changed_by=self._by)

        _ = await self._change(id_, "deleted", change, expected=expected)
        _ = await self.settle()

    async def settle(self) -> list[Ticket]:
        """End the tickets that can never begin, because what they depend on has failed; return them.

        ``transition`` does it by itself; a process that died in between leaves it to the next one. Twice is harmless.
        """
        ended: list[Ticket] = []
        while True:
            everyone = await self._all()
            fates = [(ticket, rules.readiness(ticket, everyone)) for ticket in everyone.values()]
            doomed = [(ticket, fate) for ticket, fate in fates if fate in ("fail", "skip")]
            if not doomed:
                return ended
            for ticket, fate in doomed:
                with contextlib.suppress(ConflictError, TicketStateError, TicketNotFoundError):
                    # changed meanwhile: the next look sees how
                    ended.append(await self._end(ticket, "failed" if fate == "fail" else "cancelled"))

    # --- inside

    async def _end(self, ticket: Ticket, to: State) -> Ticket:
        reason = "a ticket that it depends on has failed"

        def change(found: Ticket) -> Ticket:
            return rules.moved(found, to, by=self._by, now=self._clock.now(), reason=reason)

        return await self._change(ticket.id, "moved", change, expected=ticket.version)

    async def _change(
        self,
        id_: str,
        kind: Kind,
        change: Callable[[Ticket], Ticket],
        *,
        expected: int | None,
        has_new_edges: bool = False,
    ) -> Ticket:
        for _ in range(_TRIES):
            standing = await self._standing(id_)
            before = standing.event.ticket
            if expected is not None and before.version != expected:
                raise _changed(before, expected)
            after = change(before)
            event = TicketEvent(kind=kind, ticket=after, was=before.state)
            try:
                await self._store(self._subject(id_), event, expected=standing.seq, has_new_edges=has_new_edges)
            except ConflictError:
                if expected is not None:
                    raise _changed((await self._standing(id_)).event.ticket, expected) from None
                await self._clock.sleep(_PAUSE_S)
                continue
            return after
        message = f"ticket {id_} keeps changing; try again"
        raise ConflictError(message)

    async def _store(self, subject: str, event: TicketEvent, *, expected: int, has_new_edges: bool) -> None:
        write = Write(subject, codec.encode(event), header.build(expected_seq=expected))
        if not has_new_edges:
            _ = await self._bus.store(write)
            return
        for _ in range(_TRIES):
            last = await self._bus.get_last(subjects.ACTORS, _GRAPH, from_leader=True)
            graph_seq = 0 if last is None else last.seq
            await self._check_edges(event.ticket)
            mark = Write(_GRAPH, b"{}", header.build(expected_seq=graph_seq))
            try:
                _ = await self._bus.store_batch([write, mark])
            except ConflictError:
                now = await self._bus.get_last(subjects.ACTORS, subject, from_leader=True)
                if (0 if now is None else now.seq) != expected:
                    raise
                # only other dependencies were changed: look at them again
                await self._clock.sleep(_PAUSE_S)
                continue
            return
        message = "dependencies keep changing; try again"
        raise ConflictError(message)

    async def _check_edges(self, ticket: Ticket) -> None:
        everyone = await self._all(from_leader=True)
        missing = [id_ for id_ in ticket.dependencies if id_ not in everyone and id_ != ticket.id]
        if missing:
            raise _unknown(missing[0])
        graph: Mapping[str, tuple[str, ...]] = {id_: each.dependencies for id_, each in everyone.items()}
        rules.check_cycle(ticket.id, ticket.dependencies, graph)

    async def _standing(self, id_: str) -> _Standing:
        stored = await self._bus.get_last(subjects.ACTORS, self._subject(id_), from_leader=True)
        event = None if stored is None else _event(stored)
        if stored is None or event is None or event.kind == "deleted":
            raise _unknown(id_)
        return _Standing(event, stored.seq)

    async def _all(self, *, from_leader: bool = False) -> dict[str, Ticket]:
        stored = await self._bus.get_many(subjects.ACTORS, [_ALL], from_leader=from_leader)
        events = [_event(each) for each in stored if each.subject != _GRAPH]
        return {event.ticket.id: event.ticket for event in events if event.kind != "deleted"}

    async def _many(self, ids: Collection[str]) -> dict[str, Ticket]:
        if not ids:
            return {}
        stored = await self._bus.get_many(subjects.ACTORS, [self._subject(id_) for id_ in ids])
        events = [_event(each) for each in stored]
        return {event.ticket.id: event.ticket for event in events if event.kind != "deleted"}

    async def _events(self, subject: str, *, follow: bool) -> AsyncIterator[TicketEvent]:
        async for stored in self._bus.read(subjects.ACTORS, subjects=(subject,), follow=follow):
            if stored.subject != _GRAPH:
                yield _event(stored)

    def _subject(self, id_: str) -> str:
        if id_.startswith("~"):
            message = f"ticket id {id_[:80]!r} cannot be used: those that begin with ~ belong to Callboard"
            raise InvalidNameError(message, name=id_[:80])
        return subjects.ticket_event(id_)


def _event(stored: Stored) -> TicketEvent:
    try:
        found = msgspec.json.decode(stored.data, type=TicketEvent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{stored.subject}: the change at {stored.seq} cannot be read: {error}"
        raise DecodeError(message) from error
    return msgspec.structs.replace(found, seq=stored.seq)


def _unknown(id_: str) -> TicketNotFoundError:
    return TicketNotFoundError(f"there is no ticket {id_[:80]!r}")


def _changed(ticket: Ticket, expected: int) -> ConflictError:
    who = f" by {ticket.changed_by}" if ticket.changed_by else ""
    message = (
        f"ticket {ticket.id} has version {ticket.version}, not {expected}: it was changed{who} and is {ticket.state}; "
        f"look at it again"
    )
    return ConflictError(message)
