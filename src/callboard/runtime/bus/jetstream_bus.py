"""The whole of the JetStream bus, put together from its parts over one connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, Protocol

from msgspec import json

from callboard.runtime import events
from callboard.runtime.bus import muster
from callboard.runtime.bus.base import PubAck, ServerInfo
from callboard.runtime.bus.jetstream_call import Calls
from callboard.runtime.bus.jetstream_core import SENT_KEPT, Core
from callboard.runtime.bus.jetstream_get import Reader, ends
from callboard.runtime.bus.jetstream_link import WHO, Link, Raw
from callboard.runtime.bus.jetstream_store import Writer
from callboard.runtime.bus.jetstream_wire import proves, to_pub_ack
from callboard.runtime.bus.jetstream_work import confirmed
from callboard.runtime.errors import (
    BusConnectError,
    BusError,
    BusTimeoutError,
    NoLeaderError,
    NotFoundError,
    PermissionDeniedError,
    TopologyError,
)

MINIMUM_VERSION = (2, 12)

_RETRY_S = 0.2
_STARTING_S = 1.0
_WHO_TIMEOUT_S = 1.0
# How long a call may wait before it is asked whether JetStream is there at all, and how long that may take.
_PATIENCE_S = 1.0
_UNPROVEN_S = 3.0
_PROBE_S = 0.75
# One question to a cluster that may have no leader yet; it is asked again.
_ASK_S = 1.0
_ASK_MAX_S = 4.0


class Connection(Link, Protocol):
    """A link as its owner sees it."""

    @property
    def connected_at(self) -> float:
        """Monotonic seconds of the last connect or reconnect."""
        ...

    @property
    def servers(self) -> list[str]:
        """The addresses we were given, without secrets."""
        ...

    def describe(self) -> ServerInfo:
        """Return what is known of the server without asking it."""
        ...

    async def renew(self) -> None:
        """Leave the server, for another if there is one. Returns at once; harmless when the link is down."""
        ...

    async def finish(self) -> None:
        """Send what is waiting, for a second at most."""
        ...

    async def close(self) -> None:
        """Disconnect. Closing twice is harmless."""
        ...


class JetStreamBus(Core, Writer, Reader):
    """One connection to a NATS server with JetStream. Use ``jetstream.connect``."""

    def __init__(self, link: Connection, *, name: str, is_guest: bool = False) -> None:
        self._link: Connection = link
        self._name = name
        self._is_guest = is_guest
        self._inboxes = count(1)
        self._sent = deque(maxlen=SENT_KEPT)
        self._refusal = self._known_stream = ""
        self._is_probing = False
        self._replicas = {}
        self._callbacks: list[Callable[[], None]] = []
        self._server = link.describe()
        self._requests = Calls(link, "r", _itself, is_jetstream=False)
        self._api_calls = Calls(link, "a", _itself, is_jetstream=True)
        self._gets = Calls(link, "g", ends, is_jetstream=True)
        self._stores: Calls[PubAck] = Calls(link, "p", self._stored, is_jetstream=True, proves=proves)
        self._acks: Calls[bool] = Calls(link, "d", confirmed, is_jetstream=True, proves=proves)
        self._calls: list[Calls[Any]] = [self._requests, self._api_calls, self._gets, self._stores, self._acks]

    def __repr__(self) -> str:
        return f"<JetStreamBus {self._name!r} to {self._server.url} {'up' if self.is_connected else 'down'}>"

    async def start(self, deadline: float) -> None:
        """Begin to listen and check the server; called by ``connect``."""
        for calls in self._calls:
            await calls.start()
        self._link.attach(self)
        # Nothing is listened to above but our own inboxes: a refusal means that the prefix is not ours.
        await self._link.flush(max(0.1, deadline - self._link.clock.monotonic()))
        if self._refusal:
            message = f"{self._refusal}: set the inbox prefix that this user may listen below"
            raise PermissionDeniedError(message, subject=self._link.base)
        self._check_version()
        await self._check_jetstream(deadline)
        await self._learn()
        self._link.report(events.BUS_CONNECTED, {"server": self._server.url, "version": self._server.version})

    @property
    def is_connected(self) -> bool:
        """Whether the link is up now."""
        return self._link.is_up

    @property
    def connected_at(self) -> float:
        """Monotonic seconds of the last connect or reconnect."""
        return self._link.connected_at

    @property
    def server(self) -> ServerInfo:
        """The server we are (or were last) connected to; name and cluster come a round trip after a reconnect."""
        return self._server

    @property
    def is_guest(self) -> bool:
        """Whether our user may only hand in mail and delayed tasks, for a worker to store them."""
        return self._is_guest

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop after each reconnect."""
        self._callbacks.append(callback)

    async def reconnect(self) -> None:
        """Drop the link and connect anew, to another server where there is one. Returns at once."""
        await self._link.renew()

    async def close(self) -> None:
        """Flush what can be flushed within a second, then disconnect. Closing twice is harmless."""
        await self._link.finish()
        for calls in self._calls:
            calls.close()
        await self._link.close()

    # --- as a part of the link

    def went_down(self) -> None:
        """Nothing to do: pending calls and pulls hear it themselves."""

    def came_up(self) -> None:
        """Tell those who asked, and find out where we are."""
        self._server = self._link.describe()
        self._link.spawn(self._learn(), "bus-server-info")
        for callback in self._callbacks:
            self._link.loop.call_soon(callback)

    def tick(self, now: float) -> None:
        """Ask, when a call goes unanswered or nothing comes for long, whether our server reaches a leader at all.

        Without this a caller that waits five seconds for each answer would sit on a server cut off for a quarter of
        a minute, and an idle worker for ever; three questions unanswered make the link leave it.
        """
        waiting = [since for calls in self._calls if (since := calls.waiting_since()) is not None]
        is_due = self._link.unproven_s(now) > _UNPROVEN_S or (waiting and now - min(waiting) > _PATIENCE_S)
        if is_due and self._link.is_up and not self._is_probing:
            self._is_probing = True
            self._link.spawn(self._probe(), "bus-probe")

    def denied(self, subject: str, message: str) -> None:
        """Notice that our own inboxes, at the start, or plain publishes are refused."""
        if subject.startswith(self._link.base.lower()):
            self._refusal = message
        self._was_denied(subject, message)

    def _stored(self, raw: Raw, subject: str) -> PubAck | BusError | None:
        answer = to_pub_ack(raw, subject)
        if isinstance(answer, PubAck):
            self._know(answer.stream)
        return answer

    async def _probe(self) -> None:
        try:
            # its answer, or its silence, is what counts
            with suppress(BusError):
                await self._ask_leader()
        finally:
            self._is_probing = False

    async def _ask_leader(self) -> None:
        """Ask a stream's leader, if we know a stream and may; whom the cluster's own leader hears, nobody tells."""
        if not self._known_stream and self._server.cluster:
            with suppress(PermissionDeniedError):
                names = (await self._api("STREAM.NAMES", timeout_s=_PROBE_S)).get("streams") or [""]
                self._know(str(names[0]))
        if self._known_stream:
            try:
                await self._api(f"STREAM.INFO.{self._known_stream}", timeout_s=_PROBE_S)
            except (PermissionDeniedError, NotFoundError):
                self._know("")
            else:
                return
        await self._api("INFO", timeout_s=_PROBE_S)
        self._link.answered()

    # --- the server

    def _check_version(self) -> None:
        version = tuple(int(part) for part in self._server.version.split("-")[0].split(".")[:2])
        if version < MINIMUM_VERSION:
            wanted = ".".join(map(str, MINIMUM_VERSION))
            message = (
                f"the server at {self._server.url} is {self._server.version}: Callboard needs {wanted} or newer, "
                "which brought atomic batches and schedules"
            )
            raise TopologyError(message)

    async def _check_jetstream(self, deadline: float) -> None:
        """Ask until JetStream answers: a cluster that is choosing a leader drops the question, and says so only later.

        Raises:
            BusConnectError: If it has not in time.
            TopologyError: If it never will.
        """
        clock = self._link.clock
        # A server that has just started may answer "nobody" for a moment.
        patience = min(deadline, clock.monotonic() + _STARTING_S)
        was_told = False
        wait_s = _ASK_S
        while True:
            left_s = deadline - clock.monotonic()
            try:
                await self._api("INFO", timeout_s=max(0.1, min(wait_s, left_s)))
            except PermissionDeniedError:
                # A worker need not be allowed to ask; what it may do will show.
                return
            except BusError as error:
                if clock.monotonic() < (patience if error.code == "no_responders" else deadline) and error.retryable:
                    if not was_told:
                        was_told = True
                        self._link.report(
                            events.BUS_WAITED,
                            {"server": self._link.describe().url, "code": error.code, "message": str(error)},
                        )
                    await clock.sleep(_RETRY_S)
                    # longer each time: it may be slow, and answer the last question only after the next
                    wait_s = min(2 * wait_s, _ASK_MAX_S)
                    continue
                raise await self._not_working(error) from error
            return

    async def _not_working(self, error: BusError) -> BusError:
        """Return the error that says what to do when JetStream does not work at the end of our patience."""
        servers = self._link.servers
        if not isinstance(error, BusTimeoutError | NoLeaderError):
            return TopologyError(
                f"JetStream does not work on {self._server.url} ({error}): start the server with -js, or switch "
                "JetStream on for this account"
            )
        if len(servers) > 1:
            return BusConnectError(muster.explain(await muster.look(servers)))
        return BusConnectError(
            f"the server at {self._server.url} lets us in, but its JetStream does not answer ({error}): in a "
            "cluster more than half of the servers must run and reach each other, their logs say more; where they "
            "only need longer to choose a leader, raise nats.connect_deadline_s"
        )

    async def _learn(self) -> None:
        """Ask the server for its name, best effort: the client keeps it to itself, and permissions may forbid it."""
        with suppress(BusError, ValueError, KeyError):
            raw, _ = await self._requests.one(WHO, b"", _WHO_TIMEOUT_S)
            found = json.decode(raw.data)["server"]
            known = self._link.describe()
            self._server = ServerInfo(
                name=found.get("name", ""),
                version=known.version,
                cluster=found.get("cluster", ""),
                url=known.url,
                max_payload_bytes=known.max_payload_bytes,
                jetstream=bool(found.get("jetstream", True)),
            )


def _itself(raw: Raw, _subject: str) -> Raw:
    return raw
