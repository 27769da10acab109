"""What the doctor, the metrics and the readiness of a worker say of its actors."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import actor_doctor, metrics, roster, subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import on
from callboard.runtime.beat import Beat, decode_beat
from callboard.runtime.bus.base import Message, Write
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import TopologyError
from callboard.runtime.finding import Finding
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.view import view_of
from tests.support.eventually import eventually
from tests.support.world import QUICK, Running, World, open_world


class Say(Struct):
    text: str


class Parrot(Actor, name="parrot", retry=RetryPolicy(attempts=1), poison_limit=1):
    @on
    async def say(self, m: Say) -> str:
        if m.text == "fail":
            raise ValueError(m.text)
        return await self.step("repeat", str.upper, m.text)


class Echo(Actor, name="echo"):
    @on
    async def say(self, m: Say) -> str:
        return m.text


async def findings(world: World, *running: Running, clock: Any = SYSTEM_CLOCK) -> dict[str, Finding]:  # noqa: ANN401
    return {each.check: each async for each in actor_doctor.examine(world.bus, beats(*running), clock)}


def beats(*running: Running) -> list[Beat]:
    return [decode_beat(each.worker.beat()) for each in running]


async def owning(world: World, **options: Any) -> Running:  # noqa: ANN401
    running = await world.start(Parrot, **options)
    await eventually(lambda: len(running.worker.host.partitions) == 16)  # type: ignore[union-attr]
    return running


async def test_nothing_is_wrong_with_a_worker_that_works(callboard_world: World) -> None:
    running = await owning(callboard_world)
    assert await callboard_world.client.actor("parrot/ann").ask(Say("hi")) == "HI"
    found = await findings(callboard_world, running)
    assert {each.level for each in found.values()} == {"ok"}, found
    assert set(found) == {"actor_readers", "actor_owners", "actor_hosts", "actor_lag", "actors"}
    assert running.worker.ready_problem() is None


async def test_partitions_without_an_owner_are_named(callboard_world: World) -> None:
    running = await owning(callboard_world)
    (beat,) = beats(running)
    load = replace(beat.actors[0], partitions=[n for n in beat.actors[0].partitions if n not in (3, 7)])
    checks = actor_doctor.examine(callboard_world.bus, [replace(beat, actors=[load])], SYSTEM_CLOCK)
    (owners,) = [each async for each in checks if each.check == "actor_owners"]
    assert (owners.level, "parrot 3, 7" in owners.text) == ("warning", True)


async def test_mail_that_nobody_hosts_is_a_problem(callboard_world: World) -> None:
    running = await owning(callboard_world)
    await running.stop()
    assert (await findings(callboard_world))["actor_hosts"].level == "ok"
    await callboard_world.client.actor("parrot/ann").tell(Say("hi"))
    found = (await findings(callboard_world))["actor_hosts"]
    assert (found.level, "parrot" in found.text) == ("problem", True)


async def test_an_owner_that_does_not_read_is_seen(callboard_world: World) -> None:
    running = await owning(callboard_world)
    seen = beats(running)
    await running.stop()
    await callboard_world.client.actor("parrot/ann").tell(Say("hi"))

    class Later:
        def now(self) -> Any:  # noqa: ANN401
            return SYSTEM_CLOCK.now() + timedelta(seconds=60)

    checks = actor_doctor.examine(callboard_world.bus, seen, Later())  # type: ignore[arg-type]
    (lag,) = [each async for each in checks if each.check == "actor_lag"]
    assert (lag.level, "parrot in 1 partition" in lag.text) == ("warning", True)


async def test_failed_and_paused_actors_are_counted(callboard_world: World) -> None:
    running = await owning(callboard_world)
    await callboard_world.client.actor("parrot/ann").tell(Say("hi"))
    await inspection.order(callboard_world.bus, Address("parrot", "bob"), "pause", reason="lunch")
    found = (await findings(callboard_world, running))["actors"]
    assert (found.level, "1 paused" in found.text, "lunch" in found.text) == ("note", True, True)
    await callboard_world.client.actor("parrot/eve").tell(Say("fail"))

    async def is_failed() -> bool:
        return (await findings(callboard_world, running))["actors"].level == "warning"

    await eventually(is_failed)
    assert "`callboard agents restart parrot/eve`" in (await findings(callboard_world, running))["actors"].fix


async def test_a_record_that_cannot_be_read_is_told_and_hides_no_other(callboard_world: World) -> None:
    running = await owning(callboard_world)
    await inspection.order(callboard_world.bus, Address("parrot", "bob"), "pause", reason="lunch")
    await callboard_world.bus.store(Write(subjects.state("parrot", "ann"), b"?"))
    found = (await findings(callboard_world, running))["actors"]
    assert found.level == "warning"
    assert "2 actors, of those 1 undecodable, 1 paused; parrot/ann: this is not a state record" in found.text


async def test_a_stream_with_nearly_all_the_readers_it_takes_is_seen(tmp_path: Path) -> None:
    settings = TopologySettings(partitions=26, actor_max_consumers=64)
    async with open_world("jetstream", tmp_path / "server", settings=settings) as world:
        options = replace(QUICK, actor_rules=replace(QUICK.actor_rules, partitions=26))
        running = await world.start(Parrot, options=options)
        assert (await findings(world, running))["actor_readers"].level == "ok"
        await world.start(Echo, options=options)

        async def is_near() -> bool:
            return (await findings(world, running))["actor_readers"].level == "warning"

        await eventually(is_near)


async def test_a_scrape_counts_turns_and_steps(callboard_world: World) -> None:
    running = await owning(callboard_world)
    for text in ("a", "b"):
        await callboard_world.client.actor("parrot/ann").ask(Say(text))
    await callboard_world.client.actor("parrot/eve").tell(Say("fail"))
    stats = running.worker.host.services.stats["parrot"]  # type: ignore[union-attr]
    await eventually(lambda: stats.failed)
    (counted,) = view_of(running.worker).actors
    assert (counted.kind, counted.partitions, counted.active, counted.running) == ("parrot", 16, 2, 0)
    assert (stats.started, stats.committed, stats.failed, stats.steps_run) == (3, 2, 1, 2)
    text = metrics.render(lambda: view_of(running.worker)).decode()
    label = f'{{type="parrot",worker="{running.worker.id}"}}'
    assert f"callboard_turns_committed_total{label} 2.0" in text
    assert f"callboard_actor_partitions{label} 16.0" in text


async def test_a_worker_whose_partitions_cannot_be_read_is_not_ready(callboard_world: World) -> None:
    running = await owning(callboard_world)
    assert running.worker.ready_problem() is None
    await callboard_world.bus.delete_stream(subjects.ACTORS)
    await eventually(lambda: running.worker.ready_problem() is not None, within_s=20.0)
    # and soon it ends, since nothing that it has in memory is true any more
    with pytest.raises(TopologyError, match="was deleted"):
        await asyncio.wait_for(asyncio.shield(running.task), 20)
    callboard_world.workers.remove(running)


@pytest.mark.parametrize("behind_s", [-30, 0, 30])
async def test_the_skew_of_a_clock_is_the_age_of_a_beat_when_it_comes(callboard_world: World, behind_s: int) -> None:
    running = await owning(callboard_world)
    (beat,) = beats(running)
    heard = roster.Roster(SYSTEM_CLOCK)
    at = SYSTEM_CLOCK.now() - timedelta(seconds=behind_s)
    heard.hear(Message(subject=f"cb.beat.{beat.worker}", data=msgspec.json.encode(replace(beat, at=at))))
    assert heard.skews_s[beat.worker] == pytest.approx(behind_s, abs=1.0)
    heard.hear(
        Message(subject=f"cb.beat.{beat.worker}", data=msgspec.json.encode(replace(beat, at=SYSTEM_CLOCK.now())))
    )
    assert heard.skews_s[beat.worker] == pytest.approx(0, abs=1.0)
