"""The bus port: what the runtime asks of a broker. Two adapters implement it, ``jetstream`` and ``memory``.

Contract in short. Sinks are plain functions called on the event loop; they must not block and must not raise. Every
method that awaits the broker takes ``timeout_s`` and raises ``BusTimeoutError`` when the answer stays away, in which
case the outcome is unknown. All methods raise ``BusClosedError`` after ``close``. Foreign errors never leak.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.standing import Pull, Subscription, Tail
from callboard.runtime.errors import BusError

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "MAX_BATCH",
    "Bus",
    "ConsumerConfig",
    "ConsumerInfo",
    "Delivery",
    "KvEntry",
    "Message",
    "PubAck",
    "Pull",
    "ServerInfo",
    "Source",
    "Stored",
    "StreamConfig",
    "StreamInfo",
    "Subscription",
    "Tail",
    "Write",
]

DEFAULT_TIMEOUT_S = 5.0
MAX_BATCH = 1000


class Message(Struct, frozen=True, gc=False):
    """A message from a plain (unstored) subject."""

    subject: str
    data: bytes
    headers: Headers | None = None
    reply: str = ""


class Stored(Struct, frozen=True):
    """A message read back from a stream."""

    subject: str
    data: bytes
    seq: int
    time: datetime
    headers: Headers | None = None


class Delivery(Struct, frozen=True, gc=False):
    """A message handed to us by a durable consumer; ours until settled or until ``ack_wait`` passes unextended.

    Attributes:
        token: What settles it; opaque.
        seq: Its sequence in the stream.
        delivered: How often the broker has handed it out, this time included; 1 is the first.
        pending: Messages the consumer still had waiting behind it.
        time: When it was stored.
    """

    subject: str
    data: bytes
    headers: Headers | None
    token: str
    seq: int
    delivered: int
    pending: int
    time_ns: int


class Write(Struct, frozen=True, gc=False):
    """One message to be stored. ``headers`` carry the conditions (see ``header.build``)."""

    subject: str
    data: bytes
    headers: Headers | None = None
    again: bool = False  # it, or the batch that it begins, may come twice: the second is refused, and its sender looks


class PubAck(Struct, frozen=True, gc=False):
    """The broker's word that a write is stored.

    Attributes:
        seq: Its sequence; of the last message for a batch.
        is_duplicate: True when the message id had been seen and nothing was stored again.
        count: Messages in the batch, 1 otherwise.
    """

    stream: str
    seq: int
    is_duplicate: bool = False
    count: int = 1


class Source(Struct, frozen=True):
    """A stream that another one copies from, limited to ``filters`` (empty: all)."""

    name: str
    filters: tuple[str, ...] = ()


class StreamConfig(Struct, frozen=True, kw_only=True):
    """Settings of a stream, in our units; the adapter speaks the broker's. -1 and 0 s mean unlimited."""

    name: str
    subjects: tuple[str, ...] = ()
    retention: Literal["limits", "workqueue"] = "limits"
    storage: Literal["file", "memory"] = "file"
    replicas: int = 1
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    max_age_s: float = 0.0
    max_bytes: int = -1
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    max_msg_bytes: int = -1
    max_consumers: int = -1
    duplicate_window_s: float = 120.0
    allow_atomic: bool = False
    allow_direct: bool = False
    allow_rollup: bool = False
    allow_msg_ttl: bool = False
    allow_schedules: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    persist_async: bool = False
    sources: tuple[Source, ...] = ()
    subject_transform: tuple[str, str] | None = None


class StreamInfo(Struct, frozen=True, kw_only=True):
    """Settings and state of a stream, as its leader told them.

    Attributes:
        leader: Name of the leading server, "" for a single server, None when the stream has no leader now.
        lagging: Followers that are away or behind, each with how: ``n2 is offline``.
        deleted: Sequences between first and last that hold no message any more.
        lost_bytes: What the server found damaged when it last opened the stream, and dropped; None when not asked.
    """

    config: StreamConfig
    messages: int
    size_bytes: int
    first_seq: int
    last_seq: int
    consumers: int
    first_time: datetime | None = None
    leader: str | None = ""
    lagging: tuple[str, ...] = ()
    deleted: int = 0
    lost_bytes: int | None = None


class ConsumerConfig(Struct, frozen=True, kw_only=True):
    """Settings of a durable pull consumer with explicit acks."""

    name: str
    filter_subject: str
    ack_wait_s: float = 4.0
    max_ack_pending: int = 1000
    max_deliver: int = -1


