"""The broker behind the in-memory adapter: streams, plain subjects and the clock that drives them.

It behaves as the real one does where the runtime can tell: sequences, conditions, dedup, redelivery, expiry, schedules.
It has no threads and reads no time but its clock's, so that a simulation with a fake clock repeats exactly. All its
connections must live on one event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from callboard.runtime.bus import header
from callboard.runtime.bus.base import ConsumerConfig, ConsumerInfo, Message, PubAck, StreamConfig, StreamInfo, Write
from callboard.runtime.bus.check import changed_settings, check_name
from callboard.runtime.bus.memory_consumer import MemoryConsumer, Taker, parse_token
from callboard.runtime.bus.memory_stream import MemoryStream
from callboard.runtime.bus.memory_timer import Timers
from callboard.runtime.bus.pattern import matches, overlaps
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import (
    BackpressureError,
    BusError,
    ConflictError,
    InputError,
    NoRespondersError,
    NotFoundError,
    TopologyError,
)

MAX_PAYLOAD_BYTES = 1 << 20
_FIXED = ("retention", "storage", "max_consumers")
_ONE_WAY = ("deny_delete", "deny_purge", "allow_msg_ttl", "allow_schedules")


@dataclass(eq=False)
class Interest:
    """A plain subscription; ``post`` carries a message to its sink on a later loop turn."""

    subject: str
    queue: str
    post: Callable[[Message], None]
    is_reachable: Callable[[], bool] = field(default=lambda: True)


class BrokerCore:
    """Streams and subscriptions in one process; ``memory.MemoryBroker`` adds the connections."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        """Start empty; nothing runs until the first ``join``."""
        self.clock = clock
        self._timers = Timers(clock)
        self._streams: dict[str, MemoryStream] = {}
        self._interests: list[Interest] = []
        self._queue_turns: Counter[tuple[str, str]] = Counter()
        self._pulls: list[tuple[str, str, Taker]] = []
        self._watchers: list[tuple[str, Callable[[], None]]] = []
        self._connections = 0

    def join(self) -> None:
        """Count a connection; the first starts the clock-driven events."""
        self._connections += 1
        self._timers.start()

    async def leave(self) -> None:
        """Take back one ``join``; the last stops the clock-driven events."""
        self._connections -= 1
        if self._connections == 0:
            await self._timers.stop()

    def run_due(self) -> None:
        """Let everything happen that is due by now."""
        self._timers.run_due()

    # --- plain subjects

    def subscribe(self, interest: Interest) -> None:
        """Add a subscription."""
        self._interests.append(interest)

    def unsubscribe(self, interest: Interest) -> None:
        """Remove a subscription; harmless when it is gone."""
        if interest in self._interests:
            self._interests.remove(interest)

    def publish(self, message: Message) -> bool:
        """Route a message to subscribers and to the stream that takes its subject; return whether anybody did."""
        is_heard = self.route(message)
        stream = self._stream_of(message.subject)
        if stream is None:
            if message.reply and not is_heard:
                self.route(Message(message.reply, b"", {header.STATUS: header.NO_RESPONDERS}))
            return is_heard
        answer: dict[str, object]
        try:
            ack = stream.store(Write(message.subject, message.data, message.headers))
        except (BusError, InputError) as error:
            answer = {"error": {"code": _status(error), "description": str(error)}, "stream": stream.name, "seq": 0}
        else:
            answer = {"stream": ack.stream, "seq": ack.seq}
            if ack.is_duplicate:
                answer["duplicate"] = True
        if message.reply:
            self.route(Message(message.reply, msgspec.json.encode(answer)))
        return True

    # --- stored subjects

    def store(self, write: Write) -> PubAck:
        """Store one message; subscribers of its subject hear it too, stored or refused."""
        stream = self._taking(write.subject)
        self.route(Message(write.subject, bytes(write.data), write.headers))
        return stream.store(write)

    def store_batch(self, writes: Sequence[Write]) -> PubAck:
        """Store all messages, of one stream, or none."""
        streams = {self._taking(write.subject).name for write in writes}
        for write in writes:
            self.route(Message(write.subject, bytes(write.data), write.headers))
        if len(streams) != 1:
            message = f"a batch goes to one stream (10176), this one to {', '.join(sorted(streams))}"
            raise BusError(message)
        return self._streams[streams.pop()].store_batch(writes)

    def stream(self, name: str) -> MemoryStream:
        """Return a stream.

        Raises:
            NotFoundError: If it does not exist.
        """
        found = self._streams.get(name)
        if found is None:
            message = f"stream {name} does not exist (10059)"
            raise NotFoundError(message)
        return found

    def stream_names(self) -> list[str]:
        """Return the names of all streams, sorted."""
        return sorted(self._streams)

    def stores(self, subject: str) -> bool:
        """Return whether a stream takes ``subject``."""
        return self._stream_of(subject) is not None

    def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Create a stream; succeeds when it exists with the same settings."""
        check_name(config.name, what="stream")
        wanted, config = config, self._checked(config)
        found = self._streams.get(config.name)
        if found is not None:
            if found.config != config:
                changed = "; ".join(changed_settings(config, found.config))
                message = f"stream {config.name} exists with other settings (10058): {changed}"
                raise TopologyError(message)
            return found.info()
        stream = MemoryStream(config, clock=self.clock, timers=self._timers)
        self._streams[config.name] = stream
        stream.on_append += [wake for name, wake in self._watchers if name == config.name]
        self._link(stream)
        # As the real adapter does, which reads back what the server has made of its wishes.
        if changed_settings(wanted, config):
            changed = "; ".join(changed_settings(wanted, config))
            message = f"the server took stream {config.name} with other settings than asked: {changed}"
            raise TopologyError(message)
        return stream.info()

    def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Change settings in place."""
        stream = self.stream(config.name)
        config = self._checked(config)
        for name in _FIXED:
            if getattr(stream.config, name) != getattr(config, name):
                message = f"stream {config.name}: {name} cannot be changed (10052)"
                raise TopologyError(message)
        for name in _ONE_WAY:
            if getattr(stream.config, name) and not getattr(config, name):
                message = f"stream {config.name}: {name} cannot be switched off (10052)"
                raise TopologyError(message)
        stream.reconfigure(config)
        self._link(stream)
        return stream.info()

    def delete_stream(self, name: str) -> bool:
        """Delete a stream with its consumers; False when there was none."""
        stream = self._streams.pop(name, None)
        if stream is None:
            return False
        for other in self._streams.values():
            if stream in other.copiers:
                other.copiers.remove(stream)
        # Timers left behind find nothing; readers wake and find it gone.
        stream.consumers.clear()
        stream.purge(subject=None, below_seq=None)
        for wake in list(stream.on_append):
            wake()
        return True

    def purge(self, name: str, *, subject: str | None, below_seq: int | None) -> int:
        """Delete messages; return how many."""
        stream = self.stream(name)
        if stream.config.deny_purge:
            message = f"purge is not permitted (10110) in {name}"
            raise BusError(message)
        return stream.purge(subject=subject, below_seq=below_seq)

    def delete_message(self, name: str, seq: int) -> bool:
        """Delete one message; False when there was none."""
        stream = self.stream(name)
        if stream.config.deny_delete:
            message = f"message delete is not permitted (10057) in {name}"
            raise BusError(message)
        return stream.remove(seq)

    # --- consumers and their pulls

    def consumer(self, stream: str, name: str) -> MemoryConsumer | None:
        """Return a consumer, or None when it or its stream does not exist."""
        found = self._streams.get(stream)
        return found.consumers.get(name) if found else None

    def create_consumer(self, stream_name: str, config: ConsumerConfig) -> ConsumerInfo:
        """Create or update a durable consumer; pulls that were left without one go on."""
        stream = self.stream(stream_name)
        check_name(config.name, what="consumer")
        consumer = stream.consumers.get(config.name)
        if stream.is_workqueue:
            _check_disjoint(stream, config)
        if consumer is not None:
            consumer.config = config
            consumer.pump()
            return consumer.info()
        if 0 <= stream.config.max_consumers <= len(stream.consumers):
            message = f"maximum consumers limit reached (10026) in {stream_name}"
            raise TopologyError(message)
        consumer = MemoryConsumer(stream, config, clock=self.clock, timers=self._timers)
        stream.consumers[config.name] = consumer
        for pulled_stream, pulled_name, taker in self._pulls:
            if (pulled_stream, pulled_name) == (stream_name, config.name):
                consumer.attach(taker)
        return consumer.info()

    def delete_consumer(self, stream_name: str, name: str) -> bool:
        """Delete a consumer; False when there was none."""
        stream = self._streams.get(stream_name)
        return stream is not None and stream.consumers.pop(name, None) is not None

    def attach(self, stream: str, name: str, taker: Taker) -> None:
        """Let a pull take from a consumer, now and whenever that is created again."""
        if not any(taker is known for _, _, known in self._pulls):
            self._pulls.append((stream, name, taker))
        consumer = self.consumer(stream, name)
        if consumer is not None:
            consumer.attach(taker)

    def detach(self, taker: Taker) -> None:
        """Forget a pull."""
        for stream, name, known in self._pulls:
            consumer = self.consumer(stream, name)
            if known is taker and consumer is not None:
                consumer.detach(taker)
        self._pulls = [entry for entry in self._pulls if entry[2] is not taker]

    def holder(self, token: str) -> tuple[MemoryConsumer, int] | None:
        """Return the consumer and sequence that an ack token names, or None when that consumer is gone."""
        parsed = parse_token(token)
        consumer = self.consumer(parsed[0], parsed[1]) if parsed else None
        return (consumer, parsed[2]) if parsed and consumer else None

    def watch(self, stream: str, wake: Callable[[], None]) -> None:
        """Call ``wake`` after every write to a stream, now and whenever that is created again."""
        self._watchers.append((stream, wake))
        if stream in self._streams:
            self._streams[stream].on_append.append(wake)

    def unwatch(self, stream: str, wake: Callable[[], None]) -> None:
        """Take back one ``watch``; harmless when it was taken back."""
        self._watchers = [known for known in self._watchers if known != (stream, wake)]
        if stream in self._streams and wake in self._streams[stream].on_append:
            self._streams[stream].on_append.remove(wake)

    # --- inside

    def route(self, message: Message) -> bool:
        """Hand a message to subscribers alone; return whether anybody heard it."""
        groups: dict[tuple[str, str], list[Interest]] = {}
        is_heard = False
        for interest in list(self._interests):
            if not interest.is_reachable() or not matches(interest.subject, message.subject):
                continue
            is_heard = True
            if interest.queue:
                groups.setdefault((interest.subject, interest.queue), []).append(interest)
            else:
                interest.post(message)
        for group, members in groups.items():
            # In turn, where the real broker draws lots: a simulation must repeat.
            members[self._queue_turns[group] % len(members)].post(message)
            self._queue_turns[group] += 1
        return is_heard

    def _stream_of(self, subject: str) -> MemoryStream | None:
        for stream in self._streams.values():
            if any(matches(pattern, subject) for pattern in stream.config.subjects):
                return stream
        return None

    def _taking(self, subject: str) -> MemoryStream:
        stream = self._stream_of(subject)
        if stream is None:
            message = f"no stream stores {subject}: create the streams first"
            raise NoRespondersError(message)
        return stream

    def _checked(self, config: StreamConfig) -> StreamConfig:
        if config.allow_schedules:
            if config.sources:
                message = f"stream {config.name}: schedules do not go with sources (10187)"
                raise TopologyError(message)
            if config.discard == "new":
                # A schedule that cannot fire into a full stream would be stuck.
                message = f"stream {config.name}: schedules do not go with discard new (10052)"
                raise TopologyError(message)
            # The real broker does this silently.
            config = replace(config, deny_purge=False, allow_rollup=True)
        if config.deny_purge and config.allow_rollup:
            message = f"stream {config.name}: roll-ups require the purge permission (10052)"
            raise TopologyError(message)
        if config.allow_atomic and config.persist_async:
            message = f"stream {config.name}: atomic batches do not go with async persistence (10052)"
            raise TopologyError(message)
        for other in self._streams.values():
            if other.name != config.name and _has_overlap(config.subjects, other.config.subjects):
                message = f"subjects of {config.name} overlap with stream {other.name} (10065)"
                raise TopologyError(message)
        if config.subjects or config.sources:
            return config
        return replace(config, subjects=(config.name,))

    def _link(self, stream: MemoryStream) -> None:
        wanted = {source.name for source in stream.config.sources}
        for other in self._streams.values():
            if stream in other.copiers and other.name not in wanted:
                other.copiers.remove(stream)
            if other.name in wanted:
                if stream not in other.copiers:
                    other.copiers.append(stream)
                stream.copy_from(other)
            if stream.name in {source.name for source in other.config.sources} and other not in stream.copiers:
                stream.copiers.append(other)


def _has_overlap(left: Sequence[str], right: Sequence[str]) -> bool:
    return any(overlaps(mine, other) for mine in left for other in right)


def _check_disjoint(stream: MemoryStream, config: ConsumerConfig) -> None:
    for other in stream.consumers.values():
        if other.config.name != config.name and overlaps(other.config.filter_subject, config.filter_subject):
            message = f"filtered consumer not unique on workqueue stream (10100): {config.name} and {other.config.name}"
            raise TopologyError(message)


def _status(error: Exception) -> int:
    return 503 if isinstance(error, (BackpressureError, ConflictError)) else 400
