"""The faults of a ``FaultyBus``: how often they strike, and what they do to a subscription, a pull and a tail."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

from msgspec import Struct

from callboard.runtime.bus.base import Bus, Delivery, Message, Pull, Stored, Subscription, Tail
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusClosedError, BusError

Kind = Literal["drop", "lose_ack", "delay", "duplicate", "reorder", "refuse", "stale", "late", "reopen", "cut"]

_REOPEN_S = 0.25


class FaultRates(Struct, frozen=True, kw_only=True):
    """How often each fault strikes: a probability of 0 to 1 for each chance it has. All are off by default.

    Attributes:
        drop: A plain message, an acknowledgement or a request is lost on the way out; who waits for an answer gets a
            ``BusTimeoutError``.
        lose_ack: The request is carried out and its answer lost.
        delay: A call, a delivery or a tail is late by up to ``max_delay_s``.
        duplicate: A plain message comes twice; a delivery is given back behind the holder's back, so that it is handed
            out again with its count one higher.
        reorder: A plain message comes after up to ``reorder_window`` of those that were sent after it.
        refuse: A write or a plain publish is refused with ``BackpressureError``; nothing is stored.
        stale: A read that need not come from the leader is answered as it was earlier.
        late: A write that was begun while the link was cut is carried out when it is mended, long after its caller
            got a ``BusTimeoutError``.
        reopen: A tail breaks at a message and is opened again there.
        cut: A call finds the link cut, for up to ``max_cut_s``.
        max_delay_s: Longest delay.
        silence_s: Longest wait for an answer that does not come, where the caller would wait longer.
        max_cut_s: Longest time that a cut by ``cut`` lasts.
        reorder_window: Most messages that overtake one.
    """

    drop: float = 0.0
    lose_ack: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    refuse: float = 0.0
    stale: float = 0.0
    late: float = 0.0
    reopen: float = 0.0
    cut: float = 0.0
    max_delay_s: float = 0.2
    silence_s: float = 1.0
    max_cut_s: float = 2.0
    reorder_window: int = 4


class Linked(Protocol):
    """Something that hears when a cut link is mended."""

    def mended(self) -> None:
        """Go on now that the link stands again."""
        ...


class Faults:
    """The dice, and the state of the link.

    Attributes:
        rates: May be replaced at any time; ``FaultRates()`` ends all new faults.
        injected: How often each fault has struck, so that a test can see that it has tested something.
        cuts: Grows with each cut.
    """

    def __init__(self, rng: Random, rates: FaultRates, clock: Clock) -> None:
        self.rates = rates
        self.clock = clock
        self.injected: Counter[str] = Counter()
        self.is_cut = False
        self.cuts = 0
        self.parts: list[Linked] = []
        self._rng = rng
        self._tasks: set[asyncio.Task[None]] = set()

    def strikes(self, kind: Kind) -> bool:
        """Roll for one fault. Nothing is rolled at rate 0, so a fault that is off changes no other's course."""
        rate: float = getattr(self.rates, kind)
        if rate <= 0 or self._rng.random() >= rate:
            return False
        self.injected[kind] += 1
        return True

    def some_of(self, limit: float) -> float:
        """Return a part of ``limit``."""
        return self._rng.uniform(0.0, limit)

    def some_to(self, limit: int) -> int:
        """Return a number from 1 to ``limit``."""
        return self._rng.randint(1, max(1, limit))

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call ``act`` after a while, unless the bus is closed before."""

        async def wait() -> None:
            await self.clock.sleep(delay_s)
            act()

        self.spawn(wait())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` beside; it ends with the bus."""
        task = asyncio.get_running_loop().create_task(work, name="faulty-bus")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is still to come."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FaultySubscription:
    """A plain subscription whose messages may come late, twice or in another order."""

    def __init__(self, faults: Faults, sink: Callable[[Message], None]) -> None:
        self.inner: Subscription
        self._faults = faults
        self._sink = sink
        self._is_open = True
        self._overtaken: list[_Overtaken] = []

    async def close(self) -> None:
        """End it; nothing reaches the sink afterwards."""
        self._is_open = False
        await self.inner.close()

    def take(self, message: Message) -> None:
        """Hand a message on: now, later, after others, twice, or not at all while the link is cut."""
        faults = self._faults
        if faults.strikes("reorder"):
            waiting = _Overtaken(message, faults.some_to(faults.rates.reorder_window))
            self._overtaken.append(waiting)
            # When nothing follows it, it comes alone.
            faults.later(faults.rates.max_delay_s, lambda: self._release(waiting))
            return
        if faults.strikes("delay"):
            faults.later(faults.some_of(faults.rates.max_delay_s), lambda: self._give(message))
        else:
            self._give(message)
        if faults.strikes("duplicate"):
            faults.later(faults.some_of(faults.rates.max_delay_s), lambda: self._give(message))
        for waiting in list(self._overtaken):
            waiting.by -= 1
            if waiting.by <= 0:
                self._release(waiting)

    def _release(self, waiting: _Overtaken) -> None:
        if waiting in self._overtaken:
            self._overtaken.remove(waiting)
            self._give(waiting.message)

    def _give(self, message: Message) -> None:
        if self._is_open and not self._faults.is_cut:
            self._sink(message)


