"""Promises of the bus port: plain subjects, and what may not be sent at all."""

from __future__ import annotations

import asyncio

import pytest

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message, Write
from callboard.runtime.contract.broker import LOG, Broker
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import (
    BusClosedError,
    BusTimeoutError,
    InvalidHeaderError,
    InvalidNameError,
    NoRespondersError,
    PayloadTooLargeError,
)


class BusCore:
    """Tests; needs the fixtures ``broker`` and ``bus`` of ``BusContract``."""

    async def test_a_connection_says_what_it_is_connected_to(self, bus: Bus) -> None:
        assert bus.is_connected
        assert bus.connected_at > 0
        assert bus.server.version >= "2.12"
        assert bus.server.jetstream
        assert bus.server.max_payload_bytes == 1 << 20

    async def test_a_message_reaches_every_subscriber_of_its_subject(self, broker: Broker) -> None:
        sender, first, second = [await broker.connect() for _ in range(3)]
        heard: list[tuple[str, Message]] = []
        await first.subscribe("news.*", lambda message: heard.append(("first", message)))
        await second.subscribe("news.>", lambda message: heard.append(("second", message)))
        await sender.publish("news.today", b"body", headers={"X": "é ü"}, reply="answer.here")
        await sender.publish("other.today", b"")
        await eventually(lambda: len(heard) == 2)
        assert {who for who, _ in heard} == {"first", "second"}
        assert [message for _, message in heard] == [Message("news.today", b"body", {"X": "é ü"}, "answer.here")] * 2

    async def test_a_message_without_headers_comes_without_headers(self, bus: Bus) -> None:
        heard: list[Message] = []
        await bus.subscribe("a", heard.append)
        await bus.publish("a", b"1")
        await eventually(lambda: heard)
        assert heard == [Message("a", b"1", None, "")]

    async def test_messages_of_one_sender_come_in_order(self, broker: Broker) -> None:
        sender, hearer = await broker.connect(), await broker.connect()
        heard: list[bytes] = []
        await hearer.subscribe("a", lambda message: heard.append(message.data))
        for number in range(500):
            await sender.publish("a", b"%d" % number)
        await eventually(lambda: len(heard) == 500)
        assert heard == [b"%d" % number for number in range(500)]

    async def test_one_member_of_a_queue_group_hears_each_message(self, broker: Broker) -> None:
        buses = [await broker.connect() for _ in range(3)]
        heard: list[bytes] = []
        for bus in buses:
            await bus.subscribe("a", lambda message: heard.append(message.data), queue="group")
        for number in range(60):
            await buses[0].publish("a", b"%d" % number)
        await eventually(lambda: len(heard) >= 60)
        await buses[0].flush()
        assert sorted(heard) == sorted(b"%d" % number for number in range(60))

    async def test_nothing_is_heard_after_a_subscription_is_closed(self, bus: Bus) -> None:
        heard: list[Message] = []
        subscription = await bus.subscribe("a", heard.append)
        await bus.publish("a", b"1")
        await eventually(lambda: heard)
        await subscription.close()
        await subscription.close()
        await bus.publish("a", b"2")
        await bus.flush()
        assert [message.data for message in heard] == [b"1"]

    async def test_a_sink_that_raises_harms_nobody(self, bus: Bus) -> None:
        heard: list[Message] = []

        def sink(message: Message) -> None:
            heard.append(message)
            if message.data == b"bad":
                message_text = "a sink must not raise, and this one does"
                raise ValueError(message_text)

        if type(bus).__name__ == "MemoryBus":
            pytest.skip("the memory broker hands a sink's error to the loop, which is right for tests")
        await bus.subscribe("a", sink)
        await bus.publish("a", b"bad")
        await bus.publish("a", b"good")
        await eventually(lambda: len(heard) == 2)
        await bus.flush()

    async def test_a_request_gets_the_first_answer(self, broker: Broker) -> None:
        asker, server = await broker.connect(), await broker.connect()
        tasks: list[asyncio.Task[None]] = []

        def answer(message: Message) -> None:
            reply = server.publish(message.reply, message.data.upper(), headers={"Kind": "answer"})
            tasks.append(asyncio.get_running_loop().create_task(reply))

        await server.subscribe("ask", answer)
        found = await asker.request("ask", b"hello", headers={"X": "1"})
        assert found.data == b"HELLO"
        assert found.headers == {"Kind": "answer"}
        many = await asyncio.gather(*(asker.request("ask", b"%d" % number) for number in range(100)))
        assert [message.data for message in many] == [b"%d" % number for number in range(100)]
        await asyncio.gather(*tasks)

    async def test_a_request_that_nobody_hears_fails_at_once(self, bus: Bus) -> None:
        with pytest.raises(NoRespondersError):
            await bus.request("nobody.here", b"", timeout_s=30)

    async def test_a_request_that_nobody_answers_times_out(self, bus: Bus) -> None:
        await bus.subscribe("deaf", lambda _: None)
        with pytest.raises(BusTimeoutError):
            await bus.request("deaf", b"", timeout_s=0.05)

    async def test_nobody_answers_for_a_connection_that_is_gone(self, broker: Broker) -> None:
        asker, other = await broker.connect(), await broker.connect()

        def answer(message: Message) -> None:
            answers.append(asyncio.ensure_future(other.publish(message.reply)))

        answers: list[asyncio.Future[None]] = []
        await other.subscribe("cb.ping.w", answer)
        assert (await asker.request("cb.ping.w", timeout_s=5)).data == b""
        await other.close()

        async def nobody_listens() -> bool:
            # a question that overtakes the news of the end reaches a link that is closing, and is lost
            try:
                await asker.request("cb.ping.w", timeout_s=0.25)
            except (NoRespondersError, BusTimeoutError) as error:
                return isinstance(error, NoRespondersError)
            return False

        await eventually(nobody_listens)

    async def test_a_reconnect_that_was_asked_for_keeps_what_was_subscribed(self, broker: Broker) -> None:
        bus, other = await broker.connect(), await broker.connect()
        reconnects: list[float] = []
        heard: list[bytes] = []
        first_s = bus.connected_at
        bus.on_reconnect(lambda: reconnects.append(bus.connected_at))
        await bus.subscribe("a", lambda message: heard.append(message.data))
        await bus.reconnect()
        await eventually(lambda: reconnects and bus.is_connected)
        assert bus.connected_at > first_s
        await bus.flush()
        await other.publish("a", b"1")
        await eventually(lambda: heard == [b"1"])
        assert len(reconnects) == 1

    async def test_inboxes_are_unique_and_can_be_heard(self, bus: Bus) -> None:
        assert len({bus.inbox() for _ in range(100)}) == 100
        heard: list[Message] = []
        inbox = bus.inbox()
        await bus.subscribe(inbox, heard.append)
        await bus.publish(inbox, b"1")
        await eventually(lambda: heard)

    @pytest.mark.parametrize(
        "subject", ["", "a b", "a\r\nPUB b", "a\tb", "a\0", ".a", "a.", "a..b", "a.*", "a.>", "\ud800"]
    )
    async def test_a_subject_that_is_none_is_refused(self, bus: Bus, subject: str) -> None:
        with pytest.raises(InvalidNameError):
            await bus.publish(subject, b"")
        with pytest.raises(InvalidNameError):
            await bus.store(Write(subject, b""))
        with pytest.raises(InvalidNameError):
            await bus.request(subject, b"")

    @pytest.mark.parametrize("subject", ["", "a b", "a\r\nSUB b", "a..b", "a.>.b", "a.b>"])
    async def test_a_pattern_that_is_none_is_refused(self, bus: Bus, subject: str) -> None:
        with pytest.raises(InvalidNameError):
            await bus.subscribe(subject, lambda _: None)

    @pytest.mark.parametrize(
        "headers", [{"X": "a\r\nY: b"}, {"X": "a\nb"}, {"X": "\0"}, {"X\r\n": "a"}, {"X:": "a"}, {"": "a"}]
    )
    async def test_a_header_that_headers_cannot_carry_is_refused(self, bus: Bus, headers: dict[str, str]) -> None:
        await bus.create_stream(LOG)
        with pytest.raises(InvalidHeaderError):
            await bus.publish("a", b"", headers=headers)
        with pytest.raises(InvalidHeaderError):
            await bus.store(Write("l.a", b"", headers))
        with pytest.raises(InvalidHeaderError):
            await bus.store_batch([Write("l.a", b""), Write("l.b", b"", headers)])
        info = await bus.stream_info("L")
        assert info is not None
        assert info.messages == 0

    async def test_a_payload_over_the_limit_is_refused_and_the_connection_lives(self, bus: Bus) -> None:
        limit = bus.server.max_payload_bytes
        with pytest.raises(PayloadTooLargeError) as caught:
            await bus.publish("a", bytes(limit + 1))
        assert caught.value.limit_bytes == limit
        # The server counts the headers, and ends the connection of whoever does not.
        with pytest.raises(PayloadTooLargeError):
            await bus.publish("a", bytes(limit - 10), headers={"X": "1234567890"})
        await bus.publish("a", bytes(limit))
        await bus.flush()
        assert bus.is_connected

    async def test_after_closing_everything_says_so(self, broker: Broker) -> None:
        bus = await broker.connect()
        await bus.create_stream(LOG)
        await bus.close()
        await bus.close()
        assert not bus.is_connected
        calls = [
            bus.publish("a"),
            bus.flush(),
            bus.request("a"),
            bus.reconnect(),
            bus.store(Write("l.a", b"")),
            bus.store_batch([Write("l.a", b"")]),
            bus.stream_info("L"),
            bus.get_last("L", "l.a"),
            bus.ack(["$JS.ACK.W.c.1.1.1.1.1"]),
            bus.subscribe("a", lambda _: None),
        ]
        for call in calls:
            with pytest.raises(BusClosedError):
                await call

    async def test_closing_answers_who_still_waits(self, broker: Broker) -> None:
        bus = await broker.connect()
        await bus.subscribe("deaf", lambda _: None)
        waiting = asyncio.create_task(bus.request("deaf", b"", timeout_s=30))
        await bus.flush()
        await bus.close()
        with pytest.raises(BusClosedError):
            await waiting

    async def test_a_question_that_nobody_hears_is_answered_with_a_status(self, bus: Bus) -> None:
        heard: list[Message] = []
        inbox = bus.inbox()
        await bus.subscribe(inbox, heard.append)
        await bus.publish("nobody.there", b"?", reply=inbox)
        await eventually(lambda: heard)
        assert (heard[0].data, (heard[0].headers or {}).get(header.STATUS)) == (b"", header.NO_RESPONDERS)
