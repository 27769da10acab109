"""The client library's client as the link uses it: with a cheaper message, and with a flush that means what it says.

Its behaviour is worked around by public names alone; all was seen with nats-py 2.16.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any, cast

import nats.errors
from nats.aio.client import Client

from callboard.runtime.bus.jetstream_link import Raw
from callboard.runtime.clock import SYSTEM_CLOCK

# A pong that comes for a flush which gave up ends the client's read loop. With pings every two seconds the connection
# is made anew long before this.
_PONG_S = 3600
_QUICK_TURNS = 3
_ROOM_S = 0.001
# asyncio warns of the library's TLS streams whenever one ends, which is no news to anybody
_TLS_NOISE = "returning true from eof_received"


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_TLS_NOISE)


class WatchedClient(Client):
    """The client with a cheaper message, and with a flush that means what it says."""

    # Called with keywords for each message; a Struct's constructor is in C.
    msg_class = Raw  # type: ignore[assignment] # it is only ever called

    def __init__(self) -> None:
        super().__init__()
        self._waits: set[asyncio.Task[None]] = set()
        self.is_secure = False

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """The TLS settings; asked for when a connection is about to be secured."""
        self.is_secure = True
        logging.getLogger("asyncio").addFilter(_is_news)
        return super().ssl_context

    async def flush(self, timeout: float = 10) -> None:  # noqa: ASYNC109 - the client's own signature
        """Wait until the server has taken everything published before.

        The client's own writes its ping ahead of what waits in its buffer, and a pong that comes after it gave up ends
        the read loop. Here the buffer goes first, and the pong is waited for to the end of the connection.
        """
        turns = 0
        while self.pending_data_size and self.is_connected:
            await SYSTEM_CLOCK.sleep(0 if turns < _QUICK_TURNS else _ROOM_S)
            turns += 1
            if turns * _ROOM_S > timeout:
                raise nats.errors.FlushTimeoutError
        wait = asyncio.get_running_loop().create_task(super().flush(_PONG_S), name="bus-flush")
        self._waits.add(wait)
        wait.add_done_callback(self._waited)
        await asyncio.wait({wait}, timeout=timeout)
        if not wait.done() or wait.cancelled():
            raise nats.errors.FlushTimeoutError
        wait.result()

    async def ask(self, subject: str, timeout_s: float) -> bytes:
        """Return the answer to a question, nothing when there was none."""
        try:
            return (await self.request(subject, timeout=timeout_s)).data
        except nats.errors.Error:
            return b""

    def hang_up(self) -> None:
        """Close the socket. The client forgets, open, that of an attempt to reconnect that fails after the greeting."""
        cast("Any", self._transport).close()

    def drop_flushes(self) -> None:
        """End those whose pong will not come, now that nothing is read any more."""
        for wait in self._waits:
            wait.cancel()

    def _waited(self, wait: asyncio.Task[None]) -> None:
        self._waits.discard(wait)
        if not wait.cancelled():
            # Looked at, or the loop would complain about those who had given up.
            wait.exception()
