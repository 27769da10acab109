"""The standing pull: credit for one durable consumer, kept alive across lost requests and lost connections."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

from callboard.runtime import events
from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.jetstream_link import DESCRIPTION, NO_RESPONDERS, Link, Listener, Raw
from callboard.runtime.bus.jetstream_wire import to_delivery
from callboard.runtime.errors import BusError

EXPIRES_S = 30.0
# Two that stay away are noticed within six seconds, about as long as a consumer takes to find another leader.
HEARTBEAT_S = 2.0

_NS = 1_000_000_000
_HEARTBEAT = "100"
_PENDING = "Nats-Pending-Messages"
_MISSED_HEARTBEATS = 2
# Late by less than this, a heartbeat is not missed.
_GRACE_S = 1.0
_BACK_OFF_S = 0.25
_MAX_BACK_OFF_S = 2.0
# A request that the server cannot place is answered within a round trip; silence for so long means that it stands.
_STANDS_S = 1.0
_inboxes = count(1)


class StandingPull:
    """A pull on one consumer.

    Credit is in one of two places: *asked*, in requests that stand at the server, or *owed*, still to be asked. Each
    request is a waiting entry at the server (512 a consumer, shared by all workers), so credit is gathered until it is
    at least what stands, which keeps the number of standing requests logarithmic and never leaves the server dry.

    Requests answer to an inbox of their own. It is given up, and with it everything that still stands at the server,
    before the same credit is asked again on a new one: so no message beyond the credit can come.
    """

    def __init__(
        self,
        link: Link,
        stream: str,
        consumer: str,
        sink: Callable[[Delivery], None],
        *,
        heartbeat_s: float = HEARTBEAT_S,
        expires_s: float = EXPIRES_S,
    ) -> None:
        self._link = link
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._what = f"consumer {consumer} of stream {stream}"
        self._consumer = consumer
        self._sink = sink
        self._heartbeat_s = heartbeat_s
        self._expires_s = expires_s
        self._asked = 0
        self._owed = 0
        self._listener: Listener | None = None
        self._inbox = ""
        # One task at a time asks or re-arms; what is granted meanwhile goes along.
        self._is_busy = False
        self._is_resting = False
        self._is_closed = False
        # A re-arm that came while busy, with its delay.
        self._lapse_s: float | None = None
        self._refusals = 0
        self._problem: str | None = None
        self._last_heard = self._last_asked = link.clock.monotonic()
        link.attach(self, is_standing=True)

    def __repr__(self) -> str:
        return f"<pull on {self._what}: {self._asked} asked, {self._owed} owed, problem {self.problem!r}>"

    @property
    def credit(self) -> int:
        """Messages granted and not yet delivered."""
        return self._asked + self._owed

    @property
    def last_heard(self) -> float:
        """Monotonic seconds when the broker last answered this pull."""
        return self._last_heard

    @property
    def problem(self) -> str | None:
        """Why the pull cannot work now, or None."""
        return self._problem if self._link.is_up else "not connected"

    def grant(self, count: int) -> None:
        """Allow ``count`` more messages."""
        if count > 0 and not self._is_closed:
            self._owed += count
            self._wake()

    async def close(self) -> None:
        """Withdraw the outstanding credit. One round trip, in which messages on their way still reach the sink."""
        if self._is_closed:
            return
        self._is_closed = True
        self._link.detach(self)
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.drain()
        self._asked = self._owed = 0

    # --- as a part of the link

    def went_down(self) -> None:
        """Give up the inbox, so that a request still in the client's buffer finds nobody when it goes out."""
        self._give_up()
        listener, self._listener = self._listener, None
        if listener is not None:
            self._link.spawn(listener.close(), f"pull-drop-{self._consumer}")

    def came_up(self) -> None:
        """Ask for all that is outstanding."""
        self._refusals = 0
        self._is_resting = False
        self._last_heard = self._link.clock.monotonic()
        self._wake()

    def tick(self, now: float) -> None:
        """Notice that the server has fallen silent, or that it accepts what it refused before."""
        if not self._link.is_up or self._is_busy or not self._asked:
            return
        since = max(self._last_heard, self._last_asked)
        if self._problem is not None and now - since > _STANDS_S:
            self._heal()
        if now - since > _MISSED_HEARTBEATS * self._heartbeat_s + _GRACE_S:
            self._link.report(events.BUS_DEAFENED, {"consumer": self._consumer, "silent_s": round(now - since, 1)})
            self._link.unanswered()
            self._rearm(0.0)

    def denied(self, subject: str, message: str) -> None:
        """Keep asking, slowly: permissions can be mended while we run."""
        if subject == self._subject.lower() and not self._is_closed:
            self._refuse(message)

    # --- asking

    def _wake(self) -> None:
        ready = not (self._is_busy or self._is_resting or self._is_closed) and self._link.is_up
        if ready and self._owed and self._owed >= self._asked:
            self._is_busy = True
            self._link.spawn(self._ask(), f"pull-{self._consumer}")

    async def _ask(self) -> None:
        try:
            if self._listener is None:
                self._inbox = f"{self._link.base}.m.{next(_inboxes)}"
                self._listener = await self._link.listen(self._inbox, self._deliver)
                if self._is_closed:
                    await self._listener.close()
            count, inbox = self._owed, self._inbox
            if not count or self._is_closed or not self._link.is_up:
                return
            self._owed -= count
            self._asked += count
            self._last_asked = self._link.clock.monotonic()
            await self._link.send(self._subject, self._request(count), inbox, None)
        except BusError as error:
            # Nothing left: the link is closed or its buffer full. Its return brings us back.
            self._problem = str(error)
            self._give_up()
        finally:
            self._is_busy = False
        self._go_on()

    def _go_on(self) -> None:
        lapse_s, self._lapse_s = self._lapse_s, None
        if lapse_s is not None:
            self._rearm(lapse_s)
        else:
            self._wake()

    def _request(self, count: int) -> bytes:
        heartbeat, expires = (round(seconds * _NS) for seconds in (self._heartbeat_s, self._expires_s))
        return b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (count, expires, heartbeat)

    def _give_up(self) -> None:
        self._owed += self._asked
        self._asked = 0

    def _rearm(self, delay_s: float) -> None:
        if self._is_busy:
            self._lapse_s = delay_s
        elif not self._is_closed:
            self._is_busy = True
            self._is_resting = delay_s > 0
            if delay_s > 0:
                self._link.loop.call_later(delay_s, self._rested)
            self._link.spawn(self._leave(), f"pull-rearm-{self._consumer}")

    async def _leave(self) -> None:
        listener, self._listener = self._listener, None
        try:
            if listener is not None:
                # What the server has sent before it learns of this still counts against the credit.
                await listener.drain()
        finally:
            self._give_up()
            self._is_busy = False
        # A refusal heard while leaving belongs to what was left.
        self._lapse_s = None
        self._wake()

    def _rested(self) -> None:
        self._is_resting = False
        self._wake()

    # --- hearing

    def _deliver(self, raw: Raw) -> None:
        self._last_heard = self._link.clock.monotonic()
        if not raw.reply:
            self._status(raw)
            return
        if self._asked:
            self._asked -= 1
        if self._problem is not None or self._refusals:
            self._heal()
        self._sink(to_delivery(raw))
        if self._owed:
            self._wake()

    def _status(self, raw: Raw) -> None:
        status = raw.status
        if status == _HEARTBEAT:
            self._heal()
            return
        if not status:
            # Not from the server: anybody who may publish on our inbox.
            return
        headers = raw.headers or {}
        reason = headers.get(DESCRIPTION, "")
        self._link.report(events.BUS_REPULLED, {"consumer": self._consumer, "status": f"{status} {reason}".strip()})
        if status == NO_RESPONDERS:
            self._refuse(f"{self._what} does not exist, or its server is starting")
        elif status in {"404", "408"} or "Leadership" in reason or "Shutdown" in reason:
            lost = headers.get(_PENDING, "")
            if lost.isdigit():
                self._return(int(lost))
            else:
                self._rearm(0.0)
        else:
            self._refuse(f"{self._what}: {reason or status}")

    def _return(self, lost: int) -> None:
        lost = min(lost, self._asked)
        self._asked -= lost
        self._owed += lost
        self._wake()

    def _refuse(self, problem: str) -> None:
        self._problem = problem
        delay_s = min(_MAX_BACK_OFF_S, _BACK_OFF_S * 2**self._refusals) * random.uniform(0.75, 1.25)
        self._refusals = min(self._refusals + 1, 8)
        self._rearm(delay_s)

    def _heal(self) -> None:
        self._problem = None
        self._refusals = 0
