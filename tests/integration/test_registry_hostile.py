"""What strangers and fools send to the registry: each is answered, says nothing of others, and stops nobody."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.errors import CallboardError, NotFoundError
from callboard.runtime.registry import record as records
from callboard.runtime.registry.desk import MAX_ANSWER_BYTES
from callboard.runtime.registry.lookup import raise_refusal
from callboard.runtime.registry.message import BEAT, FIND, PICK, REGISTER, SERVED
from tests.integration.test_registry_desk import ask, desk_of
from tests.support.eventually import eventually
from tests.support.world import World

DEEP = b'{"z":' + b"[" * 100_000
SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": {"a": 1}},
    {"type": [["x"], {}]},
    {"type": "object", "required": [{}, 1], "properties": {"a": {"type": [{}]}}},
)


async def said(bus: Bus, subject: str, body: bytes) -> dict[str, Any]:
    """Return what the registry answers; an error is its answer too, none at all fails the test."""
    found: dict[str, Any] = msgspec.json.decode((await bus.request(subject, body, timeout_s=5)).data)
    return found


async def enter(bus: Bus, key: str, **more: Any) -> None:  # noqa: ANN401 - fields
    await ask(bus, REGISTER, **({"type": "node", "key": key, "instance": key, "capabilities": ["do"]} | more))


async def put(bus: Bus, key: str, **fields: Any) -> None:  # noqa: ANN401 - JSON
    """Write a record past the registry, as a host's user may."""
    given = {"type": "node", "key": key, "capabilities": [{"name": "do"}], "registered_at": datetime.now(UTC)}
    body = msgspec.json.encode(given | fields)
    await bus.store(Write(f"$KV.{records.BUCKET}.{records.record_key('node', key)}", body))


async def keys(bus: Bus) -> list[str]:
    return [each["record"]["key"] for each in (await ask(bus, FIND, capability="do"))["agents"]]


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_schemas_that_are_none_say_nothing(callboard_world: World, schema: dict[str, Any]) -> None:
    bus = await desk_of(callboard_world)
    await enter(bus, "odd", capabilities=[{"name": "do", "input": schema}])
    await enter(bus, "plain", capabilities=[{"name": "do", "input": {"type": "object", "properties": {"a": {}}}}])
    for given in (*SCHEMAS, {"type": "object", "properties": {"a": {"type": "string"}}}):
        await ask(bus, FIND, capability="do", input=given)
        await ask(bus, PICK, capability="do", input=given)


async def test_what_nests_without_end_is_answered_and_passed_over(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    nested = b'{"properties":{"a":' * 400 + b"{}" + b"}}" * 400
    body = b'{"type":"node","key":"deep","capabilities":[{"name":"do","input":' + nested + b"}]}"
    assert (await said(bus, REGISTER, body))["address"] == "node/deep"
    assert len((await said(bus, FIND, b'{"capability":"do","input":' + nested + b"}"))["agents"]) == 1
    for subject in (REGISTER, FIND, PICK, BEAT):
        assert (await said(bus, subject, DEEP))["error"]["code"] == "decode"
    for subject in (BEAT, f"{BEAT}.node", SERVED, "cb.beat.x", "cb.group.x", "cb.ctl.dead", "cb.ctl.holds"):
        await bus.publish(subject, DEEP)
    assert await keys(bus) == ["deep"]


@pytest.mark.parametrize("busy", [-1, 10**30, 10**400])
async def test_a_beat_with_an_impossible_load_is_none(callboard_world: World, busy: int) -> None:
    bus = await desk_of(callboard_world)
    await enter(bus, "liar")
    body = b'{"type":"node","key":"liar","instance":"liar","busy":%d}' % busy
    assert (await said(bus, BEAT, body))["error"]["code"] == "decode"
    picked = await ask(bus, PICK, capability="do")
    assert picked["why"]["load"] == 0


async def test_a_worker_s_beat_with_an_impossible_load_is_none(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    now = datetime.now(UTC).isoformat()
    load = (
        b'{"kind":"node","partitions":[0],"active":1,"running":0,"version":1,"fingerprint":"x","of":%d,"busy":{"a":%d}}'
    )
    beat = (
        b'{"v":1,"worker":"liar","host":"h","pid":1,"version":"1","status":"ready","started_at":"%b","at":"%b",'
        b'"fetched_at":null,"labels":{},"capabilities":[],"actors":[%b]}'
    )
    await put(bus, "a", is_hosted=True)
    for of, busy in ((-5, 0), (4, -1), (4, 10**400)):
        await bus.publish(subjects.beat("liar"), beat % (now.encode(), now.encode(), load % (of, busy)))
    await ask(bus, FIND, type="node")
    await bus.publish(subjects.beat("liar"), beat % (now.encode(), now.encode(), load % (4, 1)))

    async def is_seen() -> bool:
        found = await ask(bus, FIND, type="node")
        return [each["status"] for each in found["agents"]] == ["busy"]

    await eventually(is_seen, what="the beat after them counts")


@pytest.mark.parametrize("fields", [{"weight": 0}, {"weight": -4}, {"timeout_s": -1.0}, {"v": 2}, {"labels": 5}])
async def test_a_record_that_nobody_could_have_registered_is_nobody_s_agent(
    callboard_world: World, fields: dict[str, Any]
) -> None:
    bus = await desk_of(callboard_world)
    await enter(bus, "good")
    await put(bus, "bad", **fields)
    await put(bus, "last")
    await eventually(lambda: _are(bus, "good", "last"), what="the record after it is known")
    for _ in range(3):
        await ask(bus, PICK, capability="do")
    # and what is written over an agent's record takes the agent away
    await put(bus, "good", **fields)
    await eventually(lambda: _are(bus, "last"), what="the overwritten one has left")


async def _are(bus: Bus, *wanted: str) -> bool:
    return await keys(bus) == list(wanted)


async def test_a_registration_has_a_size_and_a_page_too(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    with pytest.raises(CallboardError, match="bytes of itself"):
        await enter(bus, "huge", version="v" * records.MAX_BYTES)
    number = MAX_ANSWER_BYTES // 50_000 + 5
    for each in range(number):
        await enter(bus, f"{each:03}", version="v" * 50_000)
    seen: list[str] = []
    after = ""
    while True:
        answer = await bus.request(FIND, msgspec.json.encode({"capability": "do", "limit": 1000, "after": after}))
        raise_refusal(answer)
        assert len(answer.data) <= MAX_ANSWER_BYTES
        page = msgspec.json.decode(answer.data)
        seen += [each["record"]["key"] for each in page["agents"]]
        after = page["next"]
        if not after:
            break
    assert seen == [f"{each:03}" for each in range(number)]


async def test_a_stranger_s_beat_is_refused(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    with pytest.raises(NotFoundError, match="not registered"):
        await ask(bus, BEAT, type="node", key="stranger")
