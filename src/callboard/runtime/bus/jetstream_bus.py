"""The whole of the JetStream bus, put together from its parts over one connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, Protocol

from msgspec import json

from callboard.runtime import events
from callboard.runtime.bus.base import PubAck, ServerInfo
from callboard.runtime.bus.jetstream_call import Calls
from callboard.runtime.bus.jetstream_core import Core
from callboard.runtime.bus.jetstream_get import Reader, ends
from callboard.runtime.bus.jetstream_link import WHO, Link, Raw
from callboard.runtime.bus.jetstream_store import Writer
from callboard.runtime.bus.jetstream_wire import to_pub_ack
from callboard.runtime.bus.jetstream_work import confirmed
from callboard.runtime.errors import (
    ApiError,
    BusConnectError,
    BusError,
    BusTimeoutError,
    PermissionDeniedError,
    TopologyError,
)

MINIMUM_VERSION = (2, 12)

_RETRY_S = 0.2
_STARTING_S = 1.0
_WHO_TIMEOUT_S = 1.0
# A question that nobody answers is asked again after so long, up to the second number.
_ASK_S = 1.0
_ASK_MAX_S = 4.0
# "JetStream system temporarily unavailable"
_NO_META_LEADER = 10008


class Connection(Link, Protocol):
    """A link as its owner sees it."""

    @property
    def connected_at(self) -> float:
        """Monotonic seconds of the last connect or reconnect."""
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

    def __init__(self, link: Connection, *, name: str) -> None:
        self._link: Connection = link
        self._name = name
        self._inboxes = count(1)
        self._refusal = ""
        self._replicas = {}
        self._callbacks: list[Callable[[], None]] = []
        self._server = link.describe()
        self._requests = Calls(link, "r", _itself, is_jetstream=False)
        self._api_calls = Calls(link, "a", _itself, is_jetstream=True)
        self._gets = Calls(link, "g", ends, is_jetstream=True)
        self._stores: Calls[PubAck] = Calls(link, "p", to_pub_ack, is_jetstream=True)
        self._acks: Calls[bool] = Calls(link, "d", confirmed, is_jetstream=True)
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
        """Nothing to do."""

    def denied(self, subject: str, message: str) -> None:
        """Notice at the start that our own inboxes are refused."""
        if subject.startswith(self._link.base.lower()):
            self._refusal = message

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
        wait_s = _ASK_S
        while True:
            left_s = deadline - clock.monotonic()
            try:
                await self._api("INFO", timeout_s=max(0.1, min(wait_s, left_s)))
            except PermissionDeniedError:
                # A worker need not be allowed to ask; what it may do will show.
                return
            except BusError as error:
                if clock.monotonic() < (patience if error.code == "no_responders" else deadline) and _is_passing(error):
                    await clock.sleep(_RETRY_S)
                    # longer each time: it may be slow, and answer the last question only after the next
                    wait_s = min(2 * wait_s, _ASK_MAX_S)
                    continue
                raise self._not_working(error) from error
            return

    def _not_working(self, error: BusError) -> BusError:
        """Return the error that says what to do when JetStream does not work at the end of our patience."""
        if isinstance(error, BusTimeoutError) or _has_no_leader(error):
            return BusConnectError(
                f"the server at {self._server.url} lets us in, but its JetStream does not answer ({error}): in a "
                "cluster more than half of the servers must run and reach each other, their logs say more; where they "
                "only need longer to choose a leader, raise nats.connect_deadline_s"
            )
        return TopologyError(
            f"JetStream does not work on {self._server.url} ({error}): start the server with -js, or switch "
            "JetStream on for this account"
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


def _is_passing(error: BusError) -> bool:
    return error.retryable or _has_no_leader(error)


def _has_no_leader(error: BusError) -> bool:
    return isinstance(error, ApiError) and error.err_code == _NO_META_LEADER


def _itself(raw: Raw, _subject: str) -> Raw:
    return raw
