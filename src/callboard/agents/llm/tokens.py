"""Tokens of running calls: numbered chunks on ``cb.token.<run>`` in CB_TOKENS, written by one call, read by many.

A chunk names its step and the attempt at it. A call that is taken over begins a new attempt; a reader drops what it had
of the earlier one, so no text is made of two.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

import msgspec
from msgspec import Struct

from callboard.agents.llm.base import Finish, Usage
from callboard.runtime import events, logs, subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError, DecodeError

EVERY_S = 0.03
_STORE_TIMEOUT_S = 2.0

_log = logs.get_logger(__name__)


class TokensEnd(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended.

    Attributes:
        finish: As the model said; "" when it failed.
        error: Code of what went wrong, "" if nothing did.
        usage: Tokens of the call.
    """

    finish: Finish | str = ""
    error: str = ""
    usage: Usage = Usage()


class Chunk(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of an answer.

    Attributes:
        run: The run.
        agent: Who asked the model.
        step: Id of the call's step.
        attempt: Which attempt at the step, 1-based.
        number: Its place in the attempt, from 0.
        text: What follows on the chunk before.
        is_whole: Whether ``text`` is the whole answer, in place of all chunks: these had expired, or did not arrive.
        end: On the last chunk, which may bring text too.
        seq: Its sequence in CB_TOKENS, for reading on behind it; 0 for one that was made from the step's record.
    """

    run: str
    step: str
    attempt: int
    number: int
    agent: str = ""
    text: str = ""
    is_whole: bool = False
    end: TokensEnd | None = None
    seq: int = 0


_decoder = msgspec.json.Decoder(Chunk)


def subject_of(run: str) -> str:
    """Return the subject of a run's tokens."""
    return f"cb.token.{subjects.escape(run)}"


def decode(data: bytes, *, seq: int = 0) -> Chunk:
    """Return a chunk as it was stored.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return msgspec.structs.replace(_decoder.decode(data), seq=seq)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"this is no chunk of tokens: {error}"
        raise DecodeError(message) from error


class TokenWriter:
    """Publishes the text of one attempt while it is made: at most one chunk in ``every_s``, and the end mark.

    It never delays or fails the call: what cannot be stored within two seconds is given up with the rest of the
    attempt, readers then take the text from the step's record.

    Use it as a context manager; leaving it without ``end`` sends no end mark.
    """

    def __init__(
        self, bus: Bus, clock: Clock, *, run: str, agent: str, step: str, attempt: int, every_s: float = EVERY_S
    ) -> None:
        """Prepare; nothing is sent before the first text."""
        self._bus = bus
        self._clock = clock
        self._subject = subject_of(run)
        self._next = Chunk(run=run, agent=agent, step=step, attempt=attempt, number=0)
        self._every_s = every_s
        self._pending: list[str] = []
        self._wake = asyncio.Event()
        self._storing = asyncio.Lock()
        self._is_broken = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to send in the background."""
        self._task = asyncio.create_task(self._run(), name=f"tokens-{self._subject}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop; what was not sent is dropped unless ``end`` was called."""
        await self._stop()

    def put(self, text: str) -> None:
        """Take text that came."""
        self._pending.append(text)
        self._wake.set()

    async def end(self, end: TokensEnd) -> None:
        """Send what is left, and the end mark, in one chunk. One round trip."""
        await self._stop()
        await self._send(end)

    async def _run(self) -> None:
        while not self._is_broken:
            _ = await self._wake.wait()
            self._wake.clear()
            async with self._storing:
                await self._send(None)
            await self._clock.sleep(self._every_s)

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        async with self._storing:
            # never in the middle of a write: nobody would know whether it is stored
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _send(self, end: TokensEnd | None) -> None:
        text = "".join(self._pending)
        if self._is_broken or not (text or end):
            return
        self._pending.clear()
        chunk = msgspec.structs.replace(self._next, text=text, end=end)
        headers = header.build(msg_id=f"{chunk.step}/{chunk.attempt}/{chunk.number}")
        try:
            _ = await self._bus.store(
                Write(self._subject, msgspec.json.encode(chunk), headers), timeout_s=_STORE_TIMEOUT_S
            )
        except BusError as error:
            self._is_broken = True
            _log.warning(events.TOKENS_GIVEN_UP, step=chunk.step, code=error.code, message=str(error))
            return
        self._next = msgspec.structs.replace(self._next, number=chunk.number + 1)
