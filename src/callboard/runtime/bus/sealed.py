"""A bus that reaches nothing, for code that runs again on what was recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import NoReturn

from callboard.runtime.bus.base import (
    DEFAULT_TIMEOUT_S,
    Bus,
    ConsumerConfig,
    ConsumerInfo,
    Delivery,
    Message,
    PubAck,
    Pull,
    ServerInfo,
    Stored,
    StreamConfig,
    StreamInfo,
    Subscription,
    Tail,
    Write,
)
from callboard.runtime.bus.header import Headers
from callboard.runtime.errors import BusError, PermissionDeniedError


class SealedBus(Bus):
    """Refuses everything that would need a broker, and keeps what was tried; there is none behind it.

    A plain publish, which nobody confirms anyway, goes nowhere without an error.

    Attributes:
        tried: What was refused, in order: the method and what it was about.
        dropped: Subjects of plain publishes that went nowhere.
    """

    def __init__(self) -> None:
        """Begin with nothing tried."""
        self.tried: list[str] = []
        self.dropped: list[str] = []
        self._inboxes = 0

    def _refuse(self, what: str, about: str = "") -> NoReturn:
        self.tried.append(f"{what} {about}".strip())
        message = (
            f"{what} {about}: what runs again on its records reaches no broker; put what a turn reads and writes "
            "outside of its own state into a step"
        )
        raise PermissionDeniedError(message, subject=about)

    # --- state

    @property
    def is_connected(self) -> bool:
        """False."""
        return False

    @property
    def connected_at(self) -> float:
        """Never."""
        return 0.0

    @property
    def server(self) -> ServerInfo:
        """Nobody's."""
        return ServerInfo(name="sealed", version="0", jetstream=False)

    @property
    def is_guest(self) -> bool:
        """False."""
        return False

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Do nothing: it never connects."""

    async def reconnect(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    # --- plain subjects

    def inbox(self) -> str:
        """Return a subject that nobody answers on."""
        self._inboxes += 1
        return f"_INBOX.sealed.{self._inboxes}"

    async def publish(
        self,
        subject: str,
        data: bytes = b"",  # noqa: ARG002 - the port's signature
        *,
        headers: Headers | None = None,  # noqa: ARG002 - as above
        reply: str = "",  # noqa: ARG002 - as above
    ) -> None:
        """Drop it."""
        self.dropped.append(subject)

    async def subscribe(
        self,
        subject: str,
        sink: Callable[[Message], None],  # noqa: ARG002 - as above
        *,
        queue: str = "",  # noqa: ARG002 - as above
    ) -> Subscription:
        """Refuse."""
        self._refuse("subscribe", subject)

    async def request(
        self,
        subject: str,
        data: bytes = b"",  # noqa: ARG002 - as above
        *,
        headers: Headers | None = None,  # noqa: ARG002 - as above
        timeout_s: float = DEFAULT_TIMEOUT_S,  # noqa: ARG002 - as above
    ) -> Message:
        """Refuse."""
        self._refuse("request", subject)

    async def flush(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Do nothing: nothing waits to be sent."""

    # --- stored subjects

    async def store(self, write: Write, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:  # noqa: ARG002 - as above
        """Refuse."""
        self._refuse("store", write.subject)

    async def store_many(
        self,
        writes: Sequence[Write],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,  # noqa: ARG002 - as above
    ) -> list[PubAck | BusError]:
        """Refuse."""
        self._refuse("store", ", ".join(write.subject for write in writes))

    async def store_batch(
        self,
        writes: Sequence[Write],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,  # noqa: ARG002 - as above
    ) -> PubAck:
        """Refuse."""
        self._refuse("store", ", ".join(write.subject for write in writes))

    async def get_last(self, stream: str, subject: str, *, from_leader: bool = False) -> Stored | None:  # noqa: ARG002
        """Refuse."""
        self._refuse("read", f"{stream} {subject}")

    async def get_seq(self, stream: str, seq: int, *, from_leader: bool = False) -> Stored | None:  # noqa: ARG002
        """Refuse."""
        self._refuse("read", f"{stream} {seq}")

    async def get_next(self, stream: str, seq: int, subject: str, *, from_leader: bool = False) -> Stored | None:  # noqa: ARG002
        """Refuse."""
        self._refuse("read", f"{stream} {subject}")

    async def get_many(self, stream: str, subjects: Sequence[str], *, from_leader: bool = False) -> list[Stored]:  # noqa: ARG002
        """Refuse."""
        self._refuse("read", f"{stream} {', '.join(subjects)}")

    def read(
        self,
        stream: str,
        *,
        subjects: Sequence[str] = (),
        start_seq: int | None = None,  # noqa: ARG002 - as above
        start_time: datetime | None = None,  # noqa: ARG002 - as above
        follow: bool = False,  # noqa: ARG002 - as above
    ) -> AsyncIterator[Stored]:
        """Refuse."""
        self._refuse("read", f"{stream} {', '.join(subjects)}")

    async def tail(
        self,
        stream: str,
        subject: str,
        sink: Callable[[Stored], None],  # noqa: ARG002 - as above
        *,
        start_seq: int,  # noqa: ARG002 - as above
        on_gap: Callable[[str], None] | None = None,  # noqa: ARG002 - as above
    ) -> Tail:
        """Refuse."""
        self._refuse("read", f"{stream} {subject}")

    # --- work

    async def pull(self, stream: str, consumer: str, sink: Callable[[Delivery], None]) -> Pull:  # noqa: ARG002
        """Refuse."""
        self._refuse("pull", f"{stream} {consumer}")

    async def ack(self, tokens: Sequence[str], *, confirm: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:  # noqa: ARG002
        """Refuse."""
        self._refuse("ack")

    async def nak(self, token: str, *, delay_s: float) -> None:  # noqa: ARG002 - as above
        """Refuse."""
        self._refuse("nak")

    async def extend(self, tokens: Sequence[str]) -> None:  # noqa: ARG002 - as above
        """Refuse."""
        self._refuse("extend")

    async def term(self, token: str, reason: str) -> None:  # noqa: ARG002 - as above
        """Refuse."""
        self._refuse("term")

    # --- administration

    async def stream_info(self, name: str, *, with_damage: bool = False) -> StreamInfo | None:  # noqa: ARG002
        """Refuse."""
        self._refuse("stream info", name)

    async def stream_names(self) -> list[str]:
        """Refuse."""
        self._refuse("stream names")

    async def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Refuse."""
        self._refuse("create stream", config.name)

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Refuse."""
        self._refuse("update stream", config.name)

    async def delete_stream(self, name: str) -> bool:
        """Refuse."""
        self._refuse("delete stream", name)

    async def subject_counts(self, stream: str, subject: str = ">") -> dict[str, int]:
        """Refuse."""
        self._refuse("read", f"{stream} {subject}")

    async def purge(self, stream: str, *, subject: str | None = None, below_seq: int | None = None) -> int:  # noqa: ARG002
        """Refuse."""
        self._refuse("purge", f"{stream} {subject or ''}".strip())

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Refuse."""
        self._refuse("delete", f"{stream} {seq}")

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        """Refuse."""
        self._refuse("consumer info", f"{stream} {name}")

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        """Refuse."""
        self._refuse("consumers", stream)

    async def create_consumer(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Refuse."""
        self._refuse("create consumer", f"{stream} {config.name}")

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Refuse."""
        self._refuse("delete consumer", f"{stream} {name}")
