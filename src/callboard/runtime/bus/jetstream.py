"""The bus on NATS JetStream: the link by the client library, which this file and ``jetstream_client`` alone import.

The client is used by its public names alone. Where its behaviour is worked around, the comment says which behaviour
and when the workaround can go; all was seen with nats-py 2.16.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Unpack, cast
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Server
from nats.aio.subscription import Subscription as ClientSubscription

from callboard.runtime import events
from callboard.runtime.bus.base import ServerInfo
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.jetstream_address import Address, Credentials, dial_error, is_full, tls_advice
from callboard.runtime.bus.jetstream_bus import JetStreamBus
from callboard.runtime.bus.jetstream_client import WatchedClient
from callboard.runtime.bus.jetstream_link import Listener, Proof, Raw, Sink
from callboard.runtime.bus.jetstream_scout import Scouts
from callboard.runtime.bus.jetstream_state import LinkState, within
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import (
    BackpressureError,
    BusClosedError,
    BusError,
    BusTimeoutError,
    CallboardError,
    InvalidHeaderError,
    PayloadTooLargeError,
)
from callboard.runtime.ids import new_token

_PING_S = 2
_RECONNECT_S = 0.2
# Beyond this the client waits for the socket by itself and, while it waits, swallows the cancelling of its caller; so
# it is set out of reach, and `_room` waits at a lower mark. It is also what is kept for a reconnect.
_BUFFER_BYTES = 64 << 20
_FULL_BYTES = 4 << 20
_ROOM_S = 0.001
_CLOSE_S = 1.0
_ATTEMPT_S = 10.0
_MAX_PAUSE_S = 5.0

__all__ = ["JetStreamBus", "connect"]

_DENIED = re.compile(r'permissions violation for (publish to|subscription to) "([^"]*)"')
_REFUSED_AUTH = ("authorization violation", "authentication expired", "authentication revoked", "nkey", "jwt")


async def connect(
    servers: str | Sequence[str],
    *,
    name: str,
    inbox_prefix: str = "_INBOX",
    is_guest: bool = False,
    connect_deadline_s: float = 10.0,
    clock: Clock = SYSTEM_CLOCK,
    on_event: Callable[[str, dict[str, object]], None] | None = None,
    **who: Unpack[Credentials],
) -> JetStreamBus:
    """Connect and check that the server can do what Callboard needs. Once connected, it reconnects for ever.

    ``who`` are ``Credentials``. ``on_event`` is told what happens to the connection: a name of the catalogue ``events``
    and its fields. ``inbox_prefix`` is where answers come in; each user of a server with permissions needs its own.
    ``is_guest`` is what ``Bus.is_guest`` says. A refusal of the credentials ends the attempt at once, silence after
    ``connect_deadline_s``.

    Raises:
        BusConnectError: If no server answered in time, or its cluster has no leader for JetStream.
        BusAuthError: If the server refused the credentials.
        PermissionDeniedError: If we may not listen below ``inbox_prefix``.
        TopologyError: If the server is older than 2.12 or has JetStream switched off.
        ConfigError: If a URL or a TLS file is not usable.
    """
    address = Address(servers, **who)
    link = NatsLink(address, name=name, inbox_prefix=inbox_prefix, clock=clock, on_event=on_event)
    deadline = clock.monotonic() + connect_deadline_s
    await link.open(connect_deadline_s)
    bus = JetStreamBus(link, name=name, is_guest=is_guest)
    try:
        await bus.start(deadline)
    except BaseException:
        await bus.close()
        raise
    return bus


class NatsLink(LinkState):
    """The client, watched: it is made anew when it gives up, and replaced when it hangs."""

    def __init__(
        self,
        address: Address,
        *,
        name: str,
        inbox_prefix: str,
        clock: Clock,
        on_event: Callable[[str, dict[str, object]], None] | None,
    ) -> None:
        super().__init__(servers=address.text, clock=clock, on_event=on_event)
        self.base = f"{inbox_prefix}.{new_token()}"
        self.max_payload = 1 << 20
        self._address = address
        self._name = name
        self._client = WatchedClient()
        self._listeners: set[_Listener] = set()
        self._attempts = 0
        self._avoided = self._wanted = ""
        self._scouts = Scouts(lambda url, within_s: self._dial(within_s, url))
        self._last_error = ""

    # --- life

    async def open(self, deadline_s: float) -> None:
        """Connect for the first time.

        Raises:
            BusConnectError: If no server answered in time.
            BusAuthError: If one refused the credentials.
        """
        self._client = await self._dial(deadline_s)
        self._stand()
        self.spawn(self._watch(), "bus-watch")

    async def finish(self) -> None:
        """Send what is waiting, for a second at most."""
        if self.is_up and not self._is_closed:
            with suppress(BusError):
                await self.flush(_CLOSE_S)

    async def close(self) -> None:
        """Disconnect and end every task. Closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        self.is_up = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _dispose(self._client)
        self.report(events.BUS_CLOSED, {"server": self._address.text})

    def describe(self) -> ServerInfo:
        """Return what the client tells of the server."""
        version = self._client.connected_server_version
        url = self._client.connected_url
        text = f"{version.major}.{version.minor}.{version.patch}"
        return ServerInfo(
            name="",
            version=f"{text}-{version.prerelease}" if version.prerelease else text,
            url=f"{url.scheme}://{url.netloc}" if url is not None else self._address.text,
            max_payload_bytes=self.max_payload,
        )

    # --- traffic

    async def send(self, subject: str, data: bytes, reply: str, headers: Headers | None) -> None:
        """Publish; checked by the caller."""
        client = self._client
        if client.pending_data_size > _FULL_BYTES:
            await self._room()
        try:
            await client.publish(subject, data, reply, cast("dict[str, str] | None", headers or None))
        except nats.errors.Error as error:
            raise self._send_error(error) from error

    async def listen(self, subject: str, deliver: Callable[[Raw], None], queue: str = "") -> Listener:
        """Hear ``subject``."""
        if self._is_closed:
            raise _closed()

        def guarded(raw: Raw) -> None:
            # An exception that leaves a sink ends the client's read loop while it still counts as connected.
            try:
                deliver(raw)
            except Exception as error:  # noqa: BLE001 - a sink is anybody's code
                self.report(events.BUS_FAILED, {"code": "sink", "message": f"{raw.subject}: {error!r}"})

        listener = _Listener(self, subject, queue, guarded)
        self._listeners.add(listener)
        if not self._is_reviving:
            with suppress(nats.errors.ConnectionClosedError):
                await listener.subscribe(self._client)
        return listener

    def forget(self, listener: _Listener) -> None:
        """Replay it no more."""
        self._listeners.discard(listener)

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has taken everything sent so far, through a reconnect if there is time.

        Raises:
            BusTimeoutError: If it has not in time.
        """
        deadline = self.clock.monotonic() + timeout_s
        while not self.is_up and not self._is_closed and self.clock.monotonic() < deadline:
            await self.clock.sleep(min(_RECONNECT_S, timeout_s))
        if self._is_closed:
            raise _closed()
        try:
            await self._client.flush(max(0.001, deadline - self.clock.monotonic()))
        except nats.errors.Error as error:
            message = f"the server did not confirm within {timeout_s:g} s what was sent"
            raise BusTimeoutError(message) from error

    # --- connecting

    async def _dial(self, deadline_s: float, *urls: str) -> WatchedClient:
        """Return a client connected to any of our servers, or of ``urls``; it calls back only once it is ours."""
        client = WatchedClient()
        deadline = self.clock.monotonic() + deadline_s
        refused: asyncio.Future[None] = self.loop.create_future()
        last: list[Exception] = []

        async def on_error(error: Exception) -> None:
            client.is_secure = client.is_secure and client.is_connected
            if client is self._client:
                self._failed(error)
            else:
                if not (last and is_full(last[0])):
                    # what the socket says of being hung up on comes after the reason
                    last[:] = [error]
                # one server of several may have a bad certificate; what users it has all of them have
                is_final = len(self._address.urls) == 1 and tls_advice(str(error)) is not None
                if (is_final or any(sign in str(error).lower() for sign in _REFUSED_AUTH)) and not refused.done():
                    refused.set_result(None)

        task = self.loop.create_task(self._connect(client, on_error, urls or self._address.urls), name="bus-connect")
        try:
            await asyncio.wait({task, refused}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled() and task.exception() is None:
                # A server that hangs up after its greeting counts as connected, until the client looks again.
                while not client.is_connected and self.clock.monotonic() < deadline and not refused.done():
                    await self.clock.sleep(_RECONNECT_S)
                if client.is_connected:
                    return client
        except BaseException:
            await self._abandon(client, task)
            raise
        failure = task.exception() if task.done() and not task.cancelled() else None
        await self._abandon(client, task)
        cause = last[0] if last and is_full(last[0]) else failure or (last[0] if last else None)
        raise dial_error(self._address.text, cause, deadline_s, is_refused=refused.done())

    async def _connect(
        self, client: WatchedClient, on_error: Callable[[Exception], Coroutine[Any, Any, None]], urls: Sequence[str]
    ) -> None:
        def guard() -> None:
            # The client takes tls:// for a preference: where the server does not ask for TLS, it goes on in the clear.
            if self._address.wants_tls and not client.is_secure:
                client.hang_up()
                raise nats.errors.SecureConnRequiredError

        def choose(servers: list[Server], info: dict[str, Any]) -> tuple[Server | None, float]:
            client.hang_up()
            return self._choose(servers, info)

        async def on_down() -> None:
            client.is_secure = False
            if client is self._client:
                self._fall()

        async def on_up() -> None:
            if client is self._client:
                self._rise()

        async def on_closed() -> None:
            if client is self._client and not self._is_closed:
                self._fall()
                self._revive("the client gave up")

        await client.connect(
            list(urls),
            name=self._name,
            error_cb=on_error,
            disconnected_cb=on_down,
            reconnected_cb=on_up,
            closed_cb=on_closed,
            reconnect_to_server_handler=choose,
            max_reconnect_attempts=-1,
            reconnect_time_wait=cast("int", _RECONNECT_S),
            ping_interval=_PING_S,
            max_outstanding_pings=2,
            pending_size=_BUFFER_BYTES,
            inbox_prefix=self.base,
            skip_subject_validation=True,
            **self._address.options(guard),
        )

    async def _abandon(self, client: WatchedClient, task: asyncio.Task[None]) -> None:
        # The client swallows a cancellation that meets the end of one of its attempts, and would try for ever.
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_RECONNECT_S)
        if not task.cancelled():
            # Looked at, or the loop would complain.
            task.exception()
        await _dispose(client)

    def _choose(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server | None, float]:
        """Return where to go next and after which pause; the client calls this before each attempt to reconnect."""
        self._attempts += 1
        self._address.refresh()
        others = [server for server in servers if server.uri.netloc != self._avoided] or servers
        if self._attempts == 1:
            others = [server for server in others if server.uri.netloc == self._wanted] or others
        # All clients of a server that died come at once: the first attempt is spread as well.
        pause_s = random.uniform(0, 0.05) if self._attempts == 1 else _RECONNECT_S * random.uniform(0.5, 1.5)
        return random.choice(others), pause_s

    def _failed(self, error: Exception) -> None:
        """Take an error that the client reports and attributes to no call."""
        self._progress_at = self.clock.monotonic()
        text = str(error) or type(error).__name__
        denied = _DENIED.search(text)
        if denied is not None:
            self._deny(denied[1].split(" ")[0], denied[2])
            return
        if isinstance(error, nats.errors.StaleConnectionError | OSError):
            self._fall()
        if text != self._last_error:
            self._last_error = text
            self.report(events.BUS_FAILED, {"code": "client", "message": text})

    def _has_link(self) -> bool:
        return self._client.is_connected

    def _entered(self) -> None:
        self.max_payload = self._client.max_payload
        self._attempts = 0
        self._avoided = self._wanted = self._last_error = ""

    def _left(self) -> None:
        self._client.drop_flushes()

    def _others(self) -> list[str]:
        here = self._client.connected_url
        return [f"{url.scheme}://{url.netloc}" for url in self._client.servers if here and url.netloc != here.netloc]

    async def _scout(self, urls: Sequence[str], proof: Proof) -> str | None:
        here = self._client.connected_url
        return await self._scouts.find(urls, proof, here=f"{here.scheme}://{here.netloc}" if here else "")

    async def _recall(self) -> None:
        await within(self._scouts.recall(), _CLOSE_S)

    async def _leave(self, to: str = "") -> None:
        self._wanted = urlsplit(to).netloc
        url = self._client.connected_url
        self._avoided = url.netloc if url is not None else ""
        await self._client.force_reconnect()

    async def _replace(self) -> None:
        """Put a new client in place of one that will not come back. What the old one had buffered is lost."""
        old, self._client = self._client, WatchedClient()
        pause_s = _RECONNECT_S
        try:
            self.spawn(_dispose(old), "bus-dispose-client")
            while True:
                try:
                    client = await self._dial(_ATTEMPT_S)
                    for listener in list(self._listeners):
                        await listener.subscribe(client)
                    await client.flush()
                    # Those that were made meanwhile; sending does not suspend, so none can come in between.
                    for listener in list(self._listeners):
                        await listener.subscribe(client)
                    break
                except (CallboardError, nats.errors.Error) as error:
                    self.report(events.BUS_FAILED, {"code": "reconnect", "message": str(error)})
                    await self.clock.sleep(pause_s * random.uniform(0.75, 1.25))
                    pause_s = min(pause_s * 2, _MAX_PAUSE_S)
            self._client = client
            self._rise()
        finally:
            self._is_reviving = False

    # --- small things

    async def _room(self) -> None:
        """Wait until the socket has taken half of what is buffered."""
        while self._client.pending_data_size > _FULL_BYTES // 2:
            if self._is_closed:
                raise _closed()
            if not self.is_up:
                message = f"not connected, and {_FULL_BYTES} bytes wait for the reconnect already: try again later"
                raise BackpressureError(message)
            await self.clock.sleep(_ROOM_S)

    def _send_error(self, error: nats.errors.Error) -> CallboardError:
        if self._is_closed:
            return _closed()
        match error:
            case nats.errors.MaxPayloadError():
                return PayloadTooLargeError("the message is over the server's limit", limit_bytes=self.max_payload)
            case nats.errors.BadHeaderError():
                return InvalidHeaderError(str(error))
            case nats.errors.ConnectionClosedError() | nats.errors.OutboundBufferLimitError():
                return BackpressureError("not connected, and nothing more is kept for the reconnect: try again later")
            case _:
                return BusError(str(error))


class _Listener:
    """A subscription, and what it takes to make it again with another client."""

    def __init__(self, link: NatsLink, subject: str, queue: str, deliver: Callable[[Raw], None]) -> None:
        self._link = link
        self._subject = subject
        self._queue = queue
        self._deliver = deliver
        self._client: WatchedClient | None = None
        self._handle: ClientSubscription | None = None
        self._is_closed = False

    async def subscribe(self, client: WatchedClient) -> None:
        """Listen by this client; harmless when done already."""
        if self._client is client:
            return
        self._client = client
        sink = cast("asyncio.Future[Any]", Sink(self._deliver))
        self._handle = await client.subscribe(self._subject, queue=self._queue, future=sink)

    async def close(self) -> None:
        """End it at once."""
        if not self._is_closed:
            self._is_closed = True
            self._link.forget(self)
            if self._handle is not None:
                with suppress(nats.errors.Error):
                    await self._handle.unsubscribe()

    async def drain(self) -> None:
        """End it at the server, and here after what was on its way has come."""
        if self._is_closed or self._handle is None or not self._link.is_up:
            await self.close()
            return
        self._is_closed = True
        self._link.forget(self)
        await within(cast("Coroutine[Any, Any, None]", self._handle.drain()), _CLOSE_S)  # type: ignore[no-untyped-call] # untyped in the client


async def _dispose(client: WatchedClient) -> None:
    # It waits for its socket to be written out, which never ends when the server is stopped.
    await within(client.close(), _CLOSE_S)
    client.drop_flushes()


def _closed() -> BusClosedError:
    return BusClosedError("this bus was closed")
