"""A link to the in-memory broker: its state, its breaks, and the one way by which every operation goes."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S, Message, ServerInfo
from callboard.runtime.bus.check import check_headers, check_size, check_subject
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.memory_broker import MAX_PAYLOAD_BYTES, BrokerCore
from callboard.runtime.bus.memory_pull import Part
from callboard.runtime.errors import (
    BackpressureError,
    BusClosedError,
    BusTimeoutError,
)

T = TypeVar("T")
# What the client library keeps for a reconnect before it refuses.
_BUFFER_BYTES = 2 << 20
# The release of the real server whose behaviour is imitated.
_IMITATES = "2.15.1"


class MemoryLink:
    """The connection part of ``MemoryBus``."""

    def __init__(self, broker: BrokerCore, *, name: str, number: int = 0) -> None:
        """Connect; use ``MemoryBroker.connect``."""
        self.broker = broker
        self.name = name
        self.number = number
        self._loop = asyncio.get_running_loop()
        # sinks run in it, not in that of whoever published
        self._context = contextvars.copy_context()
        self._is_open = True
        self._is_linked = True
        self._is_guest = False
        self._link = 0
        self._connected_at = broker.clock.monotonic()
        self._inboxes = 0
        self._callbacks: list[Callable[[], None]] = []
        self._parts: list[Part] = []
        # in order of arrival, which a set would not keep: a simulation must repeat
        self._waiting: dict[asyncio.Future[Any], None] = {}
        self._wakes: dict[Callable[[], None], None] = {}
        self._buffer: deque[Message] = deque()
        self._buffered_bytes = 0
        broker.join()

    # --- state

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        return self._is_open and self._is_linked

    @property
    def connected_at(self) -> float:
        """Monotonic seconds of the last connect or reconnect."""
        return self._connected_at

    @property
    def server(self) -> ServerInfo:
        """The broker, under the version that it imitates."""
        return ServerInfo(name="memory", version=_IMITATES, url="memory:", max_payload_bytes=MAX_PAYLOAD_BYTES)

    @property
    def is_guest(self) -> bool:
        """Everybody may do everything, unless a test wants it otherwise."""
        return self._is_guest

    @is_guest.setter
    def is_guest(self, value: bool) -> None:
        self._is_guest = value

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop after each ``mend``."""
        self._callbacks.append(callback)

    async def reconnect(self) -> None:
        """Lose what is on its way and come back at once: there is one broker only."""
        self._check_open()
        if self._is_linked:
            self.cut()
            self.mend()

    async def close(self) -> None:
        """Disconnect and answer every waiter. Closing twice is harmless."""
        if self._is_open:
            self.sever()
            await self.broker.leave()

    def sever(self) -> None:
        """Close it at once, as the death of its process does: nothing comes in and nothing goes out any more."""
        self._is_open = False
        for part in list(self._parts):
            part.end()
        for waiter in list(self._waiting):
            if not waiter.done():
                waiter.set_exception(_closed())
        for wake in list(self._wakes):
            wake()

    def cut(self) -> None:
        """Break the link, for tests: publishes are buffered, calls time out, subscriptions miss what is sent."""
        if not self._is_linked:
            return
        self._is_linked = False
        # What is already on its way is lost with the link.
        self._link += 1
        for part in list(self._parts):
            part.unlink()

    def mend(self) -> None:
        """Restore the link: the buffer goes out, pulls ask again, the reconnect callbacks run."""
        if not self._is_open or self._is_linked:
            return
        self._is_linked = True
        self._connected_at = self.broker.clock.monotonic()
        self.broker.run_due()
        while self._buffer:
            self.broker.publish(self._buffer.popleft())
        self._buffered_bytes = 0
        for part in list(self._parts):
            part.relink()
        for wake in list(self._wakes):
            wake()
        for callback in self._callbacks:
            self._loop.call_soon(callback, context=self._context)

    # --- for its parts and operations

    def post(self, act: Callable[[], None]) -> None:
        """Run ``act`` on a later loop turn, unless the link breaks before."""
        link = self._link

        def run() -> None:
            if self._is_open and link == self._link:
                act()

        self._loop.call_soon(run, context=self._context)

    def drop(self, part: Part) -> None:
        """Forget a part that ended."""
        if part in self._parts:
            self._parts.remove(part)

    async def _ask(self, operation: Callable[[], T], *, what: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> T:
        self._check_open()
        if not self._is_linked:
            return await self._within(self._loop.create_future(), timeout_s, what=what)
        self.broker.run_due()
        try:
            return operation()
        finally:
            # The answer takes a turn, so that a loop of calls lets others run, as it does over a socket.
            await self.broker.clock.sleep(0)

    def _tell(self, operation: Callable[[], None], *, what: str) -> None:  # noqa: ARG002 - a simulation writes it down
        self._check_open()
        if self._is_linked:
            self.broker.run_due()
            operation()

    def _send(self, message: Message) -> None:
        if self._is_linked:
            self.broker.run_due()
            self.broker.publish(message)
            return
        size_bytes = len(message.data) + len(message.subject)
        if self._buffered_bytes + size_bytes > _BUFFER_BYTES:
            text = "the reconnect buffer is full: the link is down for too long"
            raise BackpressureError(text)
        self._buffered_bytes += size_bytes
        self._buffer.append(message)

    async def _within(self, answer: asyncio.Future[T], timeout_s: float, *, what: str) -> T:
        timer = self._loop.create_task(self.broker.clock.sleep(timeout_s), name="memory-bus-timeout")
        self._waiting[answer] = None
        try:
            waiters: list[asyncio.Future[Any]] = [answer, timer]
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            del self._waiting[answer]
        if answer.done():
            return answer.result()
        answer.cancel()
        message = f"{what}: no answer within {timeout_s:g} s; the outcome is unknown"
        raise BusTimeoutError(message)

    def _check_open(self) -> None:
        if not self._is_open:
            raise _closed()

    def _check(self, subject: str, data: bytes, headers: Headers | None) -> None:
        self._check_open()
        check_subject(subject)
        check_size(len(data) + (check_headers(headers) if headers else 0), MAX_PAYLOAD_BYTES)


def _closed() -> BusClosedError:
    return BusClosedError("this bus was closed")
