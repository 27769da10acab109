"""A ticket: a piece of work that people and agents follow from its opening to its end. The record, and its rules; pure.

A ticket is what is to be done and by whom; a task is one request to a worker pool. Working on a ticket may take many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.errors import TicketCycleError, TicketError, TicketStateError

State = Literal["open", "assigned", "running", "review", "blocked", "interrupted", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)

MOVES: Mapping[State, frozenset[State]] = {
    "open": frozenset({"assigned", "blocked", "failed", "cancelled"}),
    "assigned": frozenset({"open", "running", "blocked", "interrupted", "failed", "cancelled"}),
    "running": frozenset({"review", "blocked", "interrupted", "done", "failed", "cancelled"}),
    "review": frozenset({"running", "blocked", "done", "failed", "cancelled"}),
    "blocked": frozenset({"open", "assigned", "running", "failed", "cancelled"}),
    "interrupted": frozenset({"open", "assigned", "running", "failed", "cancelled"}),
    "failed": frozenset({"open", "assigned"}),
    "done": frozenset(),
    "cancelled": frozenset(),
}
"""Where a ticket may go from each state. What is done or cancelled stays so; what has failed may be tried again."""

ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})
WAITING: frozenset[State] = frozenset({"open", "assigned", "blocked"})

OnFailure = Literal["fail", "skip", "continue"]
Readiness = Literal["waits", "runnable", "fail", "skip", "begun"]


class Ticket(Struct, frozen=True, kw_only=True):
    """One ticket as it stands.

    Attributes:
        id: Any text that can be a key; given by its creator.
        title: One line.
        creator: Who opened it, a person or an address; fixed.
        created_at: When; fixed.
        version: Number of its changes, 1 when it was opened.
        type: What kind of work, as ``bug``.
        priority: 0 to 10; higher is sooner.
        project: What it belongs to.
        assignee: Who does it.
        reviewers: Who looks at the outcome.
        dependencies: Ids of tickets that must be finished before.
        on_failure: What becomes of it when one of those fails: ``fail`` too, ``skip`` it (it is cancelled), or
            ``continue`` as if that were done.
        artifacts: Names of what came of it: files, objects, links.
        criteria: When it counts as done.
        complexity: How hard it is thought to be, 0 to 10.
        budget_usd: What it may cost.
        deadline: When it shall be done.
        retries: How often it may be tried again.
        parent: Id of the ticket that this one is a part of; fixed.
        chain: Who handed it to whom, the first one first.
        state: Where it stands; ``MOVES`` says where it can go.
        reason: Why it stands there.
        changed_at: When it was last changed.
        changed_by: By whom.
    """

    id: str
    title: str
    creator: str
    created_at: datetime
    version: int = 1
    type: str = "work"
    priority: int = 5
    project: str = ""
    assignee: str = ""
    reviewers: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    on_failure: OnFailure = "fail"
    artifacts: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    complexity: int = 0
    budget_usd: Decimal | None = None
    deadline: datetime | None = None
    retries: int = 0
    parent: str = ""
    chain: tuple[str, ...] = ()
    state: State = "open"
    reason: str = ""
    changed_at: datetime | None = None
    changed_by: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing is being done about it any more; a failed one may be opened again."""
        return self.state in ENDED


CHANGEABLE = frozenset(
    {
        "title",
        "type",
        "priority",
        "project",
        "assignee",
        "reviewers",
        "dependencies",
        "on_failure",
        "artifacts",
        "criteria",
        "complexity",
        "budget_usd",
        "deadline",
        "retries",
        "chain",
    }
)
"""What ``update`` takes; the state has its own word, and the rest is fixed."""

_RANGES = {"priority": (0, 10), "complexity": (0, 10), "retries": (0, 1000)}
_MAX_TITLE = 500


def checked(ticket: Ticket) -> Ticket:
    """Return a ticket whose fields make sense.

    Raises:
        TicketError: Naming the field and what it takes.
    """
    if not ticket.title.strip() or len(ticket.title) > _MAX_TITLE:
        message = f"a ticket needs a title of 1 to {_MAX_TITLE} characters"
        raise TicketError(message)
    if not ticket.creator:
        message = "a ticket needs its creator: a person or an address"
        raise TicketError(message)
    for name, (least, most) in _RANGES.items():
        if not least <= getattr(ticket, name) <= most:
            message = f"{name} is {getattr(ticket, name)}, take {least} to {most}"
            raise TicketError(message)
    if ticket.deadline is not None and ticket.deadline.tzinfo is None:
        message = "a deadline takes a time with zone, this one has none"
        raise TicketError(message)
    if ticket.budget_usd is not None and not (ticket.budget_usd.is_finite() and ticket.budget_usd >= 0):
        message = f"budget_usd is {ticket.budget_usd}, take 0 or more"
        raise TicketError(message)
    return ticket


