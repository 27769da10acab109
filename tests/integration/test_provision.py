from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus, StreamConfig, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.plan import render
from callboard.runtime.config import ServerSettings, TopologySettings, WorkSettings
from callboard.runtime.embedded import EmbeddedServer
from callboard.runtime.errors import BusError, TopologyError

WANTED = topology.declared(TopologySettings(), capabilities=["search"])
DECLARED = {config.name: config for config in WANTED.streams}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    settings = ServerSettings(data_dir=tmp_path, port=0, profile="fast", max_file_bytes=8 << 30)
    async with EmbeddedServer(settings) as running:
        yield running


@pytest.fixture
async def bus(server: EmbeddedServer) -> AsyncIterator[Bus]:
    opened = await connect(server.url, name="provision-test")
    yield opened
    await opened.close()


async def provisioned(bus: Bus) -> None:
    await provision.apply(bus, await provision.plan(bus, WANTED))


async def test_after_apply_the_plan_is_empty_and_the_promises_hold(bus: Bus) -> None:
    plan = await provision.plan(bus, WANTED)
    assert [change.action for change in plan.changes] == ["create"] * 17
    await provision.apply(bus, plan)
    again = await provision.plan(bus, WANTED)
    assert again.is_empty, render(again)
    await provision.verify(bus, partitions=16)
    await provision.apply(bus, again)


async def test_applying_the_same_plan_again_is_harmless(bus: Bus) -> None:
    plan = await provision.plan(bus, WANTED)
    await provision.apply(bus, plan)
    await provision.apply(bus, plan)
    assert (await provision.plan(bus, WANTED)).is_empty


async def test_many_provision_at_once(server: EmbeddedServer, bus: Bus) -> None:
    buses = [await connect(server.url, name=f"provisioner-{number}") for number in range(6)]
    try:
        await asyncio.gather(*(provisioned(other) for other in buses))
        drifted = replace(DECLARED["CB_WORK"], max_bytes=1 << 20)
        await bus.update_stream(drifted)
        await asyncio.gather(*(provisioned(other) for other in buses))
    finally:
        for other in buses:
            await other.close()
    assert (await provision.plan(bus, WANTED)).is_empty


async def test_injected_drift_shows_and_is_mended(bus: Bus) -> None:
    await provisioned(bus)
    await bus.update_stream(replace(DECLARED["CB_WORK"], max_bytes=512 << 20, subjects=("cb.task.*",)))
    await bus.create_consumer("CB_WORK", replace(WANTED.consumers[0][1], ack_wait_s=9.0))
    await bus.create_stream(StreamConfig(name="CB_STRAY", subjects=("stray",)))
    plan = await provision.plan(bus, WANTED)
    assert render(plan).splitlines() == [
        "~ stream CB_WORK",
        "    subjects: cb.task.* -> cb.task.* cb.task.*.high cb.task.*.low",
        "    max_bytes: 512 MiB -> 1 GiB",
        "~ consumer CB_WORK/search-high",
        "    ack_wait_s: 9 s -> 4 s",
        "? stream CB_STRAY  not declared, left alone",
        "Plan: 2 to update",
    ]
    await provision.apply(bus, plan)
    after = await provision.plan(bus, WANTED)
    assert (after.is_empty, after.unknown) == (True, ("CB_STRAY",))


async def test_a_destructive_change_needs_leave_and_nothing_is_touched_without_it(bus: Bus) -> None:
    await provisioned(bus)
    await bus.delete_stream("CB_WORK")
    await bus.create_stream(StreamConfig(name="CB_WORK", subjects=("cb.task.*",), max_bytes=1 << 20))
    await bus.store(Write("cb.task.search", b"{}"))
    await bus.delete_stream("CB_DEAD")
    plan = await provision.plan(bus, WANTED)
    with pytest.raises(TopologyError, match=r"refused, because stored data would be lost:\n! stream CB_WORK") as caught:
        await provision.apply(bus, plan)
    assert "--allow-destructive" in str(caught.value)
    assert await bus.stream_info("CB_DEAD") is None
    untouched = await bus.stream_info("CB_WORK")
    assert untouched is not None
    assert untouched.messages == 1
    await provision.apply(bus, plan, allow_destructive=True)
    assert (await provision.plan(bus, WANTED)).is_empty
    replaced = await bus.stream_info("CB_WORK")
    assert replaced is not None
    assert replaced.messages == 0
    # A second provisioner with the same old plan does not delete what the first one made.
    await bus.store(Write("cb.task.search", b"{}"))
    await provision.apply(bus, plan, allow_destructive=True)
    kept = await bus.stream_info("CB_WORK")
    assert kept is not None
    assert kept.messages == 1


