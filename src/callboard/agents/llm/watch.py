"""Tokens as watchers read them: what is stored, then what comes; what has expired is taken from the calls' records."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

from callboard.agents.llm.history import find_call, read_calls
from callboard.agents.llm.record import ModelCall
from callboard.agents.llm.tokens import Chunk, TokensEnd, decode, subject_of
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.bus.topology import TOKENS
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import DecodeError, NotFoundError

# The end mark comes just before the record; one that does not follow was of a call that lost its host.
_RECORD_WAIT_S = 5.0
_POLL_S = 0.1


async def read_chunks(bus: Bus, run: str, *, after_seq: int = 0, follow: bool = True) -> AsyncIterator[Chunk]:
    """Read a run's chunks: those stored behind ``after_seq``, then those that come, without gap or repetition.

    The broker keeps chunks for ten minutes. A lost connection is made good by the broker's sequences. What is no chunk
    is passed over.

    Args:
        bus: A connection.
        run: The run.
        after_seq: ``seq`` of the last chunk that the reader has; 0 for all that is stored.
        follow: Whether to wait for more at the end.

    Raises:
        NotFoundError: If there is no CB_TOKENS: ``callboard provision`` makes it.
    """
    start = after_seq + 1 if after_seq else None
    stored = bus.read(TOKENS, subjects=(subject_of(run),), start_seq=start, follow=follow)
    async with contextlib.aclosing(cast("AsyncGenerator[Stored]", stored)) as found:
        async for each in found:
            with contextlib.suppress(DecodeError):
                yield decode(each.data, seq=each.seq)


class Transcript:
    """Texts of a run put together from its chunks: one for each step, of its latest attempt, never of two.

    Attributes:
        texts: By the step's id, in the order in which they began.
        ends: How steps ended; those that run, or whose latest attempt was cut off, are not in it.
        torn: Steps of which chunks are missing: they had expired, or did not arrive.
        last_seq: Sequence to read on behind.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.texts: dict[str, str] = {}
        self.ends: dict[str, TokensEnd] = {}
        self.torn: set[str] = set()
        self.last_seq = 0
        self._at: dict[str, tuple[int, int]] = {}

    def add(self, chunk: Chunk) -> bool:
        """Take a chunk; return whether it says something new of what is the latest attempt now."""
        self.last_seq = max(self.last_seq, chunk.seq)
        attempt, expected = self._at.get(chunk.step, (0, 0))
        is_old = chunk.attempt == attempt and chunk.number < expected and not chunk.is_whole
        if chunk.attempt < attempt or is_old:
            return False
        if chunk.attempt > attempt or chunk.is_whole:
            # what an attempt before it said is not part of the answer
            self.texts[chunk.step] = ""
            _ = self.ends.pop(chunk.step, None)
            self.torn.discard(chunk.step)
            expected = 0
        if chunk.number > expected and not chunk.is_whole:
            self.torn.add(chunk.step)
        self.texts[chunk.step] += chunk.text
        self._at[chunk.step] = (chunk.attempt, chunk.number + 1)
        if chunk.end is not None:
            self.ends[chunk.step] = chunk.end
        return True


async def watch(
    bus: Bus, run: str, *, transcript: Transcript | None = None, follow: bool = True, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[Chunk]:
    """Follow a run's answers; each chunk that comes is in ``transcript`` already.

    A step of whose chunks some are missing ends with one that ``is_whole``, from the step's record: it takes the place
    of what came before. Answers that had expired altogether come first, whole.

    Args:
        bus: A connection that may read CB_TOKENS and CB_ACTORS, and CB_AUDIT for answers older than a week.
        run: The run.
        transcript: What the watcher knows; after a lost connection the one from before, and nothing comes twice.
        follow: Whether to wait for more at the end.
        clock: Time.

    Raises:
        NotFoundError: If there is no CB_TOKENS: ``callboard provision`` makes it.
    """
    mine = transcript if transcript is not None else Transcript()
    async for chunk in _expired(bus, run, mine):
        if mine.add(chunk):
            yield chunk
    chunks = read_chunks(bus, run, after_seq=mine.last_seq, follow=follow)
    async with contextlib.aclosing(cast("AsyncGenerator[Chunk]", chunks)) as found:
        async for chunk in found:
            if not mine.add(chunk):
                continue
            yield chunk
            if chunk.end is not None and not chunk.end.error and chunk.step in mine.torn:
                whole = await _whole(bus, chunk, clock)
                if whole is not None and mine.add(whole):
                    yield whole


async def _expired(bus: Bus, run: str, mine: Transcript) -> AsyncIterator[Chunk]:
    """Yield the answers that the stream of tokens does not hold any more and the watcher does not have."""
    info = await bus.stream_info(TOKENS)
    if info is None:
        message = f"there is no stream {TOKENS}: run `callboard provision`"
        raise NotFoundError(message)
    if mine.last_seq > info.last_seq:
        # it lives in the server's memory and began anew
        mine.last_seq = 0
    if info.first_seq <= mine.last_seq + 1 and info.last_seq:
        return
    kept = {chunk.step async for chunk in read_chunks(bus, run, follow=False)}
    calls = [each async for each in read_calls(bus) if isinstance(each, ModelCall) and each.run == run]
    for call in sorted(calls, key=lambda each: each.at):
        if call.step not in kept and call.step not in mine.ends:
            yield as_chunk(call)


async def _whole(bus: Bus, end: Chunk, clock: Clock) -> Chunk | None:
    """Return the whole answer whose end mark came, from its record; None where none follows."""
    until_s = clock.monotonic() + _RECORD_WAIT_S
    while True:
        found = await find_call(bus, end.step)
        if found is not None and found.attempt >= end.attempt:
            return as_chunk(found)
        if clock.monotonic() >= until_s:
            return None
        await clock.sleep(_POLL_S)


def as_chunk(call: ModelCall) -> Chunk:
    """Return a recorded answer as one chunk."""
    return Chunk(
        run=call.run,
        agent=call.agent,
        step=call.step,
        attempt=call.attempt,
        number=0,
        text=call.completion.text,
        is_whole=True,
        end=TokensEnd(finish=call.finish, usage=call.usage),
    )
