"""The answer to an ask as it is being made: numbered parts while the turn runs, then the end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import payload
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.answer import anything, is_unheard, value_of
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message, Subscription
from callboard.runtime.clock import Clock
from callboard.runtime.errors import ActorError, AskTimeoutError, NoHostError

# A reader that is slower than the actor loses the oldest parts beyond this many, and sees a gap.
MAX_WAITING_PARTS = 4096


class Gap(Struct, frozen=True, kw_only=True):
    """Stands in a stream for parts that were lost on their way: numbers ``first`` to ``last``, counted from 0."""

    first: int
    last: int


class AskStream:
    """Parts of an answer, in order, then its value.

    Parts are best effort: what is lost shows as a ``Gap``. After its host died the turn is run again elsewhere and
    sends its parts from the beginning: only those with numbers not seen yet are shown. The value at the end is as
    sure as that of any ask. Use it in ``async with``, or read it to the end: it holds one subscription.

    Attributes:
        value: The answer, once the parts have ended; None before.
        is_finished: Whether they have ended.
    """

    def __init__(
        self, bus: Bus, address: Address, data: bytes, headers: dict[str, str], *, timeout_s: float, clock: Clock
    ) -> None:
        """Use ``ActorRef.stream``; nothing is sent before the first part is asked for."""
        self.value: object = None
        self.is_finished = False
        self._bus = bus
        self._address = address
        self._question = (data, headers)
        self._timeout_s = timeout_s
        self._clock = clock
        self._give_up_s = 0.0
        self._next = 0
        self._came: deque[Message] = deque(maxlen=MAX_WAITING_PARTS)
        self._held: object = None
        self._has_held = False
        self._arrived = asyncio.Event()
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._is_call = False

    async def __aenter__(self) -> Self:
        """Send the question."""
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        await self.aclose()

    def __aiter__(self) -> Self:
        """Return itself: a stream is read once."""
        return self

    async def __anext__(self) -> object:
        """Return the next part, or a ``Gap``.

        Raises:
            NoHostError: If no worker hosts the type now.
            AskTimeoutError: If the end does not come in time.
            ActorError: One of its kinds, if the answer is an error; see ``ActorRef.ask``.
        """
        if self._has_held:
            self._has_held = False
            return self._held
        if self.is_finished:
            raise StopAsyncIteration
        await self._open()
        try:
            return await self._read()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop listening; the turn goes on. Closing twice is harmless."""
        self.is_finished = True
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    # --- inside

    async def _open(self) -> None:
        if self._subscription is not None or self.is_finished:
            return
        data, headers = self._question
        data = await payload.stow(BlobStore(self._bus), data, headers)
        self._inbox = self._bus.inbox()
        self._give_up_s = self._clock.monotonic() + self._timeout_s
        self._subscription = await self._bus.subscribe(self._inbox, self._hear)
        self._question = (data, headers)
        await self._send(subjects.call if header.CHAIN in headers else subjects.ask)

    async def _send(self, way: Callable[[str, str], str]) -> None:
        (data, headers), subscription = self._question, self._subscription
        self._is_call = way is subjects.call
        if subscription is not None:
            subject = way(self._address.type, self._address.key)
            await self._bus.publish(subject, data, headers=headers, reply=self._inbox)

    async def _read(self) -> object:
        while (number := _part_of(message := await self._receive())) is not None:
            if number < self._next:
                continue
            part = anything(message.data, (message.headers or {}).get(header.CONTENT_TYPE))
            first, self._next = self._next, number + 1
            if number > first:
                self._held, self._has_held = part, True
                return Gap(first=first, last=number - 1)
            return part
        await self._finish(message)
        raise StopAsyncIteration

    def _hear(self, message: Message) -> None:
        self._came.append(message)
        self._arrived.set()

    async def _receive(self) -> Message:
        while not self._came:
            self._arrived.clear()
            left_s = self._give_up_s - self._clock.monotonic()
            if left_s <= 0:
                message = (
                    f"the answer of {self._address} was not whole after {self._timeout_s:g} s; the turn may go on, see "
                    "`callboard agents show`"
                )
                raise AskTimeoutError(message)
            await self._wait(left_s)
            if self._is_call and self._came and is_unheard(self._came[0]):
                # agents that no worker hosts listen for plain asks alone
                self._came.clear()
                await self._send(subjects.ask)
        return self._came.popleft()

    async def _wait(self, left_s: float) -> None:
        tasks = {
            asyncio.create_task(self._arrived.wait(), name="stream-part"),
            asyncio.create_task(self._clock.sleep(left_s), name="stream-timeout"),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _finish(self, message: Message) -> None:
        if is_unheard(message):
            text = f"no worker hosts {self._address.type!r}: start one with `callboard worker start FILE`"
            raise NoHostError(text)
        self.value = await value_of(message, self._address, self._bus)
        await self.aclose()


def _part_of(message: Message) -> int | None:
    """Return a part's number, None for the end."""
    text = (message.headers or {}).get(header.PART)
    if text is None:
        return None
    if not (text.isdecimal() and len(text) < 16):  # noqa: PLR2004 - what a float still counts exactly
        problem = f"a part came with the number {text[:40]!r}"
        raise ActorError(problem)
    return int(text)