async def test_a_server_without_streams_is_refused_with_the_command_to_run(bus: Bus) -> None:
    with pytest.raises(TopologyError) as caught:
        await provision.verify(bus)
    assert str(caught.value).splitlines() == [
        "stream CB_WORK does not exist",
        "stream CB_LATER does not exist",
        "stream CB_LEDGER does not exist",
        "stream CB_ACTORS does not exist",
        "stream CB_POST does not exist",
        "stream OBJ_CB_BLOBS does not exist",
        "stream CB_DEAD does not exist",
        provision.REMEDY,
    ]


async def test_an_age_limit_on_actor_state_is_refused(bus: Bus) -> None:
    await provisioned(bus)
    await bus.update_stream(replace(DECLARED["CB_ACTORS"], max_age_s=3600.0))
    with pytest.raises(TopologyError, match="actor state would be deleted at a restart"):
        await provision.verify(bus)
    with pytest.raises(TopologyError, match="callboard provision"):
        await provision.verify(bus, streams=["CB_ACTORS"])
    await provision.verify(bus, streams=["CB_WORK", "CB_LEDGER"])
    await provisioned(bus)
    await provision.verify(bus)


async def test_another_partition_count_is_refused(bus: Bus) -> None:
    await provisioned(bus)
    with pytest.raises(TopologyError, match=r"files mail by .*partition\(16,1,2\).*topology.partitions is 32"):
        await provision.verify(bus, partitions=32)


async def test_the_server_refuses_the_setting_it_was_not_given(bus: Bus) -> None:
    with pytest.raises(TopologyError):
        await bus.create_stream(replace(DECLARED["CB_LATER"], discard="new"))


async def test_a_full_queue_refuses_and_due_tasks_still_fire(bus: Bus) -> None:
    small = TopologySettings(queue_max_bytes=1024)
    await provision.apply(bus, await provision.plan(bus, topology.declared(small)))
    refused = 0
    for _ in range(20):
        try:
            await bus.store(Write("cb.task.search", b"x" * 100))
        except BusError:
            refused += 1
    assert 0 < refused < 20
    headers = {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": "cb.due.search", "Cb-Task-Id": "t"}
    await bus.store(Write("cb.later.t", b"{}", headers))
    async with asyncio.timeout(5):
        while await bus.get_last("CB_LATER", "cb.due.search") is None:  # noqa: ASYNC110 - the broker has no event for us
            await asyncio.sleep(0.05)


async def test_mail_is_stored_under_its_partition(bus: Bus) -> None:
    await provisioned(bus)
    await bus.store(Write("cb.mail.greeter.ann", b"{}"))
    stored = [await bus.get_last("CB_ACTORS", f"cb.mbox.greeter.{number}.ann") for number in range(16)]
    assert len([message for message in stored if message is not None]) == 1


async def test_a_misspelled_lane_is_not_stored(bus: Bus) -> None:
    await provisioned(bus)
    with pytest.raises(Exception, match="nobody takes"):
        await bus.store(Write("cb.task.search.hihg", b"{}"))


async def test_consumers_are_created_for_named_capabilities_only(bus: Bus) -> None:
    await provision.apply(bus, await provision.plan(bus, topology.declared(TopologySettings())))
    assert await bus.consumer_info("CB_WORK", "search-normal") is None
    await provisioned(bus)
    for stream, config in WANTED.consumers:
        found = await bus.consumer_info(stream, config.name)
        assert found is not None
        assert found.config == config
    assert WANTED.consumers[-1][1] == topology.due_consumer("search", WorkSettings())
