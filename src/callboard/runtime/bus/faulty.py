"""A bus that does wrong what a network may do wrong, by seeded dice, and keeps what a broker keeps.

It stands before any other bus: before the in-memory one in the simulation, before JetStream in chaos tests. What is
stored keeps its order, its conditions hold, an acknowledged write is there, a tail leaves out nothing: whatever breaks
under these faults would break in production. It is shipped so that users can try their own actors under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from random import Random
from typing import TypeVar

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
from callboard.runtime.bus.fault import FaultRates, Faults, FaultyPull, FaultySubscription, FaultyTail
from callboard.runtime.bus.header import Headers
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import BackpressureError, BusError, BusTimeoutError

__all__ = ["FaultRates", "FaultyBus"]

T = TypeVar("T")


class FaultyBus(Bus):
    """A bus with faults; see ``FaultRates``. Closing it closes the bus behind it.

    The same seed and the same order of calls give the same faults. ``cut`` and ``mend`` break and restore the link by
    hand: calls time out, plain messages and deliveries are lost on the way, tails and pulls go on afterwards.

    Attributes:
        faults: The dice. ``faults.rates`` may be replaced at any time, ``faults.injected`` counts what struck.
    """

    def __init__(self, bus: Bus, rng: Random, rates: FaultRates | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.faults = Faults(rng, rates or FaultRates(), clock)
        self._bus = bus
        self._clock = clock
        self._mended_at = 0.0
        self._callbacks: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._late: list[Callable[[], Awaitable[object]]] = []
        # What one connection sends arrives in the order of sending, however late.
        self._way = asyncio.Lock()

    def cut(self) -> None:
        """Break the link. Calls that wait end with an unknown outcome; harmless when it is cut."""
        if not self.faults.is_cut:
            self.faults.is_cut = True
            self.faults.cuts += 1

    def mend(self) -> None:
        """Restore the link: tails are opened again, pulls ask again, the reconnect callbacks run."""
        if not self.faults.is_cut:
            return
        self._mended_at = self._clock.monotonic()
        self.faults.is_cut = False
        for part in list(self.faults.parts):
            part.mended()
        late, self._late = self._late, []
        for act in late:
            self.faults.spawn(_quietly(act))
        self._wake()
        for callback in self._callbacks:
            asyncio.get_running_loop().call_soon(callback)

    # --- state

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        return self._bus.is_connected and not self.faults.is_cut

    @property
    def connected_at(self) -> float:
        """Monotonic seconds of the last connect, reconnect or ``mend``."""
        return max(self._mended_at, self._bus.connected_at)

    @property
    def server(self) -> ServerInfo:
        """The server behind."""
        return self._bus.server

    @property
    def is_guest(self) -> bool:
        """Whether the user behind is one."""
        return self._bus.is_guest

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop after each reconnect and each ``mend``."""
        self._callbacks.append(callback)
        self._bus.on_reconnect(callback)

    async def reconnect(self) -> None:
        """Drop the link behind and connect anew; nothing while it is cut, for only ``mend`` restores that."""
        if not self.faults.is_cut:
            await self._bus.reconnect()

    async def close(self) -> None:
        """End all faults and disconnect. Closing twice is harmless."""
        await self.faults.close()
        await self._bus.close()
        # What waited for the link goes on, and finds the bus behind closed.
        self.faults.is_cut = False
        self._late.clear()
        self._wake()

    # --- plain subjects

    def inbox(self) -> str:
        """Return a new unique subject below this connection's inbox prefix."""
        return self._bus.inbox()

    async def publish(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        """Send without confirmation; it may be lost. While the link is cut it is lost or kept until ``mend``."""
        if self.faults.strikes("refuse"):
            raise _refused(subject)
        if self.faults.strikes("drop"):
            return
        await self._lag()
        if self.faults.is_cut:
            self._keep(lambda: self._bus.publish(subject, data, headers=headers, reply=reply))
            return
        await self._bus.publish(subject, data, headers=headers, reply=reply)

    async def subscribe(self, subject: str, sink: Callable[[Message], None], *, queue: str = "") -> Subscription:
        """Hear ``subject``; messages may be late, doubled or overtaken."""
        subscription = FaultySubscription(self.faults, sink)
        subscription.inner = await self._bus.subscribe(subject, subscription.take, queue=queue)
        return subscription

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Message:
        """Publish and wait for the first answer; either may be lost."""
        return await self._ask(
            lambda: self._bus.request(subject, data, headers=headers, timeout_s=timeout_s),
            what=f"request to {subject}",
            timeout_s=timeout_s,
        )

    async def flush(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until the server has taken everything sent so far."""
        await self._ask(lambda: self._bus.flush(timeout_s=timeout_s), what="flush", timeout_s=timeout_s)

    # --- stored subjects

    async def store(self, write: Write, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store one message; the write or the word of it may be lost."""
        return await self._ask(
            lambda: self._bus.store(write, timeout_s=timeout_s),
            what=f"store on {write.subject}",
            timeout_s=timeout_s,
            is_write=True,
        )

    async def store_many(
        self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[PubAck | BusError]:
        """Store each message on its own: each may be refused, its answer lost, or all from one on be lost."""
        fates: list[BusError | None] = []
        for write in writes:
            is_after_a_loss = bool(fates) and isinstance(fates[-1], BusTimeoutError)
            if is_after_a_loss or self.faults.strikes("drop"):
                fates.append(_lost(f"store on {write.subject}"))
            else:
                fates.append(_refused(write.subject) if self.faults.strikes("refuse") else None)
        sent = [write for write, fate in zip(writes, fates, strict=True) if fate is None]
        try:
            found = iter(
                await self._linked_call(
                    lambda: self._bus.store_many(sent, timeout_s=timeout_s),
                    timeout_s,
                    what=f"store of {len(writes)}",
                    is_write=True,
                )
            )
        except BusTimeoutError as error:
            return [fate or error for fate in fates]
        answers = [fate or next(found) for fate in fates]
        for index, write in enumerate(writes):
            if isinstance(answers[index], PubAck) and self.faults.strikes("lose_ack"):
                answers[index] = _lost(f"store on {write.subject}")
        if any(isinstance(answer, BusTimeoutError) for answer in answers):
            await self._clock.sleep(min(timeout_s, self.faults.rates.silence_s))
        return answers

    async def store_batch(self, writes: Sequence[Write], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> PubAck:
        """Store all or none; the batch or the word of it may be lost."""
        return await self._ask(
            lambda: self._bus.store_batch(writes, timeout_s=timeout_s),
            what=f"batch of {len(writes)}",
            timeout_s=timeout_s,
            is_write=True,
        )

    async def get_last(self, stream: str, subject: str, *, from_leader: bool = False) -> Stored | None:
        """Return the last message on ``subject``; unless from the leader it may be one that was last before."""
        found = await self._ask(lambda: self._bus.get_last(stream, subject, from_leader=from_leader), what="get")
        if from_leader or found is None or not self.faults.strikes("stale"):
            return found
        return await self._ask(lambda: self._one_before(stream, found), what="get")

    async def get_seq(self, stream: str, seq: int, *, from_leader: bool = False) -> Stored | None:
        """Return the message with this sequence; unless from the leader it may not be there yet."""
        found = await self._ask(lambda: self._bus.get_seq(stream, seq, from_leader=from_leader), what="get")
        return None if not from_leader and self.faults.strikes("stale") else found

    async def get_next(self, stream: str, seq: int, subject: str, *, from_leader: bool = False) -> Stored | None:
        """Return the first message from ``seq`` on; unless from the leader it may not be there yet."""
        found = await self._ask(lambda: self._bus.get_next(stream, seq, subject, from_leader=from_leader), what="get")
        return None if not from_leader and self.faults.strikes("stale") else found

    async def get_many(self, stream: str, subjects: Sequence[str], *, from_leader: bool = False) -> list[Stored]:
        """Return the last of each subject; unless from the leader, some may be missing yet."""
        found = await self._ask(lambda: self._bus.get_many(stream, subjects, from_leader=from_leader), what="get")
        return found if from_leader else [stored for stored in found if not self.faults.strikes("stale")]

    async def read(
        self,
        stream: str,
        *,
        subjects: Sequence[str] = (),
        start_seq: int | None = None,
        start_time: datetime | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Stored]:
        """Read a stream in order; messages may be late."""
        messages = self._bus.read(stream, subjects=subjects, start_seq=start_seq, start_time=start_time, follow=follow)
        async for stored in messages:
            while self.faults.is_cut:
                await self._mending()
            await self._linger()
            yield stored

    async def tail(
        self,
        stream: str,
        subject: str,
        sink: Callable[[Stored], None],
        *,
        start_seq: int,
        on_gap: Callable[[str], None] | None = None,
    ) -> Tail:
        """Hear every stored message on ``subject``; it may be late, or break and be opened again."""

        async def reopen(seq: int, take: Callable[[Stored], None]) -> Tail:
            return await self._bus.tail(stream, subject, take, start_seq=seq, on_gap=on_gap)

        tail = FaultyTail(self.faults, reopen, sink, start_seq=start_seq, on_gap=on_gap)
        self.faults.parts.append(tail)
        try:
            await self._ask(tail.open, what="tail")
        except BaseException:
            await tail.close()
            raise
        return tail

    # --- work

    async def pull(self, stream: str, consumer: str, sink: Callable[[Delivery], None]) -> Pull:
        """Open a standing pull; deliveries may be late or come again."""
        pull = FaultyPull(self.faults, self._bus, sink)
        pull.inner = await self._ask(lambda: self._bus.pull(stream, consumer, pull.take), what="pull")
        self.faults.parts.append(pull)
        return pull

    async def ack(self, tokens: Sequence[str], *, confirm: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Remove deliveries from the work queue; the word may be lost."""
        if confirm:
            await self._ask(
                lambda: self._bus.ack(tokens, confirm=True, timeout_s=timeout_s), what="ack", timeout_s=timeout_s
            )
        else:
            await self._tell(lambda: self._bus.ack(tokens))

    async def nak(self, token: str, *, delay_s: float) -> None:
        """Give a delivery back; the word may be lost."""
        await self._tell(lambda: self._bus.nak(token, delay_s=delay_s))

    async def extend(self, tokens: Sequence[str]) -> None:
        """Keep deliveries ours for another ``ack_wait`` each; the word may be lost."""
        await self._tell(lambda: self._bus.extend(tokens))

    async def term(self, token: str, reason: str) -> None:
        """Remove a delivery for good; the word may be lost."""
        await self._tell(lambda: self._bus.term(token, reason))

    # --- administration

    async def stream_info(self, name: str, *, with_damage: bool = False) -> StreamInfo | None:
        """Return a stream's settings and state, or None when it does not exist."""
        return await self._ask(lambda: self._bus.stream_info(name, with_damage=with_damage), what="stream info")

    async def stream_names(self) -> list[str]:
        """Return the names of all streams of the account, sorted."""
        return await self._ask(self._bus.stream_names, what="stream names")

    async def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Create it; succeeds when it exists with the same settings."""
        return await self._ask(lambda: self._bus.create_stream(config), what="stream create")

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Change settings in place."""
        return await self._ask(lambda: self._bus.update_stream(config), what="stream update")

    async def delete_stream(self, name: str) -> bool:
        """Delete a stream with all it holds; False when there was none."""
        return await self._ask(lambda: self._bus.delete_stream(name), what="stream delete")

    async def subject_counts(self, stream: str, subject: str = ">") -> dict[str, int]:
        """Return how many messages each matching subject holds."""
        return await self._ask(lambda: self._bus.subject_counts(stream, subject), what="subject counts")

    async def purge(self, stream: str, *, subject: str | None = None, below_seq: int | None = None) -> int:
        """Delete messages, all or those on ``subject`` and before ``below_seq``; return how many."""
        return await self._ask(lambda: self._bus.purge(stream, subject=subject, below_seq=below_seq), what="purge")

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Delete one message; False when there was none."""
        return await self._ask(lambda: self._bus.delete_message(stream, seq), what="message delete")

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        """Return a consumer's settings and state, or None."""
        return await self._ask(lambda: self._bus.consumer_info(stream, name), what="consumer info")

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        """Return all durable consumers of a stream."""
        return await self._ask(lambda: self._bus.consumers(stream), what="consumers")

    async def create_consumer(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Create or update a durable consumer."""
        return await self._ask(lambda: self._bus.create_consumer(stream, config), what="consumer create")

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Delete a consumer; False when there was none."""
        return await self._ask(lambda: self._bus.delete_consumer(stream, name), what="consumer delete")

    # --- inside

    async def _ask(
        self,
        act: Callable[[], Awaitable[T]],
        *,
        what: str,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        is_write: bool = False,
    ) -> T:
        faults = self.faults
        if is_write and faults.strikes("refuse"):
            raise _refused(what)
        if faults.strikes("drop"):
            await self._clock.sleep(min(timeout_s, faults.rates.silence_s))
            raise _lost(what)
        try:
            answer = await self._linked_call(act, timeout_s, what=what, is_write=is_write)
        except BusError:
            # A refusal can be lost as well as a consent.
            await self._lose_answer(what, timeout_s)
            raise
        await self._lose_answer(what, timeout_s)
        return answer

    async def _lose_answer(self, what: str, timeout_s: float) -> None:
        if self.faults.strikes("lose_ack"):
            await self._clock.sleep(min(timeout_s, self.faults.rates.silence_s))
            raise _lost(what)

    async def _linked_call(self, act: Callable[[], Awaitable[T]], timeout_s: float, *, what: str, is_write: bool) -> T:
        """Call over the link as it is: late, not at all while it is cut, and without an answer when it is cut then."""
        faults = self.faults
        if not faults.is_cut and faults.strikes("cut"):
            self.cut()
            faults.later(faults.some_of(faults.rates.max_cut_s), self.mend)
        if not faults.is_cut or await self._mended_within(min(timeout_s, faults.rates.silence_s)):
            await self._lag()
        if faults.is_cut:
            if is_write:
                self._keep(act)
            raise _lost(what)
        cuts = faults.cuts
        answer = await act()
        if faults.cuts != cuts:
            raise _lost(what)
        await self._linger()
        return answer

    async def _tell(self, act: Callable[[], Awaitable[None]]) -> None:
        if self.faults.strikes("drop"):
            return
        await self._lag()
        if not self.faults.is_cut:
            await act()

    def _keep(self, act: Callable[[], Awaitable[object]]) -> None:
        # The client library sends what waits in its buffer after a reconnect, whoever has given up on it meanwhile.
        if self.faults.strikes("late"):
            self._late.append(act)

    async def _lag(self) -> None:
        """Be late on the way out; what is sent afterwards does not overtake."""
        async with self._way:
            await self._linger()

    async def _linger(self) -> None:
        if self.faults.strikes("delay"):
            await self._clock.sleep(self.faults.some_of(self.faults.rates.max_delay_s))

    async def _mended_within(self, limit_s: float) -> bool:
        timer = asyncio.get_running_loop().create_task(self._clock.sleep(limit_s), name="faulty-bus-timeout")
        mending = asyncio.ensure_future(self._mending())
        try:
            await asyncio.wait([timer, mending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            mending.cancel()
        return not self.faults.is_cut

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _mending(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    async def _one_before(self, stream: str, last: Stored) -> Stored | None:
        """Return what a follower that lacks the last message would answer."""
        before: Stored | None = None
        seq = 1
        while (found := await self._bus.get_next(stream, seq, last.subject)) is not None and found.seq < last.seq:
            before, seq = found, found.seq + 1
        return before


def _lost(what: str) -> BusTimeoutError:
    return BusTimeoutError(f"{what}: no answer; the outcome is unknown (injected)")


def _refused(what: str) -> BackpressureError:
    return BackpressureError(f"{what}: refused (injected)")


async def _quietly(act: Callable[[], Awaitable[object]]) -> None:
    try:
        await act()
    except BusError:
        # Nobody waits for it any more.
        return
