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
    news: asyncio.Queue[News | None] = asyncio.Queue(_WAITING)
    mine = Transcript(after_seq)
    held: list[Chunk] = []

    async def tokens() -> None:
        async for chunk in _chunks(bus, found.run, mine, follow=True):
            try:
                await news.put(chunk)
            except asyncio.CancelledError:
                # it was taken from the stream and is not handed out yet
                held.append(chunk)
                raise

    async def states() -> None:
        try:
            async for view in runs.changes(bus, found.run):
                await news.put(view)
        finally:
            with contextlib.suppress(asyncio.QueueFull):
                news.put_nowait(None)

    readers = [asyncio.create_task(tokens(), name="watch-tokens"), asyncio.create_task(states(), name="watch-run")]
    last: RunView | None = None
    try:
        while (each := await news.get()) is not None:
            if isinstance(each, Chunk):
                yield each
            elif each.has_ended:
                last = each
                break
            else:
                yield each
        readers[0].cancel()
        _ = await asyncio.wait(readers[:1])
        for each in [*_queued(news), *held]:
            if isinstance(each, Chunk):
                yield each
        async for chunk in _chunks(bus, found.run, mine, follow=False):
            yield chunk
        if last is not None:
            yield last
        elif readers[1].done():
            readers[1].result()
    finally:
        for reader in readers:
            reader.cancel()
        _ = await asyncio.wait(readers)


def _queued(news: asyncio.Queue[News | None]) -> list[News | None]:
    return [news.get_nowait() for _ in range(news.qsize())]


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
