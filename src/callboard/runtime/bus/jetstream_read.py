"""An ordered reader: a short-lived consumer without acks, made anew after whatever was seen last when it breaks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.jetstream_admin import Administration
from callboard.runtime.bus.jetstream_link import Link
from callboard.runtime.bus.jetstream_pull import StandingPull
from callboard.runtime.bus.jetstream_wire import Json, consumer_seq
from callboard.runtime.errors import BusError
from callboard.runtime.ids import new_token

# Enough to keep a reader busy over a round trip; twice of it is what lies in memory at most.
WINDOW = 256

_INACTIVE_NS = 30_000_000_000
# With messages waiting and credit to spare, silence for so long means that some were lost on the way.
_STUCK_S = 3.0
_LOOK_S = 0.5


class OrderedReader:
    """One consumer's worth of reading. It only notices that it broke; its owner opens the next one."""

    def __init__(self, admin: Administration, link: Link, stream: str, subjects: Sequence[str]) -> None:
        self._admin = admin
        self._link = link
        self._stream = stream
        self._subjects = list(subjects)
        self._name = ""
        self._pull: StandingPull | None = None
        self._arrived: deque[Delivery] = deque()
        self._signal = asyncio.Event()
        self._expected = 1
        self._waiting = 0
        self._is_broken = False

    async def open(self, *, start_seq: int | None, start_time: datetime | None) -> int:
        """Make the consumer and begin to pull; return how many messages wait. One round trip.

        Raises:
            BusError: If it cannot be made.
        """
        self._name = f"read-{new_token()}"
        config: Json = {
            "name": self._name,
            "ack_policy": "none",
            "deliver_policy": "all",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE_NS,
        }
        if self._subjects:
            config["filter_subjects"] = self._subjects
        if start_seq is not None:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start_seq)}
        elif start_time is not None:
            stamp = start_time.astimezone(UTC).isoformat().replace("+00:00", "Z")
            config |= {"deliver_policy": "by_start_time", "opt_start_time": stamp}
        path = f"CONSUMER.CREATE.{self._stream}.{self._name}"
        # Its own name, so that a repeat after a lost answer finds itself.
        answer = await self._admin._api(path, {"stream_name": self._stream, "config": config, "action": ""})  # noqa: SLF001
        self._waiting = int(answer.get("num_pending", 0))
        self._link.attach(self)
        self._pull = StandingPull(self._link, self._stream, self._name, self._take)
        self._pull.grant(WINDOW)
        return self._waiting

    async def batch(self) -> list[Delivery]:
        """Return what has arrived, in order; empty when the reader broke."""
        idle_since = self._link.clock.monotonic()
        while not self._arrived and not self._is_broken:
            self._signal.clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._signal.wait()
            except TimeoutError:
                silent_s = self._link.clock.monotonic() - idle_since
                is_stuck = self._waiting > 0 and silent_s > _STUCK_S
                if is_stuck or self._pull is None or self._pull.problem is not None:
                    self._is_broken = True
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived

    def taken(self, count: int) -> None:
        """Say that ``count`` messages are used up, so that more may come."""
        if self._pull is not None:
            self._pull.grant(count)

    async def close(self) -> None:
        """Give up the consumer; the server forgets it by itself when it does not hear of this."""
        self._link.detach(self)
        pull, self._pull = self._pull, None
        if pull is not None:
            await pull.close()
            if self._link.is_up:
                self._link.spawn(self._delete(), f"read-close-{self._name}")

    async def _delete(self) -> None:
        try:
            await self._admin.delete_consumer(self._stream, self._name)
        except BusError:
            # Its inactivity threshold removes it as well.
            return

    def _take(self, delivery: Delivery) -> None:
        if consumer_seq(delivery.token) != self._expected:
            self._is_broken = True
        if not self._is_broken:
            self._expected += 1
            self._waiting = delivery.pending
            self._arrived.append(delivery)
        self._signal.set()

    # --- as a part of the link

    def went_down(self) -> None:
        """What was on its way is lost, and nothing would tell."""
        self._is_broken = True
        self._signal.set()

    def came_up(self) -> None:
        """Nothing to do: the next one is opened by the owner."""

    def tick(self, now: float) -> None:
        """Nothing to do: ``batch`` looks for itself."""

    def denied(self, subject: str, message: str) -> None:
        """Nothing to do: the pull hears it and has a problem."""
