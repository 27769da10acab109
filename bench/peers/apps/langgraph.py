"""LangGraph's side: two graphs of one node, a poller that runs what waits, and a sender that writes first checkpoints.

The library keeps a graph's state and resumes it; who runs a graph, and when, is left to its user. So a submitted task
is a thread whose first checkpoint stands before the node, and a worker looks for such threads. The lock of a file keeps
two workers from one thread, and is freed when its process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypedDict

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # type: ignore[import-not-found]
from langgraph.graph import END, START, StateGraph  # type: ignore[import-not-found]
from psycopg.rows import dict_row  # type: ignore[import-not-found]
from psycopg_pool import AsyncConnectionPool  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

_AT_ONCE = 64
_POLL_S = 0.01


class Noop(TypedDict, total=False):
    """State of the quick task."""

    n: int
    text: str
    size: int


class Slow(TypedDict, total=False):
    """State of the slow task."""

    n: int
    seconds: float
    done: bool


async def noop(state: Noop) -> Noop:
    note(state["n"])
    return {"size": len(state["text"])}


async def slow(state: Slow) -> Slow:
    note(state["n"], BEGAN)
    await asyncio.sleep(state["seconds"])
    note(state["n"], ENDED)
    return {"done": True}


class Graphs:
    """Both graphs, on one checkpointer."""

    def __init__(self, saver: AsyncPostgresSaver) -> None:
        self._saver = saver
        self._graphs = {
            name: StateGraph(state).add_node("run", node).add_edge(START, "run").add_edge("run", END).compile(saver)
            for name, state, node in (("noop", Noop, noop), ("slow", Slow, slow))
        }

    async def submit(self, thread: str, state: dict[str, Any]) -> None:
        """Write the checkpoint before the node."""
        await self._graph(thread).aupdate_state(_config(thread), state, as_node=START)

    async def run(self, thread: str) -> None:
        """Run the node, if it has not run."""
        await self._graph(thread).ainvoke(None, _config(thread), durability="sync")

    async def has_ended(self, thread: str) -> bool:
        """Tell whether the node's result is stored."""
        return not (await self._graph(thread).aget_state(_config(thread))).next

    async def submitted(self, limit: int | None) -> list[str]:
        """Return the threads whose first checkpoint was written, newest first."""
        found = self._saver.alist(None, filter={"source": "update"}, limit=limit)
        return [each.config["configurable"]["thread_id"] async for each in found]

    def _graph(self, thread: str) -> Any:  # noqa: ANN401 - of a package that is not here
        return self._graphs[thread.partition("-")[0]]

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, *, is_first: bool = False) -> AsyncIterator[Graphs]:
        """Connect for the block, with a pool as its documentation sets it."""
        options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        async with AsyncConnectionPool(TOLD["url"], min_size=8, max_size=8, kwargs=options, open=False) as pool:
            saver = AsyncPostgresSaver(pool)
            if is_first:
                await saver.setup()
            yield cls(saver)


class Sender:
    """Writes first checkpoints, 64 at once."""

    def __init__(self) -> None:
        self._open = contextlib.AsyncExitStack()
        self._graphs: Graphs

    async def open(self) -> None:
        self._graphs = await self._open.enter_async_context(Graphs.opened(is_first=True))

    async def burst(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _AT_ONCE):
            await asyncio.gather(*(self._submit(n) for n in numbers[start : start + _AT_ONCE]))

    async def single(self, n: int) -> bool:
        await self._submit(n)
        while not await self._graphs.has_ended(f"noop-{n}"):
            await asyncio.sleep(0.001)
        return True

    async def slow(self, n: int, seconds: float) -> None:
        await self._graphs.submit(f"slow-{n}", {"n": n, "seconds": seconds})

    async def close(self) -> None:
        await self._open.aclose()

    async def _submit(self, n: int) -> None:
        await self._graphs.submit(f"noop-{n}", {"n": n, "text": TEXT})


class Poller:
    """The worker."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self._seen: set[str] = set()
        self._waiting: dict[str, None] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def work(self) -> None:
        """Run what waits, for ever."""
        async with asyncio.TaskGroup() as running:
            while True:
                await self._look()
                for thread in list(self._waiting):
                    if (lock := _claim(thread)) is not None:
                        await self._room.acquire()
                        del self._waiting[thread]
                        running.create_task(self._run(thread, lock))
                await asyncio.sleep(_POLL_S)

    async def _look(self) -> None:
        newest = await self._graphs.submitted(_AT_ONCE)
        if len(newest) == _AT_ONCE and not self._seen.intersection(newest):
            newest = await self._graphs.submitted(None)
        new = [thread for thread in reversed(newest) if thread not in self._seen]
        self._seen.update(new)
        self._waiting.update(dict.fromkeys(new))

    async def _run(self, thread: str, lock: int) -> None:
        await self._graphs.run(thread)
        os.close(lock)
        self._room.release()


def _claim(thread: str) -> int | None:
    """Return the locked file of a thread, or None if another process has it."""
    file = os.open(f"{TOLD['folder']}/{thread}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _config(thread: str) -> dict[str, dict[str, str]]:
    return {"configurable": {"thread_id": thread}}


async def work() -> None:
    """Be a worker until the process is ended."""
    async with Graphs.opened() as graphs:
        await Poller(graphs).work()


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        asyncio.run(work())
    else:
        send(Sender())
