"""A run and the words of its models while they are made, in one row of news; a lost connection leaves no gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from callboard.agents import runs
from callboard.agents.llm.tokens import Chunk
from callboard.agents.llm.watch import read_chunks
from callboard.agents.runs import RunView
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import NotFoundError

News = RunView | Chunk

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
    seen = after_seq

    async def tokens() -> None:
        async for chunk in _chunks(bus, found.run, after_seq, follow=True):
            await news.put(chunk)

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
                seen = max(seen, each.seq)
                yield each
            elif each.has_ended:
                last = each
                break
            else:
                yield each
        async for chunk in _rest(news, bus, found.run, seen):
            yield chunk
        if last is not None:
            yield last
        elif readers[1].done():
            readers[1].result()
    finally:
        for reader in readers:
            reader.cancel()
        _ = await asyncio.wait(readers)


async def _rest(news: asyncio.Queue[News | None], bus: Bus, run: str, seen: int) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks that are stored when the run has ended and were not seen yet."""
    while not news.empty():
        each = news.get_nowait()
        if isinstance(each, Chunk) and each.seq > seen:
            seen = each.seq
            yield each
    async for chunk in _chunks(bus, run, seen, follow=False):
        yield chunk


async def _chunks(bus: Bus, run: str, after_seq: int, *, follow: bool) -> AsyncGenerator[Chunk, None]:
    while True:
        with runs.link_lost():
            # where no model ever spoke there may be no stream of tokens at all
            with contextlib.suppress(NotFoundError):
                async for chunk in read_chunks(bus, run, after_seq=after_seq, follow=follow):
                    after_seq = chunk.seq
                    yield chunk
            return
        await SYSTEM_CLOCK.sleep(_PAUSE_S)
