"""Tickets in the stream: one history each, changed by one of many at a time, with dependencies among them."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from callboard.runtime.errors import (
    ConflictError,
    InvalidNameError,
    TicketCycleError,
    TicketError,
    TicketNotFoundError,
    TicketStateError,
)
from callboard.runtime.tickets import TicketEvent, Tickets
from tests.support.eventually import eventually
from tests.support.world import World


def tickets(world: World, by: str = "ann") -> Tickets:
    return Tickets(world.bus, by=by, clock=world.clock)


async def test_a_ticket_goes_its_way(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    made = await ours.create(
        "t1", "Fix the door", priority=7, criteria=["closes"], budget_usd="2.50", reviewers=["eve"]
    )
    assert (made.id, made.state, made.version, made.creator) == ("t1", "open", 1, "ann")
    assert await ours.get("t1") == made
    bob = tickets(callboard_world, "bob")
    await bob.transition("t1", "assigned", assignee="bob")
    await bob.transition("t1", "running")
    await bob.update("t1", artifacts=["door.patch"])
    await bob.transition("t1", "review")
    done = await tickets(callboard_world, "eve").transition("t1", "done", reason="closes")
    assert (done.state, done.version, done.assignee, done.artifacts) == ("done", 6, "bob", ("door.patch",))
    history = await ours.history("t1")
    assert [(event.kind, event.was, event.ticket.state, event.ticket.changed_by) for event in history] == [
        ("created", "", "open", "ann"),
        ("moved", "open", "assigned", "bob"),
        ("moved", "assigned", "running", "bob"),
        ("updated", "running", "running", "bob"),
        ("moved", "running", "review", "bob"),
        ("moved", "review", "done", "eve"),
    ]
    assert [event.ticket.version for event in history] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(TicketStateError, match="is done and cannot become running; it can go to nowhere"):
        await ours.transition("t1", "running")
    with pytest.raises(TicketError, match="not changed any more"):
        await ours.update("t1", title="x")


async def test_lists_are_by_urgency(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    await ours.create("low", "a", priority=1, project="p")
    await ours.create("high", "b", priority=9, project="p", assignee="bob")
    await ours.create("part", "c", parent="high", project="q")
    assert [each.id for each in await ours.ls()] == ["high", "part", "low"]
    assert [each.id for each in await ours.ls(project="p")] == ["high", "low"]
    assert [each.id for each in await ours.ls(assignee="bob")] == ["high"]
    assert [each.id for each in await ours.ls(parent="high")] == ["part"]
    await ours.cancel("low")
    assert [each.id for each in await ours.ls(state=["open"])] == ["high", "part"]


async def test_what_cannot_be_is_said(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    await ours.create("t", "x")
    with pytest.raises(TicketError, match="there is, or was, a ticket 't'"):
        await ours.create("t", "again")
    with pytest.raises(TicketNotFoundError, match="there is no ticket 'none'"):
        await ours.get("none")
    for call in (
        ours.create("u", "x", parent="none"),
        ours.create("u", "x", dependencies=["none"]),
        ours.update("t", dependencies=["none"]),
        ours.transition("none", "done"),
        ours.cancel("none"),
        ours.delete("none"),
        ours.history("none"),
        ours.readiness("none"),
    ):
        with pytest.raises(TicketNotFoundError, match="there is no ticket 'none'"):
            await call
    for id_ in ("~graph", "", "x" * 257):
        with pytest.raises(InvalidNameError):
            await ours.create(id_, "x")
    with pytest.raises(TicketError, match="fixed"):
        await ours.create("u", "x", state="done")
    with pytest.raises(ConflictError, match="ticket t has version 1, not 7"):
        await ours.transition("t", "cancelled", expected=7)
    await ours.create("any text: *.> ü", "x")
    assert (await ours.get("any text: *.> ü")).title == "x"


async def test_a_deleted_ticket_is_gone_and_its_history_stays(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    await ours.create("t", "x", assignee="bob")
    await ours.transition("t", "assigned")
    await ours.transition("t", "running")
    with pytest.raises(TicketError, match="cancel it before you delete it"):
        await ours.delete("t")
    await ours.cancel("t")
    await ours.delete("t")
    with pytest.raises(TicketNotFoundError):
        await ours.get("t")
    with pytest.raises(TicketNotFoundError):
        await ours.delete("t")
    assert await ours.ls() == []
    assert [event.kind for event in await ours.history("t")] == ["created", "moved", "moved", "moved", "deleted"]
    with pytest.raises(TicketError, match="or was"):
        await ours.create("t", "again")


async def test_of_fifty_writers_one_wins_each_step(callboard_world: World) -> None:
    buses = [await callboard_world.connect(f"w{n}") for n in range(5)]
    writers = [Tickets(buses[n % 5], by=f"w{n}", clock=callboard_world.clock) for n in range(50)]
    await writers[0].create("t", "x", assignee="bob")
    winners: list[str] = []
    for version, to in enumerate(("assigned", "running", "review", "running", "done"), start=1):
        calls = (each.transition("t", to, expected=version) for each in writers)  # type: ignore[arg-type] # states
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        won = [each for each in outcomes if not isinstance(each, BaseException)]
        assert len(won) == 1, Counter(type(each).__name__ for each in outcomes)
        assert all(isinstance(each, ConflictError) for each in outcomes if isinstance(each, BaseException))
        winners.append(won[0].changed_by)
    history = await writers[0].history("t")
    assert [event.ticket.version for event in history] == [1, 2, 3, 4, 5, 6]
    assert [event.ticket.changed_by for event in history][1:] == winners
    for bus in buses:
        await bus.close()


async def test_changes_without_a_version_all_come_about(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    await ours.create("t", "x")
    await asyncio.gather(*(ours.update("t", priority=n % 10) for n in range(15)))
    assert (await ours.get("t")).version == 16


async def test_every_reader_hears_the_changes_in_order(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    heard: list[list[TicketEvent]] = [[], []]

    async def listen(into: list[TicketEvent]) -> None:
        async for event in ours.watch():
            into.append(event)  # noqa: PERF401 - as they come

    tasks = [asyncio.create_task(listen(into)) for into in heard]
    ids = [f"t{n}" for n in range(10)]
    await asyncio.gather(*(ours.create(id_, "x") for id_ in ids))
    await asyncio.gather(*(ours.update(id_, priority=n) for id_ in ids for n in range(5)))
    await eventually(lambda: all(len(each) == 60 for each in heard), within_s=20)
    assert [event.seq for event in heard[0]] == [event.seq for event in heard[1]]
    for id_ in ids:
        assert [event.ticket.version for event in heard[0] if event.ticket.id == id_] == [1, 2, 3, 4, 5, 6]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def finish(ours: Tickets, id_: str, to: str = "done") -> None:
    await ours.transition(id_, "assigned", assignee="bob")
    await ours.transition(id_, "running")
    await ours.transition(id_, to)  # type: ignore[arg-type] # states as text


async def test_a_diamond_runs_from_its_top(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    await ours.create("a", "top")
    await ours.create("b", "left", dependencies=["a"])
    await ours.create("c", "right", dependencies=["a"])
    await ours.create("d", "end", dependencies=["b", "c"])
    assert [each.id for each in await ours.runnable()] == ["a"]
    await finish(ours, "a")
    assert [each.id for each in await ours.runnable()] == ["b", "c"]
    await finish(ours, "b")
    assert (await ours.readiness("d"), await ours.readiness("c")) == ("waits", "runnable")
    await finish(ours, "c")
    assert [each.id for each in await ours.runnable()] == ["d"]


async def test_a_failure_goes_down_as_each_ticket_says(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    await ours.create("a", "top")
    await ours.create("fails", "x", dependencies=["a"])
    await ours.create("skips", "x", dependencies=["a"], on_failure="skip")
    await ours.create("goes on", "x", dependencies=["a"], on_failure="continue")
    await ours.create("below", "x", dependencies=["fails"], on_failure="skip")
    await finish(ours, "a", "failed")
    states = {each.id: each.state for each in await ours.ls()}
    assert states == {"a": "failed", "fails": "failed", "skips": "cancelled", "goes on": "open", "below": "cancelled"}
    assert (await ours.get("below")).reason == "a ticket that it depends on has failed"
    assert [each.id for each in await ours.runnable()] == ["goes on"]
    assert await ours.settle() == []


async def test_circles_are_refused_also_when_two_make_one_together(callboard_world: World) -> None:
    ours = tickets(callboard_world)
    for id_ in "abc":
        await ours.create(id_, "x")
    await ours.update("a", dependencies=["b"])
    await ours.update("b", dependencies=["c"])
    with pytest.raises(TicketCycleError, match="c -> a -> b -> c"):
        await ours.update("c", dependencies=["a"])
    with pytest.raises(TicketCycleError):
        await ours.create("self", "x", dependencies=["self"])
    for n in range(8):
        left, right = f"l{n}", f"r{n}"
        await ours.create(left, "x")
        await ours.create(right, "x")
        outcomes = await asyncio.gather(
            ours.update(left, dependencies=[right]), ours.update(right, dependencies=[left]), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in outcomes) == ["Ticket", "TicketCycleError"]
