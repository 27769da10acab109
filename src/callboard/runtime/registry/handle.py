"""The registry in code: ``find``, ``pick``, and what a pick gives to talk to."""

from __future__ import annotations

import contextvars
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import UNSET

from callboard.runtime.capability import Capability
from callboard.runtime.clock import Clock
from callboard.runtime.errors import InputError
from callboard.runtime.registry.lookup import Lookups
from callboard.runtime.registry.message import LIMIT, AgentView, Found, Picked, Query, Status, Why


class Talks(Protocol):
    """Somebody to talk to: an ``ActorRef``, or what a turn has in its place."""

    @property
    def ask(self) -> Callable[..., Awaitable[Any]]:
        """Ask and return the answer."""
        ...

    @property
    def stream(self) -> Callable[..., Any]:
        """Ask and iterate over the parts of the answer."""
        ...

    @property
    def tell(self) -> Callable[..., Any]:
        """Put a message into the mailbox."""
        ...


class AgentHandle:
    """A picked agent. Its place is reserved for two seconds: ask it now.

    Attributes:
        address: Who, ``type/key``.
        agent: What the registry knew of it.
        why: How the choice came about, ``why.text`` in a sentence.
    """

    __slots__ = ("_clock", "_served", "_talks", "address", "agent", "why")

    def __init__(
        self, agent: AgentView, why: Why, *, talks: Talks, clock: Clock, served: Callable[[str, float], None]
    ) -> None:
        """``pick`` makes these."""
        self.agent = agent
        self.address = agent.record.address
        self.why = why
        self._talks = talks
        self._clock = clock
        self._served = served

    def __repr__(self) -> str:
        """Return address and load."""
        return f"<AgentHandle {self.address} load={self.why.load:g}>"

    async def ask(self, message: object, **options: Any) -> Any:  # noqa: ANN401 - as ActorRef.ask
        """Ask it. See ``ActorRef.ask`` for options and errors; in a turn it is ``self.ask``, and journaled.

        How long the answer took is told to the registry, which prefers the faster one of two equally busy agents.
        """
        began_s = self._clock.monotonic()
        took_s = -1.0
        try:
            value = await self._talks.ask(message, **options)
            took_s = self._clock.monotonic() - began_s
        finally:
            self._served(self.address, took_s)
        return value

    def stream(self, message: object, **options: Any) -> Any:  # noqa: ANN401 - as ActorRef.stream
        """Ask it, and see parts of the answer as they are made. See ``ActorRef.stream``."""
        return self._talks.stream(message, **options)

    def tell(self, message: object, **options: Any) -> Any:  # noqa: ANN401 - as ActorRef.tell
        """Put a message into its mailbox: await it outside of a turn; in one it leaves with the commit.

        Raises:
            InputError: If no worker hosts it: then it has no mailbox.
        """
        if not self.agent.record.is_hosted:
            text = f"{self.address} is hosted by no worker and has no mailbox: ask it"
            raise InputError(text)
        return self._talks.tell(message, **options)


class PoolHandle:
    """A capability that plain pools offer: whichever slot is free takes the request.

    Attributes:
        capability: Its name.
        why: Why it is no agent.
    """

    __slots__ = ("_call", "capability", "why")

    def __init__(self, capability: str, why: Why, *, call: Callable[..., Awaitable[Any]]) -> None:
        """``pick`` makes these."""
        self.capability = capability
        self.why = why
        self._call = call

    def __repr__(self) -> str:
        """Return the capability."""
        return f"<PoolHandle {self.capability}>"

    async def ask(self, value: object = UNSET, *, timeout_s: float | None = None, **options: Any) -> Any:  # noqa: ANN401
        """Submit a task and wait for its result. See ``Client.call``; in a turn it is ``self.call``, and journaled."""
        return await self._call(self.capability, value, timeout_s=timeout_s, **options)


Picks = AgentHandle | PoolHandle


class Finder(ABC):
    """``find`` and ``pick``; a ``Client`` is one.

    Attributes:
        lookups: What answers.
    """

    lookups: Lookups
    _clock: Clock

    @abstractmethod
    def actor(self, address: str) -> Talks:
        """Return an actor to talk to."""

    @abstractmethod
    async def call(self, capability: str, value: object = UNSET, **options: Any) -> Any:  # noqa: ANN401 - as Client
        """Submit a task and wait for its result."""

    async def find(
        self,
        capability: str | Capability[..., Any] = "",
        *,
        limit: int = LIMIT,
        after: str = "",
        **what: Any,  # noqa: ANN401
    ) -> Found:
        """Return agents, and the workers with slots of the capability, as the registry sees them now.

        From a watched cache once it is warm (1.3 s after the first look-up), which goes on when the registry is away.

        Args:
            capability: What they can do; "" for anything.
            limit: Most agents in the answer, 1 to 1,000.
            after: Address after which to go on: the answer's ``next``.
            what: What else must hold, as in ``query``: ``all``, ``any``, ``type``, ``status``, ``host``, ``labels``,
                ``version``, ``capability_version``, ``input``, ``exclude``.

        Raises:
            RegistryAwayError: If nobody leads the registry and the cache is not warm yet.
            InputError: If something asked for does not exist or is out of range.
        """
        return await self.lookups.find(query(capability, limit=limit, after=after, **what))

    async def pick(self, capability: str | Capability[..., Any] = "", **what: Any) -> Picks:  # noqa: ANN401 - as query
        """Choose the least busy agent that fits and reserve its place; ask it through the handle, soon.

        Least busy is the least of (running + waiting + reserved) / weight; ties go to the faster one, then by turn.
        Where no agent has the capability and plain pools do, the handle submits a task; with ``labels`` a task that
        asks for them, if a worker that bears them has slots.

        Args:
            capability: What it shall do; "" with a ``type``.
            what: As in ``find``.

        Raises:
            NoAgentError: If nobody fits, or nobody that fits takes work now; it says why, and the nearest names.
            RegistryAwayError: If nobody leads the registry and the cache is not warm yet.
            InputError: If something asked for does not exist.
        """
        return self._handle(await self.lookups.pick(query(capability, **what)))

    def _handle(self, picked: Picked) -> Picks:
        if picked.agent is None:
            return PoolHandle(picked.pool, picked.why, call=self.call)
        talks = self.actor(picked.agent.record.address)
        return AgentHandle(picked.agent, picked.why, talks=talks, clock=self._clock, served=self.lookups.served)


# The client of the surrounding ``connect()`` block, or of the worker whose turn or task runs here.
finder_now: contextvars.ContextVar[Finder | None] = contextvars.ContextVar("callboard_client", default=None)


def query(
    capability: str | Capability[..., Any] = "",
    *,
    all: Sequence[str] = (),  # noqa: A002 - the word of the wire contract
    any: Sequence[str] = (),  # noqa: A002 - as above
    type: str = "",  # noqa: A002 - as above
    status: Status | Sequence[Status] = (),
    host: str = "",
    labels: Mapping[str, str] | None = None,
    version: str = "",
    capability_version: str = "",
    input: Mapping[str, Any] | None = None,  # noqa: A002 - as above
    exclude: Sequence[str] = (),
    limit: int = LIMIT,
    after: str = "",
) -> Query:
    """Return a query. See ``Query`` for the fields."""
    return Query(
        capability=capability if isinstance(capability, str) else capability.name,
        all=list(all),
        any=list(any),
        type=type,
        status=[status] if isinstance(status, str) else list(status),
        host=host,
        labels=dict(labels or {}),
        version=version,
        capability_version=capability_version,
        input=dict(input or {}),
        exclude=list(exclude),
        limit=limit,
        after=after,
    )