class ConsumerInfo(Struct, frozen=True, kw_only=True):
    """Settings and state of a consumer: ``pending`` wait, ``ack_pending`` are handed out and unsettled.

    Attributes:
        deliveries: Messages handed out so far, each time counted.
        delivered_seq: Sequence of the newest message that was handed out.
    """

    stream: str
    config: ConsumerConfig
    pending: int
    ack_pending: int
    redelivered: int
    deliveries: int = 0
    delivered_seq: int = 0


class ServerInfo(Struct, frozen=True, kw_only=True):
    """What the connected server says of itself. ``jetstream`` is False where streams are switched off."""

    name: str
    version: str
    cluster: str = ""
    url: str = ""
    max_payload_bytes: int = 1 << 20
    jetstream: bool = True


class KvEntry(Struct, frozen=True):
    """A key of a bucket; ``data`` is None when it was deleted or expired."""

    key: str
    data: bytes | None
    revision: int
    time: datetime


class Bus(Protocol):
    """One connection to the broker. Not shared between threads; a second thread opens its own."""

    # --- state

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        ...

    @property
    def connected_at(self) -> float:
        """Monotonic seconds of the last connect or reconnect."""
        ...

    @property
    def server(self) -> ServerInfo:
        """The server we are (or were last) connected to."""
        ...

    @property
    def is_guest(self) -> bool:
        """Whether our user may only hand in mail and delayed tasks, for a worker to store them."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop after each reconnect."""
        ...

    async def reconnect(self) -> None:
        """Drop the link and connect anew, to another server where there is one. Returns at once; nothing when down.

        All that a lost link brings happens: pending calls end with an unknown outcome, subscriptions miss messages.
        """
        ...

    async def close(self) -> None:
        """Flush what can be flushed within a second, then disconnect. Closing twice is harmless."""
        ...

    # --- plain subjects

    def inbox(self) -> str:
        """Return a new unique subject below this connection's inbox prefix."""
        ...

    async def publish(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        """Send without confirmation. During a reconnect it is buffered, up to the client's limit.

        With a ``reply`` subject, and nobody to hear the message, an empty one with the header ``Status: 503`` comes
        there at once.

        Raises:
            PayloadTooLargeError: If it is over the server's limit.
            BackpressureError: If the reconnect buffer is full.
        """
        ...

    async def subscribe(self, subject: str, sink: Callable[[Message], None], *, queue: str = "") -> Subscription:
        """Hear ``subject`` (wildcards allowed), also after reconnects; with ``queue``, one of the group hears each."""
        ...

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Message:
        """Publish and wait for the first answer.

        Raises:
            NoRespondersError: At once, if nobody listens.
            BusTimeoutError: If nobody answers in time.
        """
        ...

    async def flush(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until the server has all sent so far, one round trip; raise PermissionDeniedError if it refuses."""
        ...

    # --- stored subjects

    async def store(self, write: Write, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store one message and wait for the broker's word. One round trip.

        Raises:
            ConflictError: If an expected sequence was not the last, or a write-once subject is taken.
            BackpressureError: If the stream is full.
            NoRespondersError: If no stream takes the subject.
            PayloadTooLargeError: If it is over the server's or the stream's limit.
            InvalidHeaderError: If a header holds CR, LF or NUL.
            BusTimeoutError: If the outcome is unknown.
        """
        ...

    async def store_many(
        self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[PubAck | BusError]:
        """Store each message on its own, pipelined; answers stand in the order of ``writes``.

        Refusals are returned, not raised; an answer that stays away is a ``BusTimeoutError`` in its place. One
        socket write, one round trip, one fsync a message where the server syncs always.
        """
        ...

    async def store_batch(self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store 1 to 1,000 messages of one stream, all or none. One round trip, four fsyncs whatever the size.

        Raises:
            ConflictError: If one was refused; none is stored. ``last_seq`` is the standing write's, where named.
            BackpressureError: If the stream is full or has too many open batches.
            BusTimeoutError: If the outcome is unknown.
        """
        ...

    async def get_last(self, stream: str, subject: str, *, from_leader: bool = False) -> Stored | None:
        """Return the last message on ``subject`` or None. One round trip.

        Args:
            stream: Where to look.
            subject: Wildcards allowed.
            from_leader: Ask the stream's leader, which knows every acknowledged write; a direct get may be answered by
                a follower that is behind. Costs one more request the first time, to learn of followers.
        """
        ...

    async def get_seq(self, stream: str, seq: int, *, from_leader: bool = False) -> Stored | None:
        """Return the message with this sequence or None; ``from_leader`` as in ``get_last``."""
        ...

    async def get_next(self, stream: str, seq: int, subject: str, *, from_leader: bool = False) -> Stored | None:
        """Return the first message on ``subject`` (wildcards allowed) with a sequence of at least ``seq``, or None.

        ``from_leader`` as in ``get_last``: without it None may mean that a follower is behind.
        """
        ...

    async def get_many(self, stream: str, subjects: Sequence[str], *, from_leader: bool = False) -> list[Stored]:
        """Return the last message of every subject that matches one of ``subjects`` (wildcards allowed), by sequence.

        One request per 500 subjects; ``from_leader``, where there are followers, one a subject, pipelined.
        """
        ...

    def read(
        self,
        stream: str,
        *,
        subjects: Sequence[str] = (),
        start_seq: int | None = None,
        start_time: datetime | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Stored]:
        """Read a stream in order, without gaps across reconnects, to the end it had when called or on (``follow``).

        Raises:
            NotFoundError: If the stream does not exist.
        """
        ...

    async def tail(
        self,
        stream: str,
        subject: str,
        sink: Callable[[Stored], None],
        *,
        start_seq: int,
        on_gap: Callable[[str], None] | None = None,
    ) -> Tail:
        """Hear every stored message on ``subject`` (wildcards allowed) from ``start_seq`` on, in order and for ever.

        None is left out and none comes twice, whatever breaks on the way; what was deleted before it was delivered does
        not come. It costs the broker a consumer without acks in memory, which it drops 30 s after we are gone. Two
        round trips to begin. Not for a work queue, which suffers no second consumer.

        Args:
            stream: Where to listen.
            subject: The stored subject, after the stream's transform.
            sink: Gets each message, on the loop, as it comes from the wire.
            start_seq: The first sequence that is wanted. One beyond the stream's end and the next is a ``problem``.
            on_gap: Told the reason whenever the tail broke and is opened again, and when a ``start_seq`` is found to
                be beyond the end; on the loop, for logs and counts.

        Raises:
            NotFoundError: If the stream does not exist.
        """
        ...

    # --- work

    async def pull(self, stream: str, consumer: str, sink: Callable[[Delivery], None]) -> Pull:
        """Open a standing pull with no credit.

        Raises:
            NotFoundError: If the stream or consumer does not exist.
        """
        ...

    async def ack(self, tokens: Sequence[str], *, confirm: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove deliveries from the work queue.

        With ``confirm``, wait until the server has taken each (pipelined). A stale token is accepted by the broker:
        the caller must know that the work is committed.

        Raises:
            BusTimeoutError: If a confirmation stays away; abandon the rest and let redelivery repair it.
        """
        ...

    async def nak(self, token: str, *, delay_s: float) -> None:
        """Give a delivery back, to be handed out again after ``delay_s`` (at least 0.001; a bare nak spins)."""
        ...

    async def extend(self, tokens: Sequence[str]) -> None:
        """Keep deliveries ours for another ``ack_wait`` each."""
        ...

    async def term(self, token: str, reason: str) -> None:
        """Remove a delivery for good with a reason on one line; its dead letter must be stored before."""
        ...

    # --- administration

    async def stream_info(self, name: str, *, with_damage: bool = False) -> StreamInfo | None:
        """Return a stream's settings and state, or None when it does not exist.

        ``with_damage`` asks for ``lost_bytes`` too: one request more.
        """
        ...

    async def stream_names(self) -> list[str]:
        """Return the names of all streams of the account, sorted."""
        ...

    async def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Create it; succeeds when it exists with the same settings.

        Raises:
            TopologyError: If one with other settings exists, or the server refuses a setting.
        """
        ...

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Change settings in place.

        Raises:
            TopologyError: If the server refuses the change.
            NotFoundError: If it does not exist.
        """
        ...

    async def delete_stream(self, name: str) -> bool:
        """Delete a stream with all it holds; False when there was none."""
        ...

    async def subject_counts(self, stream: str, subject: str = ">") -> dict[str, int]:
        """Return how many messages each matching subject holds."""
        ...

    async def purge(self, stream: str, *, subject: str | None = None, below_seq: int | None = None) -> int:
        """Delete messages, all or those on ``subject`` and before ``below_seq``; return how many."""
        ...

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Delete one message; False when there was none."""
        ...

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        """Return a consumer's settings and state, or None."""
        ...

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        """Return all durable consumers of a stream."""
        ...

    async def create_consumer(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Create or update a durable consumer.

        Raises:
            TopologyError: If the server refuses it.
            NotFoundError: If the stream does not exist.
        """
        ...

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Delete a consumer; False when there was none."""
        ...
