"""With tracing off a trace that came with a message goes on untouched to what its handler sends."""

from __future__ import annotations

from typing import Any

import msgspec

from callboard import Actor, on
from callboard.runtime import subjects
from callboard.runtime.bus import header
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.context import TaskContext
from callboard.runtime.record import decode_task
from tests.support.eventually import eventually
from tests.support.world import World

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
heard: list[str | None] = []


class Ask(msgspec.Struct):
    text: str


class Said(msgspec.Struct):
    text: str


class Relay(Actor, name="relay"):
    @on
    async def relay(self, m: Ask) -> Any:  # noqa: ANN401 - whatever comes back
        self.tell("relay/other", Said(m.text))
        return await self.call("echo", m.text)

    @on
    async def said(self, m: Said) -> None:
        assert m.text


@capability
async def echo(text: str, *, task: TaskContext) -> str:
    heard.append(task.headers.get(header.TRACEPARENT))
    if text == "again":
        return text
    return str(await Client(task.bus).call("echo", "again"))


async def test_a_trace_goes_on_through_turns_tasks_and_tells(callboard_world: World) -> None:
    world = callboard_world
    heard.clear()
    await world.start(Relay, echo)
    await world.client.actor("relay/ann").ask(Ask("x"), headers={header.TRACEPARENT: PARENT})
    assert heard == [PARENT, PARENT]
    await eventually(lambda: _told(world))


async def test_work_without_a_trace_gets_none(callboard_world: World) -> None:
    world = callboard_world
    heard.clear()
    await world.start(Relay, echo)
    await world.client.actor("relay/ann").ask(Ask("x"), headers={header.TRACEPARENT: PARENT})
    handle = await world.client.submit("echo", "again")
    await world.client.wait(handle, timeout_s=5)
    assert heard == [PARENT, PARENT, None]
    stored = await world.bus.get_last(subjects.LEDGER, subjects.result("echo", handle.id))
    assert stored is not None
    assert decode_task(stored.data).submitted


async def _told(world: World) -> bool:
    counts = await world.bus.subject_counts(subjects.ACTORS, "cb.mbox.relay.*.other")
    for subject in counts:
        stored = await world.bus.get_last(subjects.ACTORS, subject)
        return stored is not None and (stored.headers or {}).get(header.TRACEPARENT) == PARENT
    return False
