"""A durable pull consumer of the in-memory broker: who holds which message until when."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from callboard.runtime.bus.base import ConsumerConfig, ConsumerInfo, Delivery
from callboard.runtime.bus.memory_record import Record
from callboard.runtime.bus.memory_timer import SLACK_S, Timers
from callboard.runtime.clock import Clock

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ACK_SUBJECT = "$JS.ACK."


class Taker(Protocol):
    """A standing pull as the consumer sees it."""

    wanted: int

    def hand(self, delivery: Delivery) -> None:
        """Take a delivery, to be shown to its sink on a later loop turn."""
        ...


class Log(Protocol):
    """The stream as its consumer sees it."""

    @property
    def name(self) -> str:
        """Name of the stream."""
        ...

    @property
    def last_seq(self) -> int:
        """Its last sequence."""
        ...

    @property
    def is_workqueue(self) -> bool:
        """Whether a settled message is removed."""
        ...

    def record(self, seq: int) -> Record | None:
        """Return the message with this sequence."""
        ...

    def next_record(self, seq: int, patterns: tuple[str, ...]) -> Record | None:
        """Return the first message from ``seq`` on under one of the patterns."""
        ...

    def count_from(self, seq: int, pattern: str) -> int:
        """Return how many messages from ``seq`` on are under the pattern."""
        ...

    def remove(self, seq: int) -> bool:
        """Delete one message."""
        ...


class Pending:
    """A message that was handed out and not settled."""

    __slots__ = ("deadline", "delivered", "handed_at", "is_queued")

    def __init__(self) -> None:
        """Start with no delivery."""
        self.deadline = 0.0
        self.handed_at = 0.0
        self.delivered = 0
        self.is_queued = False


class MemoryConsumer:
    """Hands messages to takers in turn: what is due again first, then what is new.

    As in the real broker a message that comes back does so after newer ones that were handed out meanwhile, its
    redelivery does not count against ``max_ack_pending``, and any of its tokens settles or extends it, stale or not.
    """

    def __init__(self, stream: Log, config: ConsumerConfig, *, clock: Clock, timers: Timers) -> None:
        """Start at the first message of the stream."""
        self.config = config
        self._stream = stream
        self._clock = clock
        self._timers = timers
        self._cursor = 1
        self._deliveries = 0
        self._delivered_seq = 0
        self._pending: dict[int, Pending] = {}
        self._again: deque[int] = deque()
        self._takers: deque[Taker] = deque()

    def info(self) -> ConsumerInfo:
        """Return settings and state."""
        return ConsumerInfo(
            stream=self._stream.name,
            config=self.config,
            pending=self._stream.count_from(self._cursor, self.config.filter_subject),
            ack_pending=len(self._pending),
            redelivered=sum(1 for pending in self._pending.values() if pending.delivered > 1),
            deliveries=self._deliveries,
            delivered_seq=self._delivered_seq,
        )

    def attach(self, taker: Taker) -> None:
        """Queue a taker that wants messages; harmless when it is queued already."""
        if not any(queued is taker for queued in self._takers):
            self._takers.append(taker)
        self.pump()

    def detach(self, taker: Taker) -> None:
        """Forget a taker; what it holds comes back after ``ack_wait_s``."""
        self._takers = deque(queued for queued in self._takers if queued is not taker)

    def pump(self) -> None:
        """Hand out as long as there are takers and messages, one to each taker in turn."""
        while self._takers:
            taker = self._takers[0]
            if taker.wanted <= 0:
                self._takers.popleft()
                continue
            delivery = self._take()
            if delivery is None:
                return
            taker.wanted -= 1
            self._takers.rotate(-1)
            taker.hand(delivery)

    def settle(self, seq: int) -> None:
        """Take a message off for good (ack or term); a second time does nothing."""
        if self._pending.pop(seq, None) is None:
            return
        if self._stream.is_workqueue:
            self._stream.remove(seq)
        self.pump()

    def give_back(self, seq: int, delay_s: float) -> None:
        """Have a message handed out again after ``delay_s``; until then it counts as handed out."""
        pending = self._pending.get(seq)
        if pending is None:
            return
        if delay_s > 0:
            self._hold(seq, pending, delay_s)
        elif not pending.is_queued:
            self._queue_again(seq, pending)

    def extend(self, seq: int) -> None:
        """Give the holder of a message another ``ack_wait_s``."""
        pending = self._pending.get(seq)
        if pending is not None:
            self._hold(seq, pending, self.config.ack_wait_s)

    def forget(self, seq: int) -> None:
        """Drop a message that was deleted from the stream."""
        if self._pending.pop(seq, None) is not None:
            self.pump()

    def recover(self, *, lost_s: float) -> None:
        """Come back as after the death of its server.

        What was first handed out within the last ``lost_s`` is handed out again as if for the first time. Of the rest
        the extensions are forgotten: it comes again ``ack_wait_s`` after it was handed out, which may be now.
        """
        now_s = self._clock.monotonic()
        for seq, pending in list(self._pending.items()):
            if pending.delivered == 1 and now_s - pending.handed_at < lost_s:
                del self._pending[seq]
                self._cursor = min(self._cursor, seq)
            elif not pending.is_queued:
                self._hold(seq, pending, pending.handed_at + self.config.ack_wait_s - now_s)

    def _take(self) -> Delivery | None:
        while self._again:
            seq = self._again.popleft()
            pending = self._pending.get(seq)
            record = self._stream.record(seq)
            if pending is not None and pending.is_queued and record is not None:
                return self._hand_out(record, pending)
        if 0 < self.config.max_ack_pending <= len(self._pending):
            return None
        while True:
            record = self._stream.next_record(self._cursor, (self.config.filter_subject,))
            if record is None:
                # Nothing up to here matches; spare the next call the walk.
                self._cursor = self._stream.last_seq + 1
                return None
            self._cursor = record.seq + 1
            if record.seq not in self._pending:
                break
        pending = self._pending[record.seq] = Pending()
        return self._hand_out(record, pending)

    def _hand_out(self, record: Record, pending: Pending) -> Delivery:
        self._deliveries += 1
        self._delivered_seq = max(self._delivered_seq, record.seq)
        pending.delivered += 1
        pending.is_queued = False
        pending.handed_at = self._clock.monotonic()
        self._hold(record.seq, pending, self.config.ack_wait_s)
        waiting = self._stream.count_from(self._cursor, self.config.filter_subject)
        time_ns = (record.time - _EPOCH) // timedelta(microseconds=1) * 1000
        places = (pending.delivered, record.seq, self._deliveries, time_ns, waiting)
        token = f"{_ACK_SUBJECT}{self._stream.name}.{self.config.name}.{'.'.join(map(str, places))}"
        return Delivery(
            subject=record.subject,
            data=record.data,
            headers=record.headers or None,
            token=token,
            seq=record.seq,
            delivered=pending.delivered,
            pending=waiting,
            time_ns=time_ns,
        )

    def _hold(self, seq: int, pending: Pending, wait_s: float) -> None:
        pending.deadline = self._clock.monotonic() + wait_s
        self._timers.call_at(pending.deadline, partial(self._expire, seq))

    def _expire(self, seq: int) -> None:
        pending = self._pending.get(seq)
        # Every extension leaves an older timer behind: only the one that meets the current deadline counts.
        if pending is None or pending.is_queued or pending.deadline > self._clock.monotonic() + SLACK_S:
            return
        self._queue_again(seq, pending)

    def _queue_again(self, seq: int, pending: Pending) -> None:
        if 0 < self.config.max_deliver <= pending.delivered:
            # As in the real broker it stays in the stream for ever, undeliverable.
            del self._pending[seq]
            return
        pending.is_queued = True
        self._again.append(seq)
        self.pump()


def parse_token(token: str) -> tuple[str, str, int] | None:
    """Return stream, consumer and sequence that an ack token names, or None when it is no token."""
    parts = token.split(".")
    if not token.startswith(_ACK_SUBJECT) or len(parts) != 9 or not parts[5].isdigit():  # noqa: PLR2004 - its places
        return None
    return parts[2], parts[3], int(parts[5])