def moved(ticket: Ticket, to: State, *, by: str, now: datetime, reason: str = "", assignee: str = "") -> Ticket:
    """Return the ticket in another state.

    Raises:
        TicketStateError: If it cannot go there from where it stands, or nobody is assigned.
    """
    if to not in STATES:
        message = f"state {to!r} does not exist; there are {', '.join(STATES)}"
        raise TicketStateError(message)
    if to not in MOVES[ticket.state]:
        ways = ", ".join(sorted(MOVES[ticket.state])) or "nowhere: it has ended"
        message = f"ticket {ticket.id} is {ticket.state} and cannot become {to}; it can go to {ways}"
        raise TicketStateError(message)
    who = assignee or ticket.assignee
    if to in ("assigned", "running") and not who:
        message = f"ticket {ticket.id} cannot become {to}: nobody is assigned; name an assignee"
        raise TicketStateError(message)
    return replace(
        ticket,
        state=to,
        reason=reason,
        assignee="" if to == "open" else who,
        version=ticket.version + 1,
        changed_at=now,
        changed_by=by,
    )


def updated(ticket: Ticket, changes: Mapping[str, Any], *, by: str, now: datetime) -> Ticket:
    """Return the ticket with other fields.

    Raises:
        TicketError: If a field is fixed, unknown, or takes another kind of value; or the ticket is done or cancelled.
    """
    if not changes:
        message = f"nothing to change: name one of {', '.join(sorted(CHANGEABLE))}"
        raise TicketError(message)
    wrong = sorted(set(changes) - CHANGEABLE)
    if wrong:
        known = set(Ticket.__struct_fields__)
        what = " and ".join(f"{name} is {'fixed' if name in known else 'no field of a ticket'}" for name in wrong)
        hint = "; change the state with transition()" if {"state", "reason"} & set(wrong) else ""
        message = f"{what}; what can be changed: {', '.join(sorted(CHANGEABLE))}{hint}"
        raise TicketError(message)
    if not MOVES[ticket.state]:
        message = f"ticket {ticket.id} is {ticket.state} and is not changed any more"
        raise TicketError(message)
    plain = msgspec.to_builtins(ticket) | msgspec.to_builtins(dict(changes))
    try:
        found = msgspec.convert(plain, Ticket)
    except msgspec.ValidationError as error:
        message = f"ticket {ticket.id} cannot be changed so: {error}"
        raise TicketError(message) from error
    return checked(replace(found, version=ticket.version + 1, changed_at=now, changed_by=by))


def readiness(ticket: Ticket, others: Mapping[str, Ticket]) -> Readiness:
    """Return whether a ticket's work may begin, or what is to become of it, by what it depends on.

    Args:
        ticket: The ticket.
        others: Those that it depends on, by id; one that is missing has failed.
    """
    if ticket.state not in WAITING:
        return "begun"
    waits = False
    for id_ in ticket.dependencies:
        other = others.get(id_)
        if other is not None and other.state == "done":
            continue
        if other is not None and not other.has_ended:
            waits = True
        elif ticket.on_failure != "continue":
            return ticket.on_failure
    return "waits" if waits else "runnable"


def check_cycle(id_: str, dependencies: Sequence[str], graph: Mapping[str, Iterable[str]]) -> None:
    """See that a ticket with these dependencies does not come to depend on itself.

    Args:
        id_: The ticket.
        dependencies: What it shall depend on.
        graph: What the others depend on, by id.

    Raises:
        TicketCycleError: Naming the way round.
    """
    came_from: dict[str, str] = {}
    todo = [(each, id_) for each in dependencies]
    while todo:
        here, before = todo.pop()
        if here in came_from:
            continue
        came_from[here] = before
        if here == id_:
            way = [id_]
            while (before := came_from[way[-1]]) != id_:
                way.append(before)
            path = " -> ".join([id_, *reversed(way[1:]), id_])
            message = f"ticket {id_} would depend on itself: {path}; leave one of these dependencies out"
            raise TicketCycleError(message)
        todo += [(each, here) for each in graph.get(here, ())]
