"""Those who only give work hand in mail and delayed tasks; they cannot delete what others were told is stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.mail import Mail, mail_of
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.bus.faulty import FaultyBus
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.errors import BusError, PermissionDeniedError
from tests.support.eventually import eventually
from tests.support.secured import planned, secured
from tests.support.world import World


class Line(Struct):
    text: str


class Book(Actor, name="book"):
    class State(Struct):
        lines: list[str] = []

    @on
    async def write(self, message: Line) -> int:
        self.state.lines.append(message.text)
        return len(self.state.lines)

    @on(read_only=True)
    async def read(self, message: int) -> list[str]:
        return list(self.state.lines)


async def mails(world: World) -> list[Mail]:
    return [mail_of(each) async for each in world.bus.read(subjects.ACTORS, subjects=("cb.mbox.book.>",))]


async def hand_in(world: World, text: str, headers: dict[str, str] | None = None, *, key: str = "a") -> int:
    body = b'{"text":"%s"}' % text.encode()
    return (await world.bus.store(Write(f"cb.tell.book.{key}", body, {"Cb-Type": "Line"} | (headers or {})))).seq


async def lines(world: World, key: str = "a") -> list[str]:
    return await world.client.actor(f"book/{key}").ask(1, type="int", timeout_s=20, returns=list[str])


async def have(world: World, count: int, key: str = "a") -> None:
    async def is_there() -> bool:
        return len(await lines(world, key)) >= count

    await eventually(is_there, within_s=20)


ROLL_UPS = ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"})


@pytest.mark.parametrize("headers", ROLL_UPS)
async def test_nobody_who_only_gives_work_deletes_by_a_roll_up(tmp_path: Path, headers: dict[str, str]) -> None:
    plan = planned(pools=["gpu=search"], hosts=["desk=book"], agents=["node"], has_tls=False)
    async with secured(tmp_path, plan, "search") as servers:
        host = await servers.bus("host-desk")
        await host.store(Write("cb.state.book.a", b"{}"))
        await host.store(Write("cb.mail.book.a", b"{}"))
        await host.store(Write("cb.later.x", b"1", header.at(datetime(2099, 1, 1, tzinfo=UTC), "cb.due.search")))
        await Client(host).submit("search", b"x" * 300_000)
        watcher = await servers.bus("operator")
        names = ("CB_ACTORS", "CB_LATER", "CB_WORK", "CB_POST", "OBJ_CB_BLOBS")

        async def stored() -> dict[str, int]:
            return {name: info.messages for name in names if (info := await watcher.stream_info(name)) is not None}

        before = await stored()
        assert len(before) == len(names)
        for user in ("submitter", "worker-gpu", "agent-node"):
            bus = await servers.bus(user)
            for subject in ("cb.mail.book.a", "cb.timer.client.a.tell"):
                with pytest.raises(PermissionDeniedError):
                    await bus.store(Write(subject, b"{}", headers), timeout_s=2)
            with pytest.raises(BusError, match="rollup"):
                await bus.store(Write("cb.tell.book.a", b"{}", headers), timeout_s=2)
        bus = await servers.bus("submitter")
        with pytest.raises(PermissionDeniedError):
            await bus.store(Write("cb.later.y", b"{}", headers), timeout_s=2)
        for subject in ("cb.task.search", "$O.CB_BLOBS.C.y", "$O.CB_BLOBS.M.y"):
            with pytest.raises(BusError, match="rollup"):
                await bus.store(Write(subject, b"{}", headers), timeout_s=2)
        for more in ({"Nats-TTL": "1s"}, header.at(datetime(2099, 1, 1, tzinfo=UTC), "cb.tell.book.b")):
            with pytest.raises(BusError, match=r"TTL|schedules"):
                await bus.store(Write("cb.tell.book.a", b"{}", more), timeout_s=2)
        assert await stored() == before


async def test_what_was_handed_in_becomes_mail_once_and_in_order(callboard_world: World) -> None:
    world = callboard_world
    for number in range(30):
        await hand_in(world, str(number))
    running = await world.start(Book)
    await have(world, 30)
    for number in range(30, 40):
        await hand_in(world, str(number))
    await have(world, 40)
    await running.stop()
    for number in range(40, 45):
        await hand_in(world, str(number))
    await world.start(Book)
    await have(world, 45)
    assert await lines(world) == [str(number) for number in range(45)]

    async def is_empty() -> bool:
        info = await world.bus.stream_info(subjects.POST)
        return info is not None and not info.messages

    await eventually(is_empty)


async def test_two_carriers_make_one_mail_of_each(callboard_world: World) -> None:
    """The host is cut off in the middle, another takes the post over, and the first comes back to its batch."""
    world = callboard_world
    faulty: list[FaultyBus] = []

    def cut_off(bus: object) -> FaultyBus:
        import random

        faulty.append(FaultyBus(bus, random.Random(1)))  # type: ignore[arg-type] # a bus it is
        return faulty[-1]

    await world.start(Book, wrap=cut_off)
    await hand_in(world, "0")
    await have(world, 1)
    await world.start(Book)
    for number in range(1, 60):
        if number == 20:
            for bus in faulty:
                bus.cut()
        if number == 40:
            for bus in faulty:
                bus.mend()
        await hand_in(world, str(number))
    await have(world, 60)
    assert await lines(world) == [str(number) for number in range(60)]


async def test_the_brokers_own_headers_do_not_travel(callboard_world: World) -> None:
    world = callboard_world
    forged = {
        "Cb-Mail-Kind": "timer",
        "Nats-Expected-Stream": "CB_POST",
    }
    await world.start(Book)
    await hand_in(world, "1", {"Nats-Msg-Id": "mine", "x-mine": "2", "Cb-Chain": "run-victim/1@1"})
    await hand_in(world, "2", forged)
    await hand_in(world, "3")
    await have(world, 2)
    assert await lines(world) == ["1", "3"]
    found = await mails(world)
    # no turn of an actor handed it in
    assert (found[0].id, found[0].chain) == ("mine", ())
    assert found[0].headers["x-mine"] == "2"
    assert not [name for mail in found for name in mail.headers if name.startswith("Nats-")]
    assert "Callboard's own" in found[1].problem


async def test_what_a_carrier_left_undeleted_the_next_one_deletes(callboard_world: World) -> None:
    world = callboard_world
    seq = await hand_in(world, "carried")
    # another host had made mail of it, and died before it deleted it
    await world.bus.store(Write(subjects.posted("book"), b'{"upto":%d}' % seq))
    await world.start(Book)

    async def is_empty() -> bool:
        info = await world.bus.stream_info(subjects.POST)
        return info is not None and not info.messages

    await eventually(is_empty)
    assert await mails(world) == []


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "nonsense", ""])
async def test_a_time_that_is_none_holds_up_nobody_s_mail(callboard_world: World, moment: str) -> None:
    world = callboard_world
    await world.start(Book)
    for name in ("Cb-Not-Before", "Cb-Deadline"):
        await hand_in(world, "odd", {name: moment}, key="odd")
    await hand_in(world, "behind")
    await have(world, 1)
    assert await lines(world) == ["behind"]


async def test_a_delayed_mail_is_held_and_a_repeat_does_not_move_it(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Book)
    soon = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()
    for _ in range(2):
        await hand_in(world, "later", {"Cb-Not-Before": soon, "Cb-Mail-Id": "one"})
    await hand_in(world, "now")
    await hand_in(world, "past", {"Cb-Not-Before": "2001-01-01T00:00:00Z"})
    await have(world, 3)
    assert await lines(world) == ["now", "past", "later"]
    assert len(await mails(world)) == 3


async def test_a_guest_tells_asks_and_delays(tmp_path: Path) -> None:
    ran: list[datetime] = []

    @capability("search")
    async def search(text: str) -> str:
        ran.append(datetime.now(UTC))
        return text.upper()

    from tests.integration.test_security_users import worker

    plan = planned(pools=["gpu=search"], hosts=["desk=book"], has_tls=False)
    async with (
        secured(tmp_path, plan, "search") as servers,
        worker(servers, "worker-gpu", [search]),
        worker(servers, "host-desk", actors=[Book]),
    ):
        client = Client(await servers.bus("submitter"))
        book = client.actor("book/a")
        began = datetime.now(UTC)
        handle = await client.submit("search", "later", delay_s=2)
        await book.tell(Line("second"), delay_s=1.5, id="x")
        await book.tell(Line("first"), id="y")
        await book.tell(Line("first"), id="y")

        async def are_told() -> bool:
            return len(await book.ask(1, type="int", timeout_s=20)) >= 2

        await eventually(are_told, within_s=20)
        assert await book.ask(1, type="int", timeout_s=20) == ["first", "second"]
        record = await client.wait_record(handle, timeout_s=20)
        assert (record.status, record.attempts) == ("completed", 1)
        assert ran[0] - began >= timedelta(seconds=1.5)
        assert "Violation" not in servers.log()


async def test_a_guest_hands_in_on_both_adapters(callboard_world: World) -> None:
    bus = await callboard_world.connect("guest")
    if callboard_world.kind == "memory":
        bus.is_guest = True  # type: ignore[misc] # the in-memory one can be made a guest
    else:
        bus._is_guest = True  # type: ignore[attr-defined]  # as its settings would
    await ActorRef(bus, "book/a").tell(Line("x"))
    assert await mails(callboard_world) == []
    await callboard_world.start(Book)
    await have(callboard_world, 1)
    await bus.close()


async def test_an_older_deployment_is_given_the_post_and_its_blobs_take_no_roll_up_any_more(tmp_path: Path) -> None:
    async with secured(tmp_path, planned(hosts=["desk=book"], has_tls=False)) as servers:
        operator = await servers.bus("operator")
        await operator.delete_stream("CB_POST")
        info = await operator.stream_info("OBJ_CB_BLOBS")
        assert info is not None
        await operator.update_stream(replace(info.config, allow_rollup=True))
        host = await servers.bus("host-desk")
        await host.store(Write("cb.mail.book.a", b"{}"))
        await servers.provision()
        info = await operator.stream_info("OBJ_CB_BLOBS")
        assert info is not None
        assert not info.config.allow_rollup
        assert await operator.stream_info("CB_POST") is not None
        actors = await operator.stream_info("CB_ACTORS")
        assert actors is not None
        assert actors.messages == 1, "what is stored stays"
