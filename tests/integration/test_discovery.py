"""Workers as NATS services: plain requests that gather the answers of all."""

from __future__ import annotations

from typing import Any

import msgspec

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus.base import Message
from callboard.runtime.capability import capability
from callboard.runtime.registry import micro
from tests.support.eventually import eventually
from tests.support.world import QUICK, World


class Greeter(Actor, name="greeter"):
    @on
    async def hello(self, m: str) -> str:
        return m


@capability("nap", concurrency=3)
async def nap(value: int) -> int:
    if value < 0:
        raise ValueError(value)
    return value


async def gather(world: World, subject: str, count: int) -> list[dict[str, Any]]:
    heard: list[Message] = []
    inbox = world.bus.inbox()
    subscription = await world.bus.subscribe(inbox, heard.append)
    await world.bus.publish(subject, reply=inbox)
    await eventually(lambda: len(heard) >= count)
    await world.bus.flush()
    await subscription.close()
    bodies = [msgspec.json.decode(message.data) for message in heard]
    return sorted((b for b in bodies if b["name"] == micro.WORKER_SERVICE), key=lambda body: str(body["id"]))


async def test_every_worker_answers_for_itself(callboard_world: World) -> None:
    world = callboard_world
    await world.start(nap, worker_id="w1", options=msgspec.structs.replace(QUICK, labels={"zone": "a"}))
    await world.start(Greeter, worker_id="w2")
    for subject in ("$SRV.PING", "$SRV.PING.callboard-worker"):
        found = await gather(world, subject, 2)
        assert [(body["type"], body["id"]) for body in found] == [
            ("io.nats.micro.v1.ping_response", "w1"),
            ("io.nats.micro.v1.ping_response", "w2"),
        ]
        assert found[0]["metadata"]["label.zone"] == "a"
    one, two = await gather(world, "$SRV.INFO", 2)
    assert one["type"] == "io.nats.micro.v1.info_response"
    assert [(e["name"], e["subject"]) for e in one["endpoints"]] == [("task-nap", "cb.task.nap")]
    names = [(e["name"], e["subject"], e["queue_group"]) for e in two["endpoints"]]
    assert ("ask-greeter", "cb.ask.greeter.*", "hosts") in names


async def test_one_instance_is_asked_and_tells_what_it_did(callboard_world: World) -> None:
    world = callboard_world
    await world.start(nap, worker_id="w1")
    for value in (1, 2):
        assert await world.client.call("nap", value, timeout_s=10) == value
    (found,) = await gather(world, "$SRV.STATS.callboard-worker.w1", 1)
    assert found["type"] == "io.nats.micro.v1.stats_response"
    (endpoint,) = found["endpoints"]
    assert (endpoint["num_requests"], endpoint["num_errors"]) == (2, 0)
    assert endpoint["processing_time"] >= endpoint["average_processing_time"] > 0
    # others are silent, and nothing that is no request is answered
    heard: list[Message] = []
    inbox = world.bus.inbox()
    _ = await world.bus.subscribe(inbox, heard.append)
    for subject in ("$SRV.PING.other", "$SRV.PING.callboard-worker.w2", "$SRV.SCHEMA", "$SRV.ping"):
        await world.bus.publish(subject, reply=inbox)
    assert await gather(world, "$SRV.PING.callboard-worker.w1", 1)
    assert [m for m in heard if m.data] == []


def test_a_version_becomes_a_semantic_one() -> None:
    versions = ("0.1.0", "0.2.0.dev1", "1.2.3rc1+local.2", "odd")
    assert [micro.release(v) for v in versions] == ["0.1.0", "0.2.0-dev1", "1.2.3-rc1-local-2", "0.0.0"]


async def test_a_worker_whose_name_bears_its_user_is_asked_by_name(callboard_world: World) -> None:
    world = callboard_world
    await world.start(nap, worker_id="pool.w1")
    await world.start(nap, worker_id="pool.w2")
    found = await gather(world, "$SRV.INFO.callboard-worker.pool.w1", 1)
    assert [body["id"] for body in found] == ["pool.w1"]
