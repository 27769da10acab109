"""The connection as the parts of the JetStream adapter see it, so that they need no client library."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from msgspec import Struct

from callboard.runtime.bus.header import Headers
from callboard.runtime.clock import Clock

STATUS = "Status"
DESCRIPTION = "Description"
NO_RESPONDERS = "503"
# Answered by the server we are connected to, with its own name among others.
WHO = "$SYS.REQ.USER.INFO"


class Proof(Struct, frozen=True):
    """A question whose answer shows that a server reaches a leader that reaches a majority.

    Attributes:
        subject: Where to ask it, by any server of the cluster; "" when we know of nothing to ask about.
        holds: Whether an answer shows it.
    """

    subject: str
    holds: Callable[[bytes], bool]


class Raw(Struct, gc=False):
    """A message as it came in; the client builds it by keyword, which a Struct takes at the cost of a tuple."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None
    _client: object
    _sid: int

    @property
    def status(self) -> str:
        """The status of an answer that the server made up itself, "" for any other message."""
        return self.headers.get(STATUS, "") if self.headers is not None else ""


class Sink:
    """What the client takes for a future: it hands over each message at once, in its read loop, without a queue."""

    __slots__ = ("set_result",)

    def __init__(self, deliver: Callable[[Raw], None]) -> None:
        self.set_result = deliver

    def cancelled(self) -> bool:
        """Say that messages are wanted."""
        return False


class Listener(Protocol):
    """Interest in a subject that survives reconnects."""

    async def close(self) -> None:
        """End it at once; what is on its way is dropped."""
        ...

    async def drain(self) -> None:
        """End it at the server, and here after what was on its way has come. One round trip; at once when down."""
        ...


class Part(Protocol):
    """Something that has state on the server and hears of the connection. No method may raise or block."""

    def went_down(self) -> None:
        """The link is lost; what was asked of the server is void."""
        ...

    def came_up(self) -> None:
        """The link stands again, with all listeners in place."""
        ...

    def tick(self, now: float) -> None:
        """About twice a second, up or down."""
        ...

    def denied(self, subject: str, message: str) -> None:
        """The server's permissions refused to publish on ``subject``, which it names in lower case."""
        ...


class Link(Protocol):
    """One connection to the server."""

    @property
    def clock(self) -> Clock:
        """Where time comes from."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop it lives on."""
        ...

    @property
    def base(self) -> str:
        """Prefix of all inboxes of this connection, without a dot at its end."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether the link is up now."""
        ...

    @property
    def max_payload(self) -> int:
        """Most bytes of body and headers in one message."""
        ...

    @property
    def send(self) -> Callable[[str, bytes, str, Headers | None], Awaitable[None]]:
        """Publish (subject, body, reply, headers); checked by the caller. Waits only when the socket is full."""
        ...

    async def listen(self, subject: str, deliver: Callable[[Raw], None], queue: str = "") -> Listener:
        """Hear ``subject``; ``deliver`` runs on the loop and an error of it is reported. Sends, does not wait."""
        ...

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has taken everything sent so far."""
        ...

    def attach(self, part: Part, *, is_standing: bool = False) -> None:
        """Tell ``part`` about the connection from now on; ``is_standing`` means that it waits for what may come."""
        ...

    def detach(self, part: Part) -> None:
        """Stop telling it."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run ``work`` beside; it is cancelled when the link closes, and an error of it is reported."""
        ...

    def report(self, event: str, fields: dict[str, object]) -> None:
        """Tell whoever watches the bus."""
        ...

    def unproven_s(self, now: float) -> float:
        """Return for how long no leader has answered while somebody waits for what may come; 0 when nobody does."""
        ...

    def listening(self) -> None:
        """Somebody listens by this connection: from now on it is no use on a server that is cut off."""
        ...

    def answered(self, *, is_leader: bool = True) -> None:
        """A leader with a majority has answered; or, without ``is_leader``, a server that reaches none."""
        ...

    def unanswered(self) -> None:
        """A request to JetStream ran into its timeout; after three of them in a row a better server is looked for."""
        ...

    def proving(self, proof: Proof) -> None:
        """Take what to ask other servers, when ours is in doubt."""
        ...
