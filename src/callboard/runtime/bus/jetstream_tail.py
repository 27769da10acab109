"""The standing tail: every message on a subject from a sequence on, for ever, across whatever breaks on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from callboard.runtime.bus.base import Delivery, Stored
from callboard.runtime.bus.jetstream_admin import Administration
from callboard.runtime.bus.jetstream_feed import Feed
from callboard.runtime.bus.jetstream_link import Link
from callboard.runtime.bus.jetstream_wire import delivered_as_stored
from callboard.runtime.errors import BusClosedError, BusError

_BACK_OFF_S = 0.25
_MAX_BACK_OFF_S = 2.0
_LOOK_S = 0.5
# What may still come while held, in bodies; beyond it the feed is given up and opened again by ``resume``.
_HELD_BYTES = 8 << 20


class StandingTail:
    """A tail; see ``base.Tail``."""

    def __init__(
        self,
        admin: Administration,
        link: Link,
        *,
        stream: str,
        subject: str,
        sink: Callable[[Stored], None],
        on_gap: Callable[[str], None] | None,
        start_seq: int,
    ) -> None:
        self._admin = admin
        self._link = link
        self._stream = stream
        self._subject = subject
        self._sink = sink
        self._on_gap = on_gap
        self._problem: str | None = None
        self._is_held = False
        self._is_closed = False
        self._withheld = 0
        self._held_bytes = 0
        self._failures = 0
        self._ready = asyncio.Event()
        self._feed = self._new_feed(max(1, start_seq))

    def __repr__(self) -> str:
        return f"<tail of {self._subject} in {self._stream} at {self.next_seq}, problem {self.problem!r}>"

    @property
    def next_seq(self) -> int:
        """Every message on the subject below was delivered or does not exist."""
        return self._feed.next_seq

    @property
    def last_heard(self) -> float:
        """Monotonic seconds of the server's last message or heartbeat."""
        return self._feed.last_heard

    @property
    def problem(self) -> str | None:
        """Why nothing can come now, or None."""
        return self._problem if self._link.is_up else "not connected"

    async def start(self) -> None:
        """Open it for the first time. One round trip, two when nothing waits.

        Raises:
            NotFoundError: If the stream does not exist.
        """
        self._link.attach(self, is_standing=True)
        self._set_ready()
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    def hold(self) -> None:
        """Stop granting credit."""
        self._is_held = True
        self._set_ready()

    def resume(self) -> None:
        """Go on granting credit."""
        self._is_held = False
        self._held_bytes = 0
        withheld, self._withheld = self._withheld, 0
        self._feed.grant(withheld)
        self._set_ready()

    async def close(self) -> None:
        """End it. Closing twice is harmless."""
        self._is_closed = True
        self._link.detach(self)
        self._ready.set()
        await self._feed.close()

    # --- as a part of the link

    def went_down(self) -> None:
        """Wait for its return."""
        self._ready.clear()

    def came_up(self) -> None:
        """Open again, unless held."""
        self._failures = 0
        self._set_ready()

    def tick(self, now: float) -> None:
        """Nothing to do: the feed listens for silence."""

    def denied(self, subject: str, message: str) -> None:
        """Nothing to do: the feed hears it."""

    # --- inside

    def _new_feed(self, next_seq: int) -> Feed:
        feed = Feed(
            self._admin,
            self._link,
            stream=self._stream,
            subjects=(self._subject,),
            take=self._take,
            broke=lambda reason: self._broke(feed, reason),
        )
        feed.next_seq = next_seq
        return feed

    def _set_ready(self) -> None:
        if self._is_closed or (self._link.is_up and not self._is_held):
            self._ready.set()
        else:
            self._ready.clear()

    def _take(self, delivery: Delivery) -> None:
        if self._is_held:
            self._withheld += 1
            self._held_bytes += len(delivery.data)
        else:
            self._feed.grant(1)
        self._sink(delivered_as_stored(delivery))
        if self._held_bytes > _HELD_BYTES:
            self._feed.fail("held, and too much came")

    def _broke(self, feed: Feed, reason: str) -> None:
        if feed is not self._feed or self._is_closed:
            return
        self._problem = reason
        if self._on_gap is not None:
            self._on_gap(reason)
        self._link.spawn(self._reopen(feed), f"tail-{self._subject}")

    async def _reopen(self, broken: Feed) -> None:
        await broken.close()
        if not broken.was_heard:
            await self._back_off()
        while True:
            await self._ready.wait()
            if self._is_closed:
                return
            try:
                await self._open()
            except BusClosedError:
                return
            except BusError as error:
                # All of them may pass: the server is starting, a stream is restored, a permission is mended.
                self._problem = str(error)
                await self._back_off()
            else:
                return

    async def _back_off(self) -> None:
        delay_s = min(_MAX_BACK_OFF_S, _BACK_OFF_S * 2**self._failures)
        self._failures = min(self._failures + 1, 8)
        await self._link.clock.sleep(delay_s)

    async def _open(self) -> None:
        start_seq = self.next_seq
        feed = self._new_feed(start_seq)
        waiting = await feed.open(start_seq=start_seq)
        if self._is_closed:
            await feed.close()
            return
        self._feed = feed
        self._withheld = 0
        self._problem = None
        self._failures = 0
        if not waiting and not await self._is_within(feed, start_seq):
            self._link.spawn(self._keep_looking(feed, start_seq), f"tail-look-{self._subject}")

    async def _is_within(self, feed: Feed, start_seq: int) -> bool:
        """Compare with the stream's end: a consumer that starts beyond it is made without a word and is deaf."""
        try:
            info = await self._admin.stream_info(self._stream)
        except BusError:
            return False
        if feed is not self._feed or not feed.is_open:
            return True
        # A stream that is gone takes the consumer along, and the feed hears of that.
        if info is None or feed.next_seq > start_seq or info.last_seq + 1 >= start_seq:
            self._problem = None
            return True
        is_new = self._problem is None
        self._problem = f"the stream ends at {info.last_seq} before the start at {start_seq}"
        if is_new and self._on_gap is not None:
            self._on_gap(self._problem)
        return False

    async def _keep_looking(self, feed: Feed, start_seq: int) -> None:
        # A server that is starting may say too little for seconds.
        while feed is self._feed and feed.is_open and not self._is_closed:
            await self._link.clock.sleep(_LOOK_S)
            if await self._is_within(feed, start_seq):
                return
