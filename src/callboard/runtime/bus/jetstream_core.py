"""Plain subjects on NATS: publish, subscribe, request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S, Message, Subscription
from callboard.runtime.bus.check import check_filter, check_headers, check_name, check_size, check_subject
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.jetstream_call import Calls
from callboard.runtime.bus.jetstream_link import Link, Raw
from callboard.runtime.bus.pattern import is_literal, matches
from callboard.runtime.errors import BusTimeoutError, PermissionDeniedError

_SUBSCRIBE_TIMEOUT_S = 5.0
# Subjects of plain publishes that are kept until a flush says what became of them.
SENT_KEPT = 1024


class Core:
    """The part of the bus without streams."""

    _link: Link
    _requests: Calls[Raw]
    _inboxes: count[int]
    _sent: deque[str]
    _denied: PermissionDeniedError | None = None

    def inbox(self) -> str:
        """Return a new unique subject below this connection's inbox prefix."""
        return f"{self._link.base}.u.{next(self._inboxes)}"

    async def publish(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        """Send without confirmation. No round trip, and none of the socket unless it is full."""
        check_subject(subject)
        if reply:
            check_subject(reply)
        check_size(len(data) + (check_headers(headers) if headers else 0), self._link.max_payload)
        self._sent.append(subject)
        await self._link.send(subject, data, reply, headers)

    async def subscribe(self, subject: str, sink: Callable[[Message], None], *, queue: str = "") -> Subscription:
        """Hear ``subject``. Waits one round trip while the link is up, so that nothing sent afterwards is missed.

        Raises:
            PermissionDeniedError: If the server's permissions refuse it.
        """
        check_filter(subject)
        if queue:
            check_name(queue, what="queue group")

        def deliver(raw: Raw) -> None:
            # Whoever may make a consumer may have it deliver what a stream holds to any subject, past the permissions
            # of its user. Such a message keeps the name it is stored under, and is not meant for us.
            if raw.subject != subject and (is_plain or not matches(subject, raw.subject)):
                return
            sink(Message(raw.subject, raw.data, raw.headers, raw.reply))

        is_plain = is_literal(subject)
        refusal = _Refusal(f"{subject} {queue}".strip().lower())
        self._link.attach(refusal)
        try:
            listener = await self._link.listen(subject, deliver, queue)
            if self._link.is_up:
                # When the link goes down meanwhile: subscriptions are replayed as soon as it stands again.
                with suppress(BusTimeoutError):
                    await self._link.flush(_SUBSCRIBE_TIMEOUT_S)
        finally:
            self._link.detach(refusal)
        if refusal.message:
            await listener.close()
            # the server names it in lower case
            raise PermissionDeniedError(refusal.message.replace(subject.lower(), subject), subject=subject)
        self._link.listening()
        return listener

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Message:
        """Publish and wait for the first answer."""
        check_subject(subject)
        check_size(len(data) + (check_headers(headers) if headers else 0), self._link.max_payload)
        raw, _ = await self._requests.one(subject, data, timeout_s, headers)
        return Message(raw.subject, raw.data, raw.headers, raw.reply)

    async def flush(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until the server has taken everything sent so far.

        Raises:
            PermissionDeniedError: If the server's permissions refuse something of the last thousand published.
        """
        await self._link.flush(timeout_s)
        self._sent.clear()
        denied, self._denied = self._denied, None
        if denied is not None:
            raise denied

    def _was_denied(self, subject: str, message: str) -> None:
        """Keep for the next flush that a plain publish was refused; the server names it in lower case."""
        name = next((sent for sent in self._sent if sent.lower() == subject), None)
        if name is not None and self._denied is None:
            self._denied = PermissionDeniedError(message.replace(subject, name), subject=name)


class _Refusal:
    """Hears whether a subscription is refused while it is being made."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.message = ""

    def went_down(self) -> None:
        pass

    def came_up(self) -> None:
        pass

    def tick(self, now: float) -> None:
        pass

    def denied(self, subject: str, message: str) -> None:
        if "subscription" in message and subject == self.wanted.split(" ")[0]:
            self.message = message