@dataclass(eq=False)
class _Overtaken:
    """A message that waits until ``by`` others have overtaken it."""

    message: Message
    by: int


class FaultyPull:
    """A pull whose deliveries may be late, or be handed out again though they are held."""

    def __init__(self, faults: Faults, bus: Bus, sink: Callable[[Delivery], None]) -> None:
        self.inner: Pull
        self._faults = faults
        self._bus = bus
        self._sink = sink
        self._late = 0
        self._lost = 0
        self._heard = faults.clock.monotonic()

    @property
    def credit(self) -> int:
        """Messages granted and not yet delivered."""
        return self.inner.credit + self._late + self._lost

    @property
    def last_heard(self) -> float:
        """Monotonic seconds of the broker's last answer; it stands still while the link is cut."""
        if not self._faults.is_cut:
            self._heard = self.inner.last_heard
        return self._heard

    @property
    def problem(self) -> str | None:
        """Why the pull cannot work now, or None."""
        return "not connected" if self._faults.is_cut else self.inner.problem

    def grant(self, count: int) -> None:
        """Allow ``count`` more messages; while the link is cut they are asked for when it is mended."""
        if self._faults.is_cut:
            self._lost += max(0, count)
        else:
            self.inner.grant(count)

    async def close(self) -> None:
        """Withdraw the outstanding credit."""
        self._lost = 0
        if self in self._faults.parts:
            self._faults.parts.remove(self)
        await self.inner.close()

    def mended(self) -> None:
        """Ask again for what went out while nobody was there; the broker hands that out again by itself."""
        lost, self._lost = self._lost, 0
        self.inner.grant(lost)

    def take(self, delivery: Delivery) -> None:
        """Hand a delivery on, now or later."""
        faults = self._faults
        if not faults.is_cut and faults.strikes("delay"):
            self._late += 1
            faults.later(faults.some_of(faults.rates.max_delay_s), lambda: self._give_late(delivery))
        else:
            self._give(delivery)

    def _give_late(self, delivery: Delivery) -> None:
        self._late -= 1
        self._give(delivery)

    def _give(self, delivery: Delivery) -> None:
        faults = self._faults
        if faults.is_cut:
            self._lost += 1
            return
        self._sink(delivery)
        if faults.strikes("duplicate"):
            faults.spawn(self._give_back(delivery.token, faults.some_of(faults.rates.max_delay_s)))

    async def _give_back(self, token: str, delay_s: float) -> None:
        # The broker counts it and keeps to the credit, as it does when a lease runs out.
        try:
            await self._bus.nak(token, delay_s=max(0.001, delay_s))
        except BusError:
            return


