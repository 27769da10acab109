"""An ordered feed: a short-lived consumer without acks that says when it broke, and then never delivers again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import count

from callboard.runtime import events
from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.jetstream_admin import Administration
from callboard.runtime.bus.jetstream_link import DESCRIPTION, Link, Listener, Raw
from callboard.runtime.bus.jetstream_wire import Json, to_ordered
from callboard.runtime.errors import BusError, BusTimeoutError
from callboard.runtime.ids import new_token

# Enough to keep a reader busy over a round trip; it is what lies in memory at most when the reader stands still.
WINDOW = 256

_NS = 1_000_000_000
_INACTIVE_NS = 30 * _NS
_EXPIRES_NS = 30 * _NS
_HEARTBEAT_S = 1.0
# Two heartbeats and a bit, seen by two looks half a second apart: a loop that was blocked reads before the second.
_SILENT_S = 2.5
_SILENT_LOOKS = 2
_HEARTBEAT = "100"
_EXPIRED = "408"
_LAST_CONSUMER = "Nats-Last-Consumer"
_LAST_STREAM = "Nats-Last-Stream"
_PENDING = "Nats-Pending-Messages"
_inboxes = count(1)


class Feed:
    """One consumer's worth of messages, in order and without a gap, until it breaks.

    It breaks by a gap in the consumer's numbering (seen by the next message or heartbeat), any status but an idle
    heartbeat and an expired request, a lost connection, and silence. ``broke`` is told once why, ``take`` gets nothing
    after that; the owner opens the next feed at ``next_seq``. ``idled`` is called with each heartbeat that fits.

    Attributes:
        next_seq: All wanted messages below were handed to ``take``; idle heartbeats move it past unwanted ones.
        last_heard: Monotonic seconds of the server's last message or heartbeat.
        is_open: It delivers.
        was_heard: Anything has come at all, so that opening another one at once cannot spin.
    """

    def __init__(
        self,
        admin: Administration,
        link: Link,
        *,
        stream: str,
        subjects: Sequence[str],
        take: Callable[[Delivery], None],
        broke: Callable[[str], None],
        idled: Callable[[], None] = lambda: None,
    ) -> None:
        self.next_seq = 1
        self.last_heard = link.clock.monotonic()
        self.was_heard = False
        self._admin = admin
        self._link = link
        self._stream = stream
        self._subjects = list(subjects)
        self._take = take
        self._broke = broke
        self._idled = idled
        self._name = f"read-{new_token()}"
        self._pull_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{self._name}"
        self._inbox = f"{link.base}.f.{next(_inboxes)}"
        self._listener: Listener | None = None
        self._expected = 1
        self._asked = 0
        self._owed = 0
        self._last_asked = self.last_heard
        self._silences = 0
        self.is_open = False
        self._break = ""

    async def open(self, *, start_seq: int | None, start_time: datetime | None = None) -> int:
        """Make the consumer and ask for the first messages; return how many wait. One round trip.

        Raises:
            BusError: If it cannot be made.
        """
        self.next_seq = max(1, start_seq or 1)
        self._link.attach(self, is_standing=True)
        try:
            waiting = await self._begin(self._config(start_seq, start_time))
        except BaseException:
            await self.close()
            raise
        self.is_open = True
        self.grant(WINDOW)
        return waiting

    def grant(self, count: int) -> None:
        """Allow ``count`` more messages. A request goes out for every half of what may be on its way."""
        self._owed += count
        if self._owed >= self._asked and self.is_open:
            asked, self._owed = self._owed, 0
            self._asked += asked
            self._last_asked = self._link.clock.monotonic()
            self._link.spawn(self._ask(asked), f"{self._name}-ask")

    def fail(self, reason: str) -> None:
        """Break, for ``reason``."""
        if self._break:
            return
        self._break = reason
        if self.is_open:
            self.is_open = False
            self._link.report(events.BUS_REPULLED, {"consumer": self._name, "status": reason})
            self._broke(reason)

    async def is_dry(self) -> bool:
        """Return whether the server has nothing more for us now, and nothing of it is on its way. One round trip.

        Raises:
            BusError: If that cannot be told.
        """
        answer = await self._admin._api(f"CONSUMER.INFO.{self._stream}.{self._name}")  # noqa: SLF001
        sent = answer.get("delivered", {}).get("consumer_seq", 0)
        return not answer.get("num_pending", 0) and sent == self._expected - 1

    async def close(self) -> None:
        """Give up the consumer; the server forgets it by itself when it does not hear of this."""
        self.is_open = False
        self._break = self._break or "closed"
        self._link.detach(self)
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()
            if self._link.is_up:
                self._link.spawn(self._delete(), f"{self._name}-close")

    # --- as a part of the link

    def went_down(self) -> None:
        """What was on its way is lost, and nothing would tell."""
        self.fail("the connection was lost")

    def came_up(self) -> None:
        """Nothing to do: the owner opens the next one."""

    def tick(self, now: float) -> None:
        """Notice that the server has fallen silent."""
        silent_s = now - max(self.last_heard, self._last_asked)
        if not self.is_open or not self._asked or silent_s < _SILENT_S:
            self._silences = 0
            return
        self._silences += 1
        if self._silences >= _SILENT_LOOKS:
            self._link.report(events.BUS_DEAFENED, {"consumer": self._name, "silent_s": round(silent_s, 1)})
            self._link.unanswered()
            self.fail(f"the server was silent for {silent_s:.1f} s")

    def denied(self, subject: str, message: str) -> None:
        """Break when we may not pull."""
        if subject == self._pull_subject.lower():
            self.fail(message)

    # --- inside

    async def _begin(self, config: Json) -> int:
        path = f"CONSUMER.CREATE.{self._stream}.{self._name}"
        if "filter_subject" in config:
            # the filter in the subject lets permissions tell one reader's subjects from another's
            path += f".{config['filter_subject']}"
        # Its own name, so that a repeat after a lost answer finds itself.
        answer = await self._admin._api(path, {"stream_name": self._stream, "config": config, "action": ""})  # noqa: SLF001
        self._listener = await self._link.listen(self._inbox, self._deliver)
        if self._break:
            message = f"stream {self._stream}: {self._break} while a reader was opened"
            raise BusTimeoutError(message)
        return int(answer.get("num_pending", 0))

    def _config(self, start_seq: int | None, start_time: datetime | None) -> Json:
        config: Json = {
            "name": self._name,
            "ack_policy": "none",
            "deliver_policy": "all",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE_NS,
        }
        if len(self._subjects) == 1:
            config["filter_subject"] = self._subjects[0]
        elif self._subjects:
            config["filter_subjects"] = self._subjects
        if start_seq is not None:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start_seq)}
        elif start_time is not None:
            stamp = start_time.astimezone(UTC).isoformat().replace("+00:00", "Z")
            config |= {"deliver_policy": "by_start_time", "opt_start_time": stamp}
        return config

    async def _ask(self, asked: int) -> None:
        heartbeat_ns = round(_HEARTBEAT_S * _NS)
        request = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (asked, _EXPIRES_NS, heartbeat_ns)
        try:
            await self._link.send(self._pull_subject, request, self._inbox, None)
        except BusError as error:
            self.fail(str(error))

    async def _delete(self) -> None:
        try:
            await self._admin.delete_consumer(self._stream, self._name)
        except BusError:
            # Its inactivity threshold removes it as well.
            return

    def _deliver(self, raw: Raw) -> None:
        if not self.is_open:
            return
        if not raw.reply:
            self._status(raw)
            return
        self.last_heard = self._link.clock.monotonic()
        self.was_heard = True
        delivery, place = to_ordered(raw)
        if place != self._expected:
            self.fail(f"a gap: message {place} of the consumer came for {self._expected}")
            return
        self._expected += 1
        self._asked -= 1
        self.next_seq = delivery.seq + 1
        self._take(delivery)

    def _status(self, raw: Raw) -> None:
        status, headers = raw.status, raw.headers or {}
        if not status:
            # Not from the server: anybody who may publish on our inbox.
            return
        self.last_heard = self._link.clock.monotonic()
        if status == _HEARTBEAT:
            self.was_heard = True
            self._beat(headers)
        elif status == _EXPIRED and headers.get(_PENDING, "").isdigit():
            lost = min(int(headers[_PENDING]), self._asked)
            self._asked -= lost
            self.grant(lost)
        else:
            self.fail(f"status {status} {headers.get(DESCRIPTION, '')}".strip())

    def _beat(self, headers: dict[str, str]) -> None:
        place, seq = headers.get(_LAST_CONSUMER, ""), headers.get(_LAST_STREAM, "")
        if not place.isdigit() or not seq.isdigit():
            return
        if int(place) != self._expected - 1:
            self.fail(f"a gap: the consumer has sent {place} messages, {self._expected - 1} came")
        else:
            self.next_seq = max(self.next_seq, int(seq) + 1)
            self._idled()
