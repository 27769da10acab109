"""A run and the words of its models while they are made, in one row of news; a lost connection leaves no gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from callboard.agents import runs
from callboard.agents.llm import watch as llm_watch
from callboard.agents.llm.tokens import Chunk
from callboard.agents.run_view import RunView
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.topology import TOKENS
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import NotFoundError

News = RunView | Chunk


class Transcript(llm_watch.Transcript):
    """What a watcher has of a run's answers; ``is_resumed`` where it began behind some of them."""

    def __init__(self, after_seq: int) -> None:
        super().__init__()
        self.last_seq = after_seq
        self.is_resumed = after_seq > 0


_WAITING = 256
_PAUSE_S = 0.5


async def watch(bus: Bus, run: str, *, after_seq: int = 0) -> AsyncGenerator[News, None]:
    """Yield a run as it is and after each change, and every chunk of its models' tokens, until it has ended.

    Chunks that are stored come first; the broker keeps them for ten minutes. Both go on behind a lost connection where
    they stood. When nobody takes what is yielded, reading waits.

    Args:
        bus: A connection.
        run: The run's name.
        after_seq: ``seq`` of the last chunk that the watcher has, to go on behind it.

    Raises:
        NotFoundError: If there is no such run.
    """
    # so that a wrong name is refused before anything is begun
    found = await runs.show(bus, run)
    watcher = _Watcher(bus, found.run, after_seq)
    last: RunView | None = None
    try:
        while last is None and (each := await watcher.news.get()) is not None:
            if isinstance(each, RunView) and each.has_ended:
                last = each
            else:
                yield each
        async for chunk in watcher.rest():
            yield chunk
        if last is not None:
            yield last
    finally:
        await watcher.close()
    if last is None:
        watcher.states.result()


class _Watcher:
    """Reads both, side by side; ``None`` among the news says that the states came to an end."""

    def __init__(self, bus: Bus, run: str, after_seq: int) -> None:
        self.news: asyncio.Queue[News | None] = asyncio.Queue(_WAITING)
        self._bus = bus
        self._run = run
        self._mine = Transcript(after_seq)
        self._held: list[Chunk] = []
        self._tokens = asyncio.create_task(self._read_tokens(), name="watch-tokens")
        self.states = asyncio.create_task(self._read_states(), name="watch-run")

    async def rest(self) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks that came or are stored when the run has ended and were not handed out yet."""
        _ = self._tokens.cancel()
        _ = await asyncio.wait([self._tokens])
        queued = [self.news.get_nowait() for _ in range(self.news.qsize())]
        for each in [*queued, *self._held]:
            if isinstance(each, Chunk):
                yield each
        async for chunk in _chunks(self._bus, self._run, self._mine, follow=False):
            yield chunk

    async def close(self) -> None:
        """Stop reading."""
        readers = [self._tokens, self.states]
        for reader in readers:
            reader.cancel()
        _ = await asyncio.wait(readers)

    async def _read_tokens(self) -> None:
        async for chunk in _chunks(self._bus, self._run, self._mine, follow=True):
            try:
                await self.news.put(chunk)
            except asyncio.CancelledError:
                # it was taken from the stream and is not handed out yet
                self._held.append(chunk)
                raise

    async def _read_states(self) -> None:
        try:
            async for view in runs.changes(self._bus, self._run):
                await self.news.put(view)
        finally:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                await self.news.put(None)


async def _chunks(bus: Bus, run: str, mine: Transcript, *, follow: bool) -> AsyncGenerator[Chunk, None]:
    while True:
        with runs.link_lost():
            # where no model ever spoke there may be no stream of tokens at all
            with contextlib.suppress(NotFoundError):
                async for chunk in await _source(bus, run, mine, follow=follow):
                    yield chunk
            return
        await SYSTEM_CLOCK.sleep(_PAUSE_S)


async def _source(bus: Bus, run: str, mine: Transcript, *, follow: bool) -> AsyncIterator[Chunk]:
    """Return what reads the tokens: from what is stored on, without a search for answers that have expired."""
    info = await bus.stream_info(TOKENS)
    first_seq = info.first_seq if info is not None and info.last_seq else 0
    if first_seq and mine.last_seq < first_seq - 1:
        mine.last_seq = first_seq - 1
    if first_seq and not mine.is_resumed:
        return llm_watch.watch(bus, run, transcript=mine, follow=follow)
    return _added(bus, run, mine, follow=follow)


async def _added(bus: Bus, run: str, mine: Transcript, *, follow: bool) -> AsyncGenerator[Chunk, None]:
    async for chunk in llm_watch.read_chunks(bus, run, after_seq=mine.last_seq, follow=follow):
        if mine.add(chunk):
            yield chunk