class FaultyTail:
    """A tail that may be late or break, and then goes on where it was."""

    def __init__(
        self,
        faults: Faults,
        reopen: Callable[[int, Callable[[Stored], None]], Awaitable[Tail]],
        sink: Callable[[Stored], None],
        *,
        start_seq: int,
        on_gap: Callable[[str], None] | None,
    ) -> None:
        self._faults = faults
        self._reopen = reopen
        self._sink = sink
        self._on_gap = on_gap
        self._next = max(1, start_seq)
        self._inner: Tail | None = None
        self._opened = 0
        self._waiting: deque[Stored] = deque()
        self._heard = faults.clock.monotonic()
        self._is_held = False
        self._is_closed = False

    @property
    def next_seq(self) -> int:
        """Every message on the subject with a sequence below was given to the sink, or does not exist."""
        if self._inner is not None and not self._waiting and not self._faults.is_cut:
            self._next = max(self._next, self._inner.next_seq)
        return self._next

    @property
    def last_heard(self) -> float:
        """Monotonic seconds of the broker's last sign; it stands still while the link is cut."""
        if self._inner is not None and not self._faults.is_cut:
            self._heard = max(self._heard, self._inner.last_heard)
        return self._heard

    @property
    def problem(self) -> str | None:
        """Why nothing can come now, or None."""
        if self._faults.is_cut:
            return "not connected"
        return self._inner.problem if self._inner is not None else "it is being opened again"

    def hold(self) -> None:
        """Let no more be asked for."""
        self._is_held = True
        if self._inner is not None:
            self._inner.hold()

    def resume(self) -> None:
        """Go on after ``hold``."""
        self._is_held = False
        if self._inner is not None:
            self._inner.resume()

    async def close(self) -> None:
        """End it; nothing reaches the sink afterwards. Closing twice is harmless."""
        self._is_closed = True
        self._waiting.clear()
        if self in self._faults.parts:
            self._faults.parts.remove(self)
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.close()

    def mended(self) -> None:
        """Break and go on, as a tail does after a reconnect."""
        self._break("the connection was lost")

    async def open(self) -> None:
        """Open it after the last message that the sink got."""
        self._opened += 1
        number = self._opened
        inner = await self._reopen(self._next, lambda stored: self._take(number, stored))
        if self._is_closed or number != self._opened:
            await inner.close()
            return
        if self._is_held:
            inner.hold()
        self._inner = inner

    # --- inside

    def _take(self, number: int, stored: Stored) -> None:
        faults = self._faults
        if number != self._opened or faults.is_cut or self._is_closed:
            return
        if self._waiting:
            self._waiting.append(stored)
        elif faults.strikes("reopen"):
            self._break("it broke")
        elif faults.strikes("delay"):
            self._waiting.append(stored)
            faults.later(faults.some_of(faults.rates.max_delay_s), lambda: self._release(number))
        else:
            self._give(stored)

    def _release(self, number: int) -> None:
        while self._waiting and number == self._opened and not self._faults.is_cut and not self._is_closed:
            self._give(self._waiting.popleft())

    def _give(self, stored: Stored) -> None:
        self._next = stored.seq + 1
        self._sink(stored)

    def _break(self, reason: str) -> None:
        self._waiting.clear()
        # What the broken one still brings bears an older number.
        self._opened += 1
        inner, self._inner = self._inner, None
        if self._on_gap is not None:
            self._on_gap(reason)
        self._faults.spawn(self._again(inner, self._opened))

    async def _again(self, broken: Tail | None, number: int) -> None:
        if broken is not None:
            await broken.close()
        while number == self._opened and not self._is_closed:
            try:
                await self.open()
            except BusClosedError:
                return
            except BusError:
                number = self._opened
                await self._faults.clock.sleep(_REOPEN_S)
            else:
                return
