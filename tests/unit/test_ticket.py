"""The rules of tickets: where they go, what of them changes, when their work may begin."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace

from callboard.runtime import ticket as rules
from callboard.runtime.errors import TicketCycleError, TicketError, TicketStateError
from callboard.runtime.ticket import MOVES, STATES, State, Ticket

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)
TICKET = Ticket(id="t", title="Do it", creator="ann", created_at=NOW, assignee="bob")

# rows: from; columns: open assigned running review blocked interrupted done failed cancelled
TABLE = {
    "open": ".x..x..xx",
    "assigned": "x.x.xx.xx",
    "running": "...xxxxxx",
    "review": "..x.x.xxx",
    "blocked": "xxx....xx",
    "interrupted": "xxx....xx",
    "done": ".........",
    "failed": "xx.......",
    "cancelled": ".........",
}


def test_there_are_nine_states_and_a_row_for_each() -> None:
    assert len(STATES) == 9
    assert set(TABLE) == set(STATES) == set(MOVES)


@pytest.mark.parametrize(("before", "to"), list(product(STATES, STATES)))
def test_every_move_of_the_nine_by_nine(before: State, to: State) -> None:
    ticket = replace(TICKET, state=before, version=4)
    if TABLE[before][STATES.index(to)] == ".":
        with pytest.raises(TicketStateError, match=f"ticket t is {before} and cannot become {to}; it can go to"):
            rules.moved(ticket, to, by="eve", now=LATER)
        return
    found = rules.moved(ticket, to, by="eve", now=LATER, reason="because")
    assert (found.state, found.version, found.reason) == (to, 5, "because")
    assert (found.changed_by, found.changed_at, found.created_at, found.creator) == ("eve", LATER, NOW, "ann")


def test_every_state_can_be_reached_and_ends_somewhere() -> None:
    seen, todo = {"open"}, ["open"]
    while todo:
        for to in MOVES[todo.pop()]:  # type: ignore[index] # states are text here
            if to not in seen:
                seen.add(to)
                todo.append(to)
    assert seen == set(STATES)


def test_work_needs_somebody_who_does_it() -> None:
    nobody = replace(TICKET, assignee="")
    with pytest.raises(TicketStateError, match="nobody is assigned"):
        rules.moved(nobody, "assigned", by="eve", now=NOW)
    assert rules.moved(nobody, "assigned", by="eve", now=NOW, assignee="bob").assignee == "bob"
    assert rules.moved(replace(TICKET, state="assigned"), "open", by="eve", now=NOW).assignee == ""
    with pytest.raises(TicketStateError, match="there are open, assigned"):
        rules.moved(TICKET, "odd", by="eve", now=NOW)  # type: ignore[arg-type] # the mistake under test


@pytest.mark.parametrize("name", ["id", "creator", "created_at", "version", "parent", "changed_at", "changed_by"])
def test_fixed_fields_are_refused(name: str) -> None:
    with pytest.raises(TicketError, match=f"{name} is fixed; what can be changed: artifacts"):
        rules.updated(TICKET, {name: "x", "title": "y"}, by="eve", now=NOW)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "nothing to change"),
        ({"state": "done"}, r"state is fixed.*transition\(\)"),
        ({"colour": "red"}, "colour is no field of a ticket"),
        ({"title": " "}, "1 to 500 characters"),
        ({"title": 7}, "cannot be changed so"),
        ({"priority": 11}, "priority is 11, take 0 to 10"),
        ({"complexity": -1}, "complexity is -1"),
        ({"retries": 1001}, "retries"),
        ({"on_failure": "panic"}, "cannot be changed so"),
        ({"dependencies": "abc"}, "cannot be changed so"),
        ({"deadline": datetime(2026, 1, 1)}, "with zone"),  # noqa: DTZ001 - the mistake under test
        ({"budget_usd": "-1"}, "take 0 or more"),
        ({"budget_usd": "NaN"}, "budget_usd"),
        ({"budget_usd": "much"}, "cannot be changed so"),
    ],
)
def test_changes_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TicketError, match=words):
        rules.updated(TICKET, changes, by="eve", now=NOW)


def test_a_change_keeps_the_rest() -> None:
    changes = {"title": "New", "priority": 9, "reviewers": ["eve"], "budget_usd": "1.10", "deadline": LATER}
    found = rules.updated(TICKET, changes, by="eve", now=LATER)
    assert found == replace(
        TICKET,
        title="New",
        priority=9,
        reviewers=("eve",),
        budget_usd=Decimal("1.10"),
        deadline=LATER,
        version=2,
        changed_at=LATER,
        changed_by="eve",
    )
    with pytest.raises(TicketError, match="is done and is not changed any more"):
        rules.updated(replace(TICKET, state="done"), {"title": "x"}, by="eve", now=NOW)


# --- dependencies


def at(state: State, *, id_: str = "a") -> Ticket:
    return replace(TICKET, id=id_, state=state)


@pytest.mark.parametrize("on_failure", ["fail", "skip", "continue"])
@pytest.mark.parametrize("state", STATES)
def test_one_dependency(state: State, on_failure: Any) -> None:  # noqa: ANN401 - a literal
    ticket = replace(TICKET, dependencies=("a",), on_failure=on_failure)
    wanted = {"done": "runnable", "failed": on_failure, "cancelled": on_failure}.get(state, "waits")
    wanted = "runnable" if wanted == "continue" else wanted
    assert rules.readiness(ticket, {"a": at(state)}) == wanted


def test_a_diamond() -> None:
    last = replace(TICKET, id="d", dependencies=("b", "c"))
    pairs: dict[tuple[State, State], str] = {
        ("running", "running"): "waits",
        ("done", "running"): "waits",
        ("done", "done"): "runnable",
        ("failed", "running"): "fail",
        ("running", "cancelled"): "fail",
    }
    for (left, right), wanted in pairs.items():
        assert rules.readiness(last, {"b": at(left, id_="b"), "c": at(right, id_="c")}) == wanted
    patient = replace(last, on_failure="continue")
    assert rules.readiness(patient, {"b": at("failed"), "c": at("running")}) == "waits"
    assert rules.readiness(patient, {"b": at("failed"), "c": at("done")}) == "runnable"
    assert rules.readiness(last, {"b": at("done")}) == "fail"  # c is missing


@pytest.mark.parametrize("state", ["running", "review", "interrupted", "done", "failed", "cancelled"])
def test_what_was_begun_waits_for_nothing(state: State) -> None:
    assert rules.readiness(replace(TICKET, state=state, dependencies=("a",)), {"a": at("failed")}) == "begun"


def test_circles_are_refused_and_named() -> None:
    graph = {"a": ["b"], "b": ["c"], "c": [], "x": ["y"], "y": ["x"]}
    rules.check_cycle("c", ["x"], graph)  # an old circle elsewhere is not ours, and does not keep us for ever
    rules.check_cycle("new", ["a", "b", "c"], graph)
    with pytest.raises(TicketCycleError, match="c -> a -> b -> c; leave one"):
        rules.check_cycle("c", ["a"], graph)
    with pytest.raises(TicketCycleError, match="a -> a"):
        rules.check_cycle("a", ["a"], graph)
    diamond = {"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}
    rules.check_cycle("e", ["d", "a"], diamond)
    with pytest.raises(TicketCycleError):
        rules.check_cycle("a", ["d"], diamond)


def test_a_long_chain_is_no_recursion() -> None:
    chain = {str(n): [str(n + 1)] for n in range(5000)}
    rules.check_cycle("x", ["0"], chain)
    with pytest.raises(TicketCycleError):
        rules.check_cycle("5000", ["0"], chain)
