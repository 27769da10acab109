"""What a connection to the in-memory broker keeps open there: plain subscriptions and standing pulls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from callboard.runtime.bus.base import Delivery, Message
from callboard.runtime.bus.memory_broker import BrokerCore, Interest
from callboard.runtime.bus.memory_record import freeze


class Part(Protocol):
    """What a connection keeps open."""

    def end(self) -> None:
        """End it now."""
        ...

    def unlink(self) -> None:
        """Lose the broker's side of it, as a broken link does."""
        ...

    def relink(self) -> None:
        """Go on now that the link stands again."""
        ...


class Line(Protocol):
    """The connection as its parts see it."""

    @property
    def broker(self) -> BrokerCore:
        """The broker behind it."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        ...

    def post(self, act: Callable[[], None]) -> None:
        """Run ``act`` on a later loop turn, unless the link breaks before."""
        ...

    def drop(self, part: Part) -> None:
        """Forget a part that ended."""
        ...


class MemorySubscription:
    """Interest in a plain subject."""

    def __init__(self, link: Line, subject: str, sink: Callable[[Message], None], *, queue: str) -> None:
        """Begin to listen."""
        self._link = link
        self._sink = sink
        self._is_open = True
        self._interest = Interest(subject, queue, self._post, lambda: link.is_connected)
        link.broker.subscribe(self._interest)

    async def close(self) -> None:
        """End it; nothing reaches the sink afterwards. Closing twice is harmless."""
        self.end()

    def end(self) -> None:
        """End it now."""
        self._is_open = False
        self._link.broker.unsubscribe(self._interest)
        self._link.drop(self)

    def unlink(self) -> None:
        """Miss what is sent from now on."""

    def relink(self) -> None:
        """Hear again; what was sent meanwhile is missed."""

    def _post(self, message: Message) -> None:
        frozen = Message(message.subject, bytes(message.data), freeze(message.headers) or None, message.reply)
        self._link.post(lambda: self._show(frozen))

    def _show(self, message: Message) -> None:
        if self._is_open:
            self._sink(message)


class MemoryPull:
    """A standing pull on one durable consumer. ``wanted`` is the broker's count, ``credit`` the client's."""

    def __init__(self, link: Line, stream: str, consumer: str, sink: Callable[[Delivery], None]) -> None:
        """Begin with no credit."""
        self.wanted = 0
        self._link = link
        self._stream = stream
        self._consumer = consumer
        self._sink = sink
        self._credit = 0
        self._last_heard = link.broker.clock.monotonic()
        self._is_open = True

    @property
    def credit(self) -> int:
        """Messages granted and not yet delivered."""
        return self._credit

    @property
    def last_heard(self) -> float:
        """Monotonic seconds of the broker's last sign: now, while the link and the consumer stand."""
        if self.problem is None:
            self._last_heard = self._link.broker.clock.monotonic()
        return self._last_heard

    @property
    def problem(self) -> str | None:
        """Why the pull cannot work now, or None."""
        if not self._link.is_connected:
            return "not connected"
        if self._link.broker.consumer(self._stream, self._consumer) is None:
            return f"consumer {self._consumer} of stream {self._stream} does not exist"
        return None

    def grant(self, count: int) -> None:
        """Allow ``count`` more messages."""
        if not self._is_open or count <= 0:
            return
        self._credit += count
        if self._link.is_connected:
            self._link.broker.run_due()
            self.wanted += count
            self._link.broker.attach(self._stream, self._consumer, self)

    async def close(self) -> None:
        """Withdraw the outstanding credit."""
        self.end()

    def end(self) -> None:
        """Withdraw the outstanding credit now."""
        self._is_open = False
        self._credit = self.wanted = 0
        self._link.broker.detach(self)
        self._link.drop(self)

    def hand(self, delivery: Delivery) -> None:
        """Take a delivery from the broker; the sink gets it on a later loop turn."""
        self._link.post(lambda: self._show(delivery))

    def unlink(self) -> None:
        """Lose the broker's side of the pull, as a broken link does."""
        self.wanted = 0
        self._link.broker.detach(self)

    def relink(self) -> None:
        """Ask again for what is outstanding."""
        self.wanted = self._credit
        self._link.broker.attach(self._stream, self._consumer, self)

    def _show(self, delivery: Delivery) -> None:
        self._credit = max(0, self._credit - 1)
        self._last_heard = self._link.broker.clock.monotonic()
        self._sink(delivery)
