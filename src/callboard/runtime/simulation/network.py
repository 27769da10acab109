"""The simulated broker and the links to it: latency, lost answers, a server that dies, a stream leader that is away.

Each direction of a link keeps its order, as TCP does. A request that is under way when its sender dies or is cut off
may still arrive, and then its answer is lost: so every outcome that the real network knows can come about at every
await.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

from callboard.runtime.bus import header
from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S, Delivery, Message
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.bus.memory_consumer import Taker
from callboard.runtime.bus.memory_pull import MemoryPull
from callboard.runtime.bus.memory_record import freeze
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusTimeoutError, NoRespondersError
from callboard.runtime.simulation.history import History

T = TypeVar("T")
# Answered by whoever has the connection, without a stream's leader.
_CORE = ("flush", "request")
# What a server that is killed no longer knows about its last deliveries (FACTS: the last tenth of a second).
FORGETS_S = 0.1
RECONNECT_MAX_S = 0.5
# A pull is asked for again when two idle heartbeats were missed.
PULL_AGAIN_MAX_S = 2.0

Gap = Literal["none", "refused", "silent"]


class SimulatedBroker(MemoryBroker):
    """The in-memory broker behind links that take time and break.

    Attributes:
        latency_s: Bounds of one way.
        gap: How it answers while its streams have no leader.
    """

    def __init__(self, clock: Clock, dice: random.Random, history: History, *, latency_s: tuple[float, float]) -> None:
        """Be up, with nothing stored."""
        super().__init__(clock)
        self.latency_s = latency_s
        self.gap: Gap = "none"
        self.dice = dice
        self.history = history
        self.context = contextvars.copy_context()
        self._began_s = clock.monotonic()
        self._buses: list[SimulatedBus] = []
        self._is_down = False

    def connect(self, *, name: str = "") -> SimulatedBus:
        """Return a new connection that belongs to the current process."""
        self._connected += 1
        bus = SimulatedBus(self, name=name or f"bus-{self._connected}", number=self._connected)
        self._buses.append(bus)
        if self._is_down:
            bus.cut_by("server")
        return bus

    def delay_s(self) -> float:
        """Return how long the next message takes one way."""
        low, high = self.latency_s
        return low + (high - low) * self.dice.random()

    def note(self, name: str, detail: str = "", *, host: str = "") -> None:
        """Write into the history."""
        self.history.add(self.clock.monotonic() - self._began_s, host, name, detail)

    # --- faults

    async def restart(self, down_s: float) -> None:
        """Die as by kill -9 and come back after ``down_s`` with what is on disk; the links come back one by one."""
        self.note("server-killed", f"{down_s:.3f} s")
        self._is_down = True
        for bus in self._buses:
            bus.cut_by("server")
        self._recover()
        await self.clock.sleep(down_s)
        self._is_down = False
        self.note("server-back")
        for bus in self._buses:
            self._later(self.dice.uniform(0.0, RECONNECT_MAX_S), partial(bus.mend_from, "server"))

    async def lose_leader(self, gap_s: float, gap: Gap) -> None:
        """Have no leader for any stream for ``gap_s``; plain messages pass.

        Args:
            gap_s: How long.
            gap: "refused" as after the leader's death (no responders), "silent" as while it hangs.
        """
        self.note("leader-gone", f"{gap} {gap_s:.3f} s")
        self.gap = gap
        for pull in self._open_pulls():
            pull.unlink()
        self._recover()
        await self.clock.sleep(gap_s)
        self.gap = "none"
        self.note("leader-back")
        for pull in self._open_pulls():
            self._later(self.dice.uniform(0.0, PULL_AGAIN_MAX_S), partial(self._ask_again, pull))

    def attach(self, stream: str, name: str, taker: Taker) -> None:
        """Let a pull take from a consumer; asked in vain while there is no leader."""
        if self.gap == "none":
            super().attach(stream, name, taker)

    def _recover(self) -> None:
        for name in self.stream_names():
            for _, consumer in sorted(self.stream(name).consumers.items()):
                consumer.recover(lost_s=FORGETS_S)

    def _open_pulls(self) -> list[MemoryPull]:
        return [pull for bus in self._buses for pull in bus.pulls]

    def _ask_again(self, pull: MemoryPull) -> None:
        if any(pull in bus.pulls and bus.is_connected for bus in self._buses):
            pull.relink()

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, act, context=self.context)


class SimulatedBus(MemoryBus):
    """A connection whose every message takes its time and may be lost with the link."""

    broker: SimulatedBroker

    def __init__(self, broker: SimulatedBroker, *, name: str, number: int) -> None:
        """Connect; use ``SimulatedBroker.connect``."""
        super().__init__(broker, name=name, number=number)
        self._out: deque[Callable[[], None] | None] = deque()
        self._in: deque[tuple[int, Callable[[], None]]] = deque()
        self._out_free_s = self._in_free_s = 0.0
        self._cut_by: dict[str, None] = {}

    @property
    def pulls(self) -> list[MemoryPull]:
        """The pulls that are open on it."""
        return [part for part in self._parts if isinstance(part, MemoryPull)]

    # --- how it is cut

    def cut_by(self, reason: str) -> None:
        """Break the link; it stays broken until ``mend_from`` was called for every reason."""
        self._cut_by[reason] = None
        self._lose()
        self.cut()

    def mend_from(self, reason: str) -> None:
        """Take a reason away; without any the link is back."""
        self._cut_by.pop(reason, None)
        if not self._cut_by:
            self.mend()

    def sever(self) -> None:
        """Close it at once; what it has sent may still arrive."""
        if self._is_open:
            self._lose()
        super().sever()

    def _lose(self) -> None:
        """Let what is on its way to the broker arrive at once up to some point, and lose the rest."""
        arriving = self.broker.dice.randint(0, len(self._out))
        under_way = list(self._out)
        # the callbacks that were to carry them find nothing
        self._out = deque(None for _ in under_way)
        for act in under_way[:arriving]:
            if act is not None:
                self.broker.context.copy().run(self._perform, act)

    # --- the two ways

    def post(self, act: Callable[[], None]) -> None:
        """Carry ``act`` to this end of the link."""
        self._in.append((self._link, act))
        self._in_free_s = max(self._in_free_s, self._loop.time() + self.broker.delay_s())
        self._loop.call_at(self._in_free_s, self._show_next, context=self._context)

    def _show_next(self) -> None:
        link, act = self._in.popleft()
        if self._is_open and link == self._link:
            act()

    def _travel(self, act: Callable[[], None]) -> None:
        self._out.append(act)
        self._out_free_s = max(self._out_free_s, self._loop.time() + self.broker.delay_s())
        self._loop.call_at(self._out_free_s, self._arrive, context=self.broker.context)

    def _arrive(self) -> None:
        act = self._out.popleft()
        if act is not None:
            self._perform(act)

    def _perform(self, act: Callable[[], None]) -> None:
        self.broker.run_due()
        act()

    # --- operations

    async def _ask(self, operation: Callable[[], T], *, what: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> T:
        self._check_open()
        answer: asyncio.Future[T] = self._loop.create_future()
        if self._is_linked:
            self._travel(partial(self._answer, operation, answer, what))
        return await self._within(answer, timeout_s, what=what)

    def _answer(self, operation: Callable[[], T], answer: asyncio.Future[T], what: str) -> None:
        gap = "none" if what.startswith(_CORE) else self.broker.gap
        self.broker.note(gap if gap != "none" else "done", what, host=self.name)
        if gap == "silent":
            return
        if gap == "refused":
            self.post(partial(_fail, answer, NoRespondersError(f"{what}: the stream has no leader")))
            return
        try:
            found = operation()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            self.post(partial(_fail, answer, error))
        else:
            self.post(partial(_fulfil, answer, found))

    def _tell(self, operation: Callable[[], None], *, what: str) -> None:
        self._check_open()
        if self._is_linked:
            self._travel(partial(self._take, operation, what))

    def _take(self, operation: Callable[[], None], what: str) -> None:
        gap = self.broker.gap
        self.broker.note(gap if gap != "none" else "done", what, host=self.name)
        if gap == "none":
            operation()

    async def pull(self, stream: str, consumer: str, sink: Callable[[Delivery], None]) -> MemoryPull:
        """Open a standing pull with no credit."""

        def noted(delivery: Delivery) -> None:
            detail = f"{stream}/{consumer} {delivery.seq}#{delivery.delivered}"
            self.broker.note("delivered", detail, host=self.name)
            sink(delivery)

        return await super().pull(stream, consumer, noted)

    def _send(self, message: Message) -> None:
        if self._is_linked:
            self._travel(partial(self._publish, message))
        else:
            super()._send(message)

    def _publish(self, message: Message) -> None:
        broker = self.broker
        broker.note("published", message.subject, host=self.name)
        if broker.gap != "none" and broker.stores(message.subject):
            broker.route(message)
        else:
            broker.publish(message)

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Message:
        """Publish and wait for the first answer."""
        self._check(subject, data, headers)
        answer: asyncio.Future[Message] = self._loop.create_future()
        inbox = self.inbox()
        subscription = await self.subscribe(inbox, partial(_take_answer, answer, subject))
        try:
            if self._is_linked:
                message = Message(subject, bytes(data), freeze(headers) or None, inbox)
                self._travel(partial(self._publish, message))
            return await self._within(answer, timeout_s, what=f"request to {subject}")
        finally:
            await subscription.close()

    async def _within(self, answer: asyncio.Future[T], timeout_s: float, *, what: str) -> T:
        error = BusTimeoutError(f"{what}: no answer within {timeout_s:g} s; the outcome is unknown")
        timer = self._loop.call_later(timeout_s, _fail, answer, error)
        self._waiting[answer] = None
        try:
            return await answer
        finally:
            timer.cancel()
            del self._waiting[answer]


def _take_answer(answer: asyncio.Future[Message], subject: str, message: Message) -> None:
    if not message.data and (message.headers or {}).get(header.STATUS) == header.NO_RESPONDERS:
        _fail(answer, NoRespondersError(f"nobody listens on {subject}"))
    else:
        _fulfil(answer, message)


def _fulfil(answer: asyncio.Future[Any], found: object) -> None:
    if not answer.done():
        answer.set_result(found)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
