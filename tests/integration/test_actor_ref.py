"""Telling and asking an actor, with the host's part played by hand, on both adapters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pydantic
import pytest
from msgspec import Struct

from callboard.runtime import errors, subjects
from callboard.runtime.actor import ref as refs
from callboard.runtime.actor.mail import Mail, mail_of
from callboard.runtime.actor.parts import AskStream, Gap
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.blobs import BlobStore, claim_header
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Stored
from callboard.runtime.errors import (
    AskFailedError,
    AskTimeoutError,
    DeadlineError,
    InvalidHeaderError,
    InvalidNameError,
    NoHostError,
)
from tests.support.eventually import eventually
from tests.support.hand_host import GREETER, HandHost
from tests.support.server import NatsServer
from tests.support.world import World


class Ask(Struct):
    text: str


class Reply(Struct):
    text: str
    turn: int


@dataclass
class Plain:
    text: str


class Model(pydantic.BaseModel):
    text: str


@pytest.fixture
async def host(callboard_world: World) -> AsyncIterator[HandHost]:
    found = await HandHost(await callboard_world.connect("host")).open()
    yield found
    await found.close()


async def mails(world: World) -> list[Mail]:
    found: list[Stored] = [stored async for stored in world.bus.read(subjects.ACTORS, subjects=("cb.mbox.>",))]
    return [mail_of(stored) for stored in found]


async def test_what_is_told_lies_in_the_mailbox_with_its_type_and_id(callboard_world: World) -> None:
    ann = callboard_world.client.actor("greeter/ann")
    seq = await ann.tell(Ask("bob"), id="a")
    await ann.tell(Plain("x"))
    await ann.tell(Model(text="y"))
    await ann.tell({"text": "z"}, type="Ask", headers={"traceparent": "00-1"})
    await ann.tell(b'"as it is"')
    found = await mails(callboard_world)
    assert [(m.address, m.type, m.data) for m in found] == [
        (GREETER, "Ask", b'{"text":"bob"}'),
        (GREETER, "Plain", b'{"text":"x"}'),
        (GREETER, "Model", b'{"text":"y"}'),
        (GREETER, "Ask", b'{"text":"z"}'),
        (GREETER, None, b'"as it is"'),
    ]
    assert (found[0].seq, found[0].id, found[0].has_own_id) == (seq, "a", True)
    assert found[3].headers["traceparent"] == "00-1"


async def test_an_id_names_a_mail_within_its_actor_only(callboard_world: World) -> None:
    ann, bob = callboard_world.client.actor("greeter/ann"), callboard_world.client.actor("greeter/bob")
    first = await ann.tell(Ask("x"), id="1")
    assert await ann.tell(Ask("x"), id="1") == first
    await bob.tell(Ask("x"), id="1")
    assert [(str(m.address), m.id) for m in await mails(callboard_world)] == [
        ("greeter/ann", "1"),
        ("greeter/bob", "1"),
    ]


async def test_a_delayed_tell_comes_later_once_for_its_id(callboard_world: World) -> None:
    ann = callboard_world.client.actor("greeter/ann")
    held = await ann.tell(Ask("x"), id="later", delay_s=1)
    assert await ann.tell(Ask("x"), id="later", delay_s=500) == held
    assert await mails(callboard_world) == []

    async def has_come() -> bool:
        return len(await mails(callboard_world)) == 1

    await eventually(has_come, within_s=5)
    (mail,) = await mails(callboard_world)
    assert (mail.id, mail.type, mail.data) == ("later", "Ask", b'{"text":"x"}')
    assert await callboard_world.bus.subject_counts(subjects.ACTORS, "cb.timer.>") == {}


async def test_a_deadline_travels_and_one_that_has_passed_is_refused(callboard_world: World) -> None:
    ann = callboard_world.client.actor("greeter/ann")
    await ann.tell(Ask("x"), deadline=datetime(2099, 1, 1, tzinfo=UTC))
    (mail,) = await mails(callboard_world)
    assert mail.deadline == datetime(2099, 1, 1, tzinfo=UTC)
    with pytest.raises(DeadlineError, match="has passed"):
        await ann.tell(Ask("x"), deadline=timedelta(seconds=-1))
    with pytest.raises(DeadlineError, match="time zone"):
        await ann.ask(Ask("x"), deadline=datetime(2099, 1, 1))  # noqa: DTZ001 - the point


@pytest.mark.parametrize("text", ["greeter", "Greeter/ann", "a b/c", "task/x", "greeter/", "*/x", ">"])
async def test_an_address_that_cannot_be_is_refused(callboard_world: World, text: str) -> None:
    with pytest.raises(InvalidNameError):
        callboard_world.client.actor(text)


@pytest.mark.parametrize("headers", [{"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}])
async def test_a_header_that_deletes_mail_is_refused(callboard_world: World, headers: dict[str, str]) -> None:
    ann = callboard_world.client.actor("greeter/ann")
    await ann.tell(Ask("x"))
    with pytest.raises(InvalidHeaderError, match="delete"):
        await ann.tell(Ask("y"), headers=headers)
    with pytest.raises(InvalidHeaderError, match="delete"):
        await ann.tell(Ask("y"), headers=headers, delay_s=1)
    with pytest.raises(InvalidHeaderError, match="delete"):
        await ann.ask(Ask("y"), headers=headers)
    assert await callboard_world.waiting("CB_ACTORS") == 1


@pytest.mark.parametrize("given", [5, None, b"greeter/ann", "", "greeter", ("greeter", "ann"), True])
async def test_what_is_no_address_at_all_is_refused_by_name(callboard_world: World, given: object) -> None:
    with pytest.raises(InvalidNameError, match=r"<type>/<key>, for example '?greeter/ann"):
        callboard_world.client.actor(given)  # type: ignore[arg-type] # what a typed program cannot do


async def test_a_name_that_a_sequence_has_is_no_id(callboard_world: World) -> None:
    with pytest.raises(InvalidNameError):
        await callboard_world.client.actor("greeter/ann").tell(Ask("x"), id="~17")


async def test_an_ask_is_answered_with_plain_values_or_with_a_type(callboard_world: World, host: HandHost) -> None:
    ann = callboard_world.client.actor("greeter/ann")
    asking = asyncio.create_task(ann.ask(Ask("bob"), timeout_s=20))
    asked = await host.asked()
    assert (asked.subject, asked.data) == ("cb.ask.greeter.ann", b'{"text":"bob"}')
    headers = asked.headers or {}
    assert headers["Cb-Type"] == "Ask"
    left_s = (datetime.fromisoformat(headers["Cb-Deadline"]) - callboard_world.clock.now()).total_seconds()
    assert 0 < left_s <= 20
    await host.answer(asked, {"text": "hi", "turn": 1})
    assert await asking == {"text": "hi", "turn": 1}
    typed = asyncio.create_task(ann.ask(Ask("bob"), returns=Reply, deadline=timedelta(seconds=5)))
    await host.answer(await host.asked(2), {"text": "hi", "turn": 2})
    assert await typed == Reply("hi", 2)
    wrong = asyncio.create_task(ann.ask(Ask("bob"), returns=int))
    await host.answer(await host.asked(3), "no number")
    with pytest.raises(errors.DecodeError):
        await wrong


async def test_an_answer_may_lie_in_the_object_store(callboard_world: World, host: HandHost) -> None:
    asking = asyncio.create_task(callboard_world.client.actor("greeter/ann").ask(Ask("bob")))
    blob = await BlobStore(callboard_world.bus).put(json.dumps("x" * 500_000).encode())
    await callboard_world.bus.publish((await host.asked()).reply, b"", headers={"Cb-Claim-Check": claim_header(blob)})
    assert await asking == "x" * 500_000


@pytest.mark.parametrize(
    ("code", "kind", "wanted"),
    [
        ("unknown_message", "", errors.UnknownMessageError),
        ("mailbox_full", "", errors.MailboxFullError),
        ("actor_stopped", "", errors.ActorStoppedError),
        ("reply_gone", "ReplyGoneError", errors.ReplyGoneError),
        ("decode", "", errors.DecodeError),
        ("handler", "ValueError", AskFailedError),
        ("mailbox_full", "ShopFullError", AskFailedError),
        ("of_a_later_version", "", AskFailedError),
    ],
)
async def test_an_error_is_raised_as_what_it_is(
    callboard_world: World, host: HandHost, code: str, kind: str, wanted: type[Exception]
) -> None:
    asking = asyncio.create_task(callboard_world.client.actor("greeter/ann").ask(Ask("bob")))
    await host.refuse(await host.asked(), code, "because", kind)
    with pytest.raises(wanted, match="because") as caught:
        await asking
    assert type(caught.value) is wanted
    if isinstance(caught.value, AskFailedError):
        assert (caught.value.address, caught.value.cause_code, caught.value.cause_type) == ("greeter/ann", code, kind)


async def test_an_error_that_is_no_json_is_still_one(callboard_world: World, host: HandHost) -> None:
    asking = asyncio.create_task(callboard_world.client.actor("greeter/ann").ask(Ask("bob")))
    await callboard_world.bus.publish((await host.asked()).reply, b"boom", headers={"Cb-Error": "odd"})
    with pytest.raises(AskFailedError, match="boom"):
        await asking


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_type_that_nobody_hosts_is_said_at_once(callboard_world: World, key: str | None) -> None:
    ann = callboard_world.client.actor("greeter/ann")
    with pytest.raises(NoHostError, match="worker start"):
        await ann.ask(Ask("x"), idempotency_key=key)
    with pytest.raises(NoHostError, match="worker start"):
        async with ann.stream(Ask("x")) as parts:
            await anext(parts)
    assert await mails(callboard_world) == []


@pytest.mark.parametrize("key", [None, "k"])
async def test_silence_ends_with_the_timeout(callboard_world: World, host: HandHost, key: str | None) -> None:
    with pytest.raises(AskTimeoutError, match="within"):
        await callboard_world.client.actor("greeter/ann").ask(Ask("x"), timeout_s=0.2, idempotency_key=key)
    assert len(host.asks) == 1


async def test_a_named_ask_is_repeated_after_silence_and_any_answer_counts(
    callboard_world: World, host: HandHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "REPEAT_FIRST_S", 0.05)
    ann = callboard_world.client.actor("greeter/ann")
    asking = asyncio.create_task(ann.ask(Ask("x"), idempotency_key="k"))
    await host.asked(3)
    assert {(m.headers or {})["Cb-Mail-Id"] for m in host.asks} == {"k"}
    assert len({m.reply for m in host.asks}) == len(host.asks)
    await host.answer(host.asks[0], "the first one's")
    assert await asking == "the first one's"


async def test_a_named_ask_outlives_hosts_that_go_away(
    callboard_world: World, host: HandHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "REPEAT_FIRST_S", 0.05)
    asking = asyncio.create_task(callboard_world.client.actor("greeter/ann").ask(Ask("x"), idempotency_key="k"))
    await host.asked()
    await host.close()
    second = HandHost(await callboard_world.connect("second"))
    await eventually(lambda: not asking.done())
    await second.open()
    await second.answer(await second.asked(), "from another")
    assert await asking == "from another"
    await second.close()


async def test_a_cancelled_ask_leaves_no_task_behind(callboard_world: World, host: HandHost) -> None:
    asking = asyncio.create_task(callboard_world.client.actor("greeter/ann").ask(Ask("x"), idempotency_key="k"))
    await host.asked()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not {"ask", "ask-silence"} & names


# --- streams


async def read(parts: AskStream) -> list[object]:
    return [part async for part in parts]


async def test_parts_come_in_order_then_the_value(callboard_world: World, host: HandHost) -> None:
    parts = callboard_world.client.actor("greeter/ann").stream(Ask("x"))
    reading = asyncio.create_task(read(parts))
    asked = await host.asked()
    assert (asked.headers or {})["Cb-Stream"] == "1"
    for number in range(3):
        await host.part(asked, number, f"part {number}")
    await host.answer(asked, {"turn": 1})
    assert await reading == ["part 0", "part 1", "part 2"]
    assert (parts.value, parts.is_finished) == ({"turn": 1}, True)
    assert await read(parts) == []


async def test_lost_parts_show_as_a_gap_and_repeated_ones_not_at_all(callboard_world: World, host: HandHost) -> None:
    reading = asyncio.create_task(read(callboard_world.client.actor("greeter/ann").stream(Ask("x"))))
    asked = await host.asked()
    for number in (0, 1, 4, 0, 1, 2, 3, 4, 5):
        await host.part(asked, number, number)
    await host.answer(asked, None)
    assert await reading == [0, 1, Gap(first=2, last=3), 4, 5]


async def test_a_stream_ends_with_the_error_of_its_turn(callboard_world: World, host: HandHost) -> None:
    parts = callboard_world.client.actor("greeter/ann").stream(Ask("x"))
    reading = asyncio.create_task(read(parts))
    asked = await host.asked()
    await host.part(asked, 0, "begun")
    await host.refuse(asked, "handler", "boom", "ValueError")
    with pytest.raises(AskFailedError, match="boom"):
        await reading
    assert parts.is_finished


async def test_a_stream_without_end_times_out(callboard_world: World, host: HandHost) -> None:
    async with callboard_world.client.actor("greeter/ann").stream(Ask("x"), timeout_s=0.2) as parts:
        await host.part(await host.asked(), 0, "begun")
        assert await anext(parts) == "begun"
        with pytest.raises(AskTimeoutError):
            await anext(parts)


# --- a server that goes away


async def test_a_named_ask_is_repeated_after_a_lost_connection_and_an_unnamed_one_is_not(
    nats_server: NatsServer,
) -> None:
    bus = await jetstream.connect(nats_server.url, name="asker")
    host = await HandHost(await jetstream.connect(nats_server.url, name="host")).open()
    ann = ActorRef(bus, GREETER)
    unnamed = asyncio.create_task(ann.ask(Ask("once"), timeout_s=20))
    await host.asked(1)
    named = asyncio.create_task(ann.ask(Ask("twice"), timeout_s=20, idempotency_key="k"))
    await host.asked(2)
    await nats_server.restart()
    with pytest.raises(AskTimeoutError, match="connection was lost"):
        await unnamed
    again = await host.asked(3)
    assert again.data == b'{"text":"twice"}'
    await host.answer(again, "answered")
    assert await named == "answered"
    assert [m.data for m in host.asks].count(b'{"text":"once"}') == 1
    await host.close()
    await bus.close()
