"""The in-memory adapter of the bus port: one connection to a ``MemoryBroker``.

For tests, demos and the deterministic simulation. Nothing outlives the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from functools import partial

from callboard.runtime.bus.base import (
    DEFAULT_TIMEOUT_S,
    MAX_BATCH,
    ConsumerConfig,
    ConsumerInfo,
    Delivery,
    Message,
    PubAck,
    Stored,
    StreamConfig,
    StreamInfo,
    Write,
)
from callboard.runtime.bus.check import check_filter
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.memory_broker import BrokerCore
from callboard.runtime.bus.memory_consumer import MemoryConsumer, parse_token
from callboard.runtime.bus.memory_link import MemoryLink
from callboard.runtime.bus.memory_pull import MemoryPull, MemorySubscription
from callboard.runtime.bus.memory_record import Record, freeze
from callboard.runtime.bus.memory_tail import MemoryTail
from callboard.runtime.errors import BusError, BusTimeoutError, InputError, NoRespondersError, NotFoundError

# A reader lets others run after this many messages.
_READ_BURST = 256


class MemoryBroker(BrokerCore):
    """A broker in this process: ``connect`` gives a ``Bus``, as often as there are parties to play."""

    _connected = 0

    def connect(self, *, name: str = "") -> MemoryBus:
        """Return a new connection; call it on the event loop that will use it."""
        self._connected += 1
        return MemoryBus(self, name=name or f"memory-{self._connected}", number=self._connected)


class MemoryBus(MemoryLink):
    """One connection to a ``MemoryBroker``; implements ``Bus``.

    Operations take effect at once and answer one loop turn later; sinks are called on a later turn, in order.
    """

    # --- plain subjects

    def inbox(self) -> str:
        """Return a new unique subject below this connection's inbox prefix."""
        self._inboxes += 1
        return f"_INBOX.{self.name.replace('.', '-')}.{self.number}.{self._inboxes}"

    async def publish(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        """Send without confirmation; while the link is cut it is buffered."""
        self._check(subject, data, headers)
        self._send(Message(subject, bytes(data), freeze(headers) or None, reply))

    async def subscribe(self, subject: str, sink: Callable[[Message], None], *, queue: str = "") -> MemorySubscription:
        """Hear ``subject``; with ``queue``, one member of the group hears each message."""
        self._check_open()
        check_filter(subject)
        subscription = MemorySubscription(self, subject, sink, queue=queue)
        self._parts.append(subscription)
        return subscription

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Message:
        """Publish and wait for the first answer."""
        self._check(subject, data, headers)
        answer: asyncio.Future[Message] = self._loop.create_future()
        inbox = self.inbox()
        subscription = await self.subscribe(
            inbox, lambda message: None if answer.done() else answer.set_result(message)
        )
        try:
            message = Message(subject, bytes(data), freeze(headers) or None, inbox)
            self.broker.run_due()
            if self._is_linked and not self.broker.publish(message):
                text = f"nobody listens on {subject}"
                raise NoRespondersError(text)
            return await self._within(answer, timeout_s, what=f"request to {subject}")
        finally:
            await subscription.close()

    async def flush(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait one round trip."""
        await self._ask(lambda: None, timeout_s=timeout_s, what="flush")

    # --- stored subjects

    async def store(self, write: Write, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store one message and wait for the broker's word."""
        self._check(write.subject, write.data, write.headers)
        return await self._ask(lambda: self.broker.store(write), timeout_s=timeout_s, what=f"store on {write.subject}")

    async def store_many(
        self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[PubAck | BusError]:
        """Store each message on its own; refusals are returned in place."""
        for write in writes:
            self._check(write.subject, write.data, write.headers)

        def store_one(write: Write) -> PubAck | BusError:
            try:
                return self.broker.store(write)
            except BusError as error:
                return error

        try:
            return await self._ask(
                lambda: [store_one(write) for write in writes], timeout_s=timeout_s, what="store of many"
            )
        except BusTimeoutError as error:
            return [error for _ in writes]

    async def store_batch(self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store 1 to 1,000 messages of one stream, all or none."""
        if not 0 < len(writes) <= MAX_BATCH:
            message = f"a batch takes 1 to {MAX_BATCH} messages (10199), this one has {len(writes)}"
            raise InputError(message)
        for write in writes:
            self._check(write.subject, write.data, write.headers)
        what = f"batch of {len(writes)}"
        return await self._ask(lambda: self.broker.store_batch(writes), timeout_s=timeout_s, what=what)

    async def get_last(self, stream: str, subject: str, *, from_leader: bool = False) -> Stored | None:  # noqa: ARG002 - there are no followers
        """Return the last message on ``subject`` or None."""
        return await self._ask(lambda: _shown(self.broker.stream(stream).last_record(subject)), what=f"get {subject}")

    async def get_seq(self, stream: str, seq: int, *, from_leader: bool = False) -> Stored | None:  # noqa: ARG002 - as above
        """Return the message with this sequence or None."""
        return await self._ask(lambda: _shown(self.broker.stream(stream).record(seq)), what=f"get {stream} {seq}")

    async def get_next(self, stream: str, seq: int, subject: str, *, from_leader: bool = False) -> Stored | None:  # noqa: ARG002 - as above
        """Return the first message on ``subject`` with a sequence of at least ``seq``, or None."""
        found = partial(self._next, stream, seq, subject)
        return await self._ask(found, what=f"get {subject}")

    async def get_many(self, stream: str, subjects: Sequence[str], *, from_leader: bool = False) -> list[Stored]:  # noqa: ARG002 - as above
        """Return the last message of every subject that matches one of ``subjects``, by sequence."""

        def collect() -> list[Stored]:
            found = self.broker.stream(stream)
            names = {name for pattern in subjects for name in found.subjects(pattern)}
            records = [record for name in names if (record := found.last_record(name))]
            return [record.stored() for record in sorted(records, key=lambda record: record.seq)]

        return await self._ask(collect, what=f"get {' '.join(subjects)}")

    def read(
        self,
        stream: str,
        *,
        subjects: Sequence[str] = (),
        start_seq: int | None = None,
        start_time: datetime | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Stored]:
        """Read a stream in order; ends at the end it had when called, unless ``follow``."""
        self._check_open()
        self.broker.run_due()
        end = 0
        if stream in self.broker.stream_names():
            end = self.broker.stream(stream).last_seq
        return self._read(stream, tuple(subjects), start_seq, start_time, None if follow else end)

    async def tail(
        self,
        stream: str,
        subject: str,
        sink: Callable[[Stored], None],
        *,
        start_seq: int,
        on_gap: Callable[[str], None] | None = None,
    ) -> MemoryTail:
        """Hear every stored message on ``subject`` from ``start_seq`` on."""
        check_filter(subject)
        await self._ask(lambda: self.broker.stream(stream), what="tail")
        tail = MemoryTail(self, stream, subject, sink, start_seq=start_seq, on_gap=on_gap)
        self._parts.append(tail)
        return tail

    # --- work

    async def pull(self, stream: str, consumer: str, sink: Callable[[Delivery], None]) -> MemoryPull:
        """Open a standing pull with no credit."""
        await self._ask(lambda: self._existing(stream, consumer), what="pull")
        pull = MemoryPull(self, stream, consumer, sink)
        self._parts.append(pull)
        return pull

    async def ack(self, tokens: Sequence[str], *, confirm: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove deliveries from the work queue."""

        def settle() -> None:
            for token in tokens:
                held = self.broker.holder(token)
                if held is not None:
                    held[0].settle(held[1])
                elif confirm:
                    message = "an ack was not confirmed: its consumer is gone"
                    raise BusTimeoutError(message)

        if confirm:
            await self._ask(settle, timeout_s=timeout_s, what=f"ack {' '.join(map(_named, tokens))}")
        else:
            self._tell(settle, what=f"ack {' '.join(map(_named, tokens))}")

    async def nak(self, token: str, *, delay_s: float) -> None:
        """Give a delivery back, to be handed out again after ``delay_s``."""
        delay_s = max(0.001, delay_s)
        give_back = partial(self._for_holder, token, lambda consumer, seq: consumer.give_back(seq, delay_s))
        self._tell(give_back, what=f"nak {_named(token)} {delay_s:.3f} s")

    async def extend(self, tokens: Sequence[str]) -> None:
        """Keep deliveries ours for another ``ack_wait`` each."""

        def extend_all() -> None:
            for token in tokens:
                self._for_holder(token, lambda consumer, seq: consumer.extend(seq))

        self._tell(extend_all, what=f"extend {' '.join(map(_named, tokens))}")

    async def term(self, token: str, reason: str) -> None:  # noqa: ARG002 - there is no advisory to carry it
        """Remove a delivery for good."""
        self._tell(
            partial(self._for_holder, token, lambda consumer, seq: consumer.settle(seq)), what=f"term {_named(token)}"
        )

    # --- administration

    async def stream_info(
        self,
        name: str,
        *,
        with_damage: bool = False,  # noqa: ARG002 - memory has none
    ) -> StreamInfo | None:
        """Return a stream's settings and state, or None when it does not exist."""

        def look() -> StreamInfo | None:
            return self.broker.stream(name).info() if name in self.broker.stream_names() else None

        return await self._ask(look, what="stream info")

    async def stream_names(self) -> list[str]:
        """Return the names of all streams, sorted."""
        return await self._ask(self.broker.stream_names, what="stream names")

    async def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Create it; succeeds when it exists with the same settings."""
        return await self._ask(lambda: self.broker.create_stream(config), what="stream create")

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Change settings in place."""
        return await self._ask(lambda: self.broker.update_stream(config), what="stream update")

    async def delete_stream(self, name: str) -> bool:
        """Delete a stream with all it holds; False when there was none."""
        return await self._ask(lambda: self.broker.delete_stream(name), what="stream delete")

    async def subject_counts(self, stream: str, subject: str = ">") -> dict[str, int]:
        """Return how many messages each matching subject holds."""

        def count() -> dict[str, int]:
            found = self.broker.stream(stream)
            return {name: found.count(name) for name in sorted(found.subjects(subject))}

        return await self._ask(count, what="subject counts")

    async def purge(self, stream: str, *, subject: str | None = None, below_seq: int | None = None) -> int:
        """Delete messages, all or those on ``subject`` and before ``below_seq``; return how many."""
        return await self._ask(lambda: self.broker.purge(stream, subject=subject, below_seq=below_seq), what="purge")

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Delete one message; False when there was none."""
        return await self._ask(lambda: self.broker.delete_message(stream, seq), what="message delete")

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        """Return a consumer's settings and state, or None."""

        def look() -> ConsumerInfo | None:
            consumer = self.broker.consumer(stream, name)
            return consumer.info() if consumer else None

        return await self._ask(look, what="consumer info")

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        """Return all durable consumers of a stream."""

        def collect() -> list[ConsumerInfo]:
            return [consumer.info() for _, consumer in sorted(self.broker.stream(stream).consumers.items())]

        return await self._ask(collect, what="consumers")

    async def create_consumer(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Create or update a durable consumer."""
        return await self._ask(lambda: self.broker.create_consumer(stream, config), what="consumer create")

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Delete a consumer; False when there was none."""
        return await self._ask(lambda: self.broker.delete_consumer(stream, name), what="consumer delete")

    # --- inside

    async def _read(
        self,
        stream: str,
        subjects: tuple[str, ...],
        start_seq: int | None,
        start_time: datetime | None,
        end: int | None,
    ) -> AsyncIterator[Stored]:
        log = self.broker.stream(stream)
        seq = start_seq or 1
        if start_time is not None:
            seq = max(seq, log.first_at(start_time))
        wake = asyncio.Event()
        log.on_append.append(wake.set)
        self._wakes[wake.set] = None
        try:
            while end is None or seq <= end:
                record = log.next_record(seq, subjects) if self._is_linked else None
                if record is not None and (end is None or record.seq <= end):
                    seq = record.seq + 1
                    yield record.stored()
                    if seq % _READ_BURST:
                        continue
                elif end is not None and self._is_linked:
                    return
                else:
                    wake.clear()
                    await wake.wait()
                self._check_open()
                self.broker.run_due()
                if self.broker.stream(stream) is not log:
                    message = f"stream {stream} was deleted while it was read"
                    raise NotFoundError(message)
                await self.broker.clock.sleep(0)
        finally:
            log.on_append.remove(wake.set)
            self._wakes.pop(wake.set, None)

    def _next(self, stream: str, seq: int, subject: str) -> Stored | None:
        return _shown(self.broker.stream(stream).next_record(seq, (subject,)))

    def _existing(self, stream: str, consumer: str) -> None:
        self.broker.stream(stream)
        if self.broker.consumer(stream, consumer) is None:
            message = f"consumer {consumer} of stream {stream} does not exist (10014)"
            raise NotFoundError(message)

    def _for_holder(self, token: str, act: Callable[[MemoryConsumer, int], None]) -> None:
        held = self.broker.holder(token)
        if held is not None:
            act(*held)


def _shown(record: Record | None) -> Stored | None:
    return record.stored() if record else None


def _named(token: str) -> str:
    """Return sequence and delivery count of a token, for people."""
    found = token.split(".")
    return f"{found[5]}#{found[4]}" if parse_token(token) else token
