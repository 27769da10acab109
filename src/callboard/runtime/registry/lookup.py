"""A caller's look-ups: answered by its own cache, by the leader of the registry, or by whichever is left."""

from __future__ import annotations

import asyncio
import math
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.clock import Clock
from callboard.runtime.errors import (
    BusError,
    BusTimeoutError,
    CallboardError,
    DuplicateAgentError,
    InputError,
    InvalidNameError,
    NoAgentError,
    NoRespondersError,
    NotFoundError,
    RegistryAwayError,
    RegistryError,
)
from callboard.runtime.registry.cache import RegistryCache
from callboard.runtime.registry.message import FIND, PICK, SERVED, Found, Picked, Query, Served

T = TypeVar("T")
# The leader answers within milliseconds; beyond this a caller that knows enough answers itself.
ANSWER_S = 0.5
# Without a cache it waits for as long as a takeover takes.
PATIENCE_S = 3.0
# A leader that stayed silent is not asked again for so long.
AWAY_S = 1.0


class ErrorDetail(Struct, frozen=True):
    """What the registry says of a refusal."""

    code: str
    message: str
    near: list[str] = []
    refused: dict[str, int] = {}
    holder: str = ""


class ErrorBody(Struct, frozen=True):
    """Body of a refusal."""

    error: ErrorDetail


_errors = msgspec.json.Decoder(ErrorBody)
_found = msgspec.json.Decoder(Found)
_picked = msgspec.json.Decoder(Picked)


class Lookups:
    """Finds and picks for one client. It begins a cache with the first look-up and closes it in ``close``.

    Attributes:
        cache: What it knows by itself; a worker's own, or None before the first look-up.
    """

    def __init__(self, bus: Bus, *, clock: Clock) -> None:
        """Begin without a cache."""
        self.cache: RegistryCache | None = None
        self._bus = bus
        self._clock = clock
        self._is_own = True
        self._opening: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._away_until_s = -math.inf

    def use(self, cache: RegistryCache) -> None:
        """Use a cache that somebody else opens and closes."""
        self.cache = cache
        self._is_own = False

    async def find(self, query: Query) -> Found:
        """Return a page of agents: from the cache once it is warm, before that from the leader.

        Raises:
            RegistryAwayError: If there is neither.
            InputError: If the query cannot be used.
        """
        cache = self._warm()
        if cache is not None:
            return cache.find(query)
        return _found.decode(await self._request(FIND, query, PATIENCE_S))

    async def pick(self, query: Query) -> Picked:
        """Choose an agent and reserve its place: by the leader, who knows all reservations, else by the cache.

        Raises:
            NoAgentError: If nobody fits, or nobody that fits takes work now.
            RegistryAwayError: If there is neither.
            InputError: If the query cannot be used.
        """
        cache = self._warm()
        if cache is None:
            return _picked.decode(await self._request(PICK, query, PATIENCE_S))
        if self._clock.monotonic() >= self._away_until_s:
            try:
                return _picked.decode(await self._request(PICK, query, ANSWER_S))
            except RegistryAwayError:
                self._away_until_s = self._clock.monotonic() + AWAY_S
        return cache.pick(query)

    def served(self, address: str, took_s: float) -> None:
        """Say that a request to a picked agent has ended; negative when its time says nothing. Sent by the way."""
        data = msgspec.json.encode(Served(address=address, s=took_s))
        task = asyncio.create_task(self._send(data), name="registry-served")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        """Stop what it began itself."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        if self._is_own and self.cache is not None:
            await self.cache.close()
            self.cache = None

    # --- inside

    def _warm(self) -> RegistryCache | None:
        if self._is_own and self.cache is None and self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="registry-cache-open")
        return self.cache if self.cache is not None and self.cache.is_warm else None

    async def _open(self) -> None:
        cache = RegistryCache(self._bus, clock=self._clock)
        try:
            await cache.open()
            self.cache = cache
        except BusError:
            # no registry here, or not now: the next look-up tries again
            return
        finally:
            self._opening = None

    async def _send(self, data: bytes) -> None:
        try:
            await self._bus.publish(SERVED, data)
        except BusError:
            # the reservation runs out by itself
            return

    async def _request(self, subject: str, query: Query, timeout_s: float) -> bytes:
        try:
            answer = await self._bus.request(subject, msgspec.json.encode(query), timeout_s=timeout_s)
        except (NoRespondersError, BusTimeoutError) as error:
            message = (
                "nobody leads the registry now: a worker with registry.host on takes it over within two seconds; see "
                "`callboard workers ls` whether one runs, or run `callboard worker start --registry`"
            )
            raise RegistryAwayError(message) from error
        raise_refusal(answer)
        return answer.data


def raise_refusal(answer: Message) -> None:
    """Raise the error that an answer of the registry carries; nothing when it carries none.

    Raises:
        RegistryError: One of its kinds, or of ``InputError`` and ``NotFoundError``.
    """
    if header.ERROR not in (answer.headers or {}):
        return
    try:
        detail = _errors.decode(answer.data).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = ErrorDetail((answer.headers or {})[header.ERROR], "the registry refused, and did not say why")
    raise _error(detail)


def _error(detail: ErrorDetail) -> CallboardError:
    if detail.code == NoAgentError.code:
        return NoAgentError(detail.message, near=tuple(detail.near), refused=detail.refused)
    if detail.code == DuplicateAgentError.code:
        return DuplicateAgentError(detail.message, holder=detail.holder)
    plain: dict[str, Any] = {
        kind.code: kind for kind in (RegistryAwayError, NotFoundError, InvalidNameError, InputError)
    }
    found: CallboardError = plain.get(detail.code, RegistryError)(detail.message)
    return found
