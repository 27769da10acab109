"""Scheduled tasks that have fallen due and wait: they are seen, and cancelled without harm to anybody else."""

from __future__ import annotations

import pytest

from callboard.runtime import lookup, subjects
from callboard.runtime.bus import header
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.errors import InvalidNameError, TaskNotFoundError
from callboard.runtime.lookup import Whereabouts
from tests.support.eventually import eventually
from tests.support.world import World


async def cancel(world: World, task_id: str) -> None:
    """Cancel as the command line does."""
    found = await lookup.find(world.bus, task_id)
    await Client(world.bus).cancel(found.capability, task_id, place=found.place)


async def due(world: World, count: int) -> None:
    async def are_due() -> bool:
        return sum((await world.bus.subject_counts(subjects.LATER, "cb.due.*")).values()) >= count

    await eventually(are_due, within_s=6)


async def waits(world: World, task_id: str) -> Whereabouts | None:
    try:
        return await lookup.find(world.bus, task_id)
    except TaskNotFoundError:
        return None


async def test_cancelling_a_task_that_has_fallen_due_takes_no_other_task_with_it(callboard_world: World) -> None:
    world = callboard_world
    # as many as make sure that the number of the firing is one of theirs, too
    others = [(await world.client.submit("ghost", number)).id for number in range(20)]
    await world.client.submit("ghost", 7, id="ghost/late", delay_s=1)
    await due(world, 1)
    await cancel(world, "ghost/late")
    assert await world.waiting() == len(others)
    assert await world.waiting(subjects.LATER) == 0
    found = await world.client.record("ghost", "ghost/late")
    assert found is not None
    assert found.status == "cancelled"


async def test_a_firing_that_waits_is_shown_counted_and_cancelled_by_its_number(callboard_world: World) -> None:
    world = callboard_world
    runs: list[int] = []

    @capability
    async def ghost(number: int) -> None:
        runs.append(number)

    await world.client.schedule("heart", "ghost", 1, rule="@every 1s")
    await due(world, 1)
    await world.client.unschedule("heart")
    (stored,) = [s async for s in world.bus.read(subjects.LATER, subjects=("cb.due.ghost",))][:1]
    task_id = f"~d{stored.seq}"
    found = await waits(world, task_id)
    assert found is not None
    assert (found.capability, found.state, found.stream) == ("ghost", "waiting", subjects.LATER)
    (queue,) = [queue for queue in await lookup.queues(world.bus) if queue.capability == "ghost"]
    assert (queue.waiting, queue.has_consumer) == (await world.waiting(subjects.LATER), False)
    left = await world.waiting(subjects.LATER) - 1
    await cancel(world, task_id)
    assert await world.waiting(subjects.LATER) == left
    await world.start(ghost)
    await eventually(lambda: len(runs) == left)


@pytest.mark.parametrize("task_id", ["~99999999999999999999999", "~²", "~d99999999999999999999999", "~d²"])
async def test_a_number_that_no_message_can_have_is_not_found(callboard_world: World, task_id: str) -> None:
    with pytest.raises(TaskNotFoundError):
        await lookup.find(callboard_world.bus, task_id)


@pytest.mark.parametrize("task_id", ["~17", "~d17"])
async def test_the_name_of_a_message_is_refused_as_an_id(callboard_world: World, task_id: str) -> None:
    world = callboard_world
    with pytest.raises(InvalidNameError, match="sequence"):
        await world.client.submit("ghost", 1, id=task_id)
    with pytest.raises(InvalidNameError, match="sequence"):
        await world.client.submit("ghost", 1, id=task_id, delay_s=1)
    with pytest.raises(InvalidNameError, match="sequence"):
        await world.client.submit("ghost", 1, headers={header.MSG_ID: task_id})
