"""Tasks that ask for labels run on workers that bear them and nowhere else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine

import msgspec
import pytest

from callboard.runtime import backlog, label_pools, roster
from callboard.runtime.bus.base import Write
from callboard.runtime.capability import Capability, capability
from callboard.runtime.context import TaskContext
from callboard.runtime.control import Order
from callboard.runtime.errors import InvalidNameError
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

GPU = msgspec.structs.replace(QUICK, labels={"gpu": "yes", "zone": "a"})


def _embed(ran: dict[int, str]) -> Capability[[int, TaskContext], Coroutine[None, None, int]]:
    @capability("embed")
    async def embed(number: int, task: TaskContext) -> int:
        assert number not in ran
        ran[number] = task.worker
        return number

    return embed


async def test_a_task_runs_where_its_labels_are_and_others_never_see_it(callboard_world: World) -> None:
    world, ran = callboard_world, dict[int, str]()
    embed = _embed(ran)
    fits = await world.start(embed, options=GPU, worker_id="fits")
    other = await world.start(embed, options=msgspec.structs.replace(QUICK, labels={"gpu": "no"}), worker_id="other")
    plain = await world.start(embed, worker_id="plain")
    await world.client.submit_many(embed, list(range(40)), labels={"gpu": "yes"})
    await world.client.submit_many(embed, list(range(40, 80)))
    handle = await world.client.submit(embed, 80, labels={"zone": "a", "gpu": "yes"}, notify=True)
    assert handle.capability == "embed--gpu_yes--zone_a"
    assert await world.client.wait(handle, timeout_s=20) == 80
    await world.all_recorded("embed--gpu_yes", 40)
    await world.all_recorded("embed", 40)
    assert {ran[number] for number in (*range(40), 80)} == {"fits"}
    assert set(fits.worker.pools) == {"embed", "embed--gpu_yes", "embed--gpu_yes--zone_a"}
    for away in (other, plain):
        assert set(away.worker.pools) == {"embed"}
        # not one of them was so much as handed out to it
        assert away.worker.pools["embed"].stats.claimed <= 40
        assert away.worker.pools["embed"].stats.endings["returned"] == 0


async def test_a_plain_publish_asks_for_labels_by_its_subject(callboard_world: World) -> None:
    world, ran = callboard_world, dict[int, str]()
    await world.bus.store(Write("cb.task.embed--gpu_yes", b"1"))
    await world.start(_embed(ran), worker_id="plain")
    # the one that fits finds it at its start
    await world.start(_embed(ran), options=GPU, worker_id="fits")
    await world.all_recorded("embed--gpu_yes", 1)
    assert ran == {1: "fits"}


async def test_later_tasks_retries_and_dead_letters_keep_their_labels(callboard_world: World) -> None:
    world = callboard_world
    ran: Counter[str] = Counter()

    @capability("embed", retry=RetryPolicy(attempts=2, base_s=0.01))
    async def embed(number: int, task: TaskContext) -> None:
        ran[task.worker] += 1
        message = "no"
        raise ValueError(message)

    await world.start(embed, options=GPU, worker_id="fits")
    await world.start(embed, worker_id="plain")
    await world.client.submit(embed, 1, labels={"gpu": "yes"}, delay_s=1)
    await eventually(lambda: _is_dead(world, "embed--gpu_yes"), within_s=20)
    assert ran == {"fits": 2}


async def _is_dead(world: World, name: str) -> bool:
    return len(await world.dead(name)) == 1


async def test_a_capability_and_its_pools_by_label_share_their_slots_and_none_starves(callboard_world: World) -> None:
    world = callboard_world
    running = most = 0

    @capability("embed", concurrency=2)
    async def embed(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return number

    worker = await world.start(embed, options=GPU)
    await world.client.submit_many(embed, list(range(150)))
    await world.client.submit_many(embed, list(range(50)), labels={"gpu": "yes"})
    await world.client.submit(embed, 1, labels={"gpu": "yes"})
    await world.all_recorded("embed--gpu_yes", 51)
    await world.all_recorded("embed", 150)
    assert most == 2
    pools = worker.worker.pools
    worker.worker._pool_set.resize(Order(op="slots", capability="embed", slots=5))  # type: ignore[union-attr]
    assert {pool.slots for pool in pools.values()} == {5}
    await world.nothing_held()


async def test_a_capability_may_ask_for_labels_itself(callboard_world: World) -> None:
    world = callboard_world

    @capability("embed", labels={"gpu": "yes"})
    async def embed(number: int) -> int:
        return number

    @capability
    async def other(number: int) -> int:
        return number

    assert set((await world.start(embed, other)).worker.pools) == {"other"}
    handle = await world.client.submit("embed", 1, notify=True)
    assert await world.client.call(other, 2, timeout_s=20) == 2
    assert await world.client.record("embed", handle.id) is None
    await world.start(embed, other, options=GPU)
    assert await world.client.wait(handle, timeout_s=20) == 1


async def test_tasks_that_nobody_fits_are_counted_until_somebody_does(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_pools, "PATIENCE_S", 0.0)
    monkeypatch.setattr(label_pools, "LOOK_S", 0.3)
    world, ran = callboard_world, dict[int, str]()
    plain = await world.start(_embed(ran))
    await world.client.submit("embed", 1, labels={"gpu": "yes"})
    pools = plain.worker.label_pools
    assert pools is not None
    await eventually(lambda: pools.unmatched == {"embed--gpu_yes": 1}, within_s=20)
    heard = await roster.heard(world.bus)
    assert heard.serving("embed")
    assert not heard.serving("embed--gpu_yes")
    await world.start(_embed(ran), options=GPU)
    await eventually(lambda: pools.unmatched == {}, within_s=20)
    await world.all_recorded("embed--gpu_yes", 1)
    (work,) = await backlog.read(world.bus, ["embed--gpu_yes"])
    await eventually(lambda: ran, within_s=20)
    assert work.capability == "embed--gpu_yes"
    with pytest.raises(InvalidNameError):
        await world.client.submit("embed", 1, labels={"GPU": "yes"})


async def test_pausing_a_capability_pauses_its_pools_by_label(callboard_world: World) -> None:
    world, ran = callboard_world, dict[int, str]()
    embed = _embed(ran)
    fits = await world.start(embed, options=GPU, worker_id="fits")
    await world.client.submit(embed, 1, labels={"gpu": "yes"})
    await world.all_recorded("embed--gpu_yes", 1)
    await world.client.pause("embed")
    pools = fits.worker.pools
    await eventually(lambda: all(pool.is_paused for pool in pools.values()))
    # one that is opened under the pause, here and in a worker that starts under it
    await world.client.submit(embed, 2, labels={"gpu": "yes"})
    await world.client.submit(embed, 3, labels={"zone": "a"})
    await eventually(lambda: "embed--zone_a" in pools, within_s=20)
    late = await world.start(embed, options=GPU, worker_id="late")
    assert set(late.worker.pools) == set(pools)
    assert all(pool.is_paused for running in (fits, late) for pool in running.worker.pools.values())
    assert ran == {1: "fits"}
    (work,) = await backlog.read(world.bus, ["embed--gpu_yes"])
    # a pull that was under way when the pause came may have been given it
    assert (work.is_paused, work.pending + work.in_flight, work.load) == (True, 1, 0)
    await world.client.pause("embed--zone_a")
    await world.client.resume("embed")
    await eventually(lambda: 2 in ran, within_s=20)
    assert all(running.worker.pools["embed--zone_a"].is_paused for running in (fits, late))
    assert 3 not in ran
    await world.client.resume("embed--zone_a")
    await world.all_recorded("embed--zone_a", 1)
