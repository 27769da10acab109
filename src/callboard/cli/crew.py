"""The workers that ``callboard up`` starts beside its servers: each a process that is looked after on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from callboard.cli.output import emit, note
from callboard.cli.worker import words

if TYPE_CHECKING:
    from callboard.cli.session import Session
    from callboard.runtime.config import Settings
    from callboard.runtime.processes import DeathNotice, ProcessGroup


class Crew:
    """Worker processes that serve the same modules. One that dies is started again, or left dead.

    Unlike the processes of ``worker start --processes`` they do not end together: each has a group of its own.
    """

    def __init__(self, session: Session, /, settings: Settings, modules: Sequence[str], *, restarts: bool) -> None:
        """Prepare; ``settings`` lead to the servers."""
        self._session = session
        self._settings = settings
        self._modules = modules
        self._restarts = restarts
        self._is_stopping = False
        self._groups: list[ProcessGroup] = []
        self._tasks: list[asyncio.Task[int]] = []

    async def start(self, count: int) -> int:
        """Start the workers; the first one finds out whether the modules will do. Return its status if not, else 0."""
        from callboard.runtime import host
        from callboard.runtime.processes import DeathNotice

        self._notice = DeathNotice(host.connector(self._settings))
        ready = asyncio.Event()
        first = self._add(1, ready, self._notice)
        waiting = asyncio.create_task(ready.wait(), name="crew-ready")
        await asyncio.wait((waiting, first), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if first.done() and not ready.is_set():
            return first.result() or 1
        for number in range(2, count + 1):
            _ = self._add(number, asyncio.Event(), self._notice)
        return 0

    def stop(self) -> None:
        """Drain them; a second call stops them at once."""
        self._is_stopping = True
        for group in self._groups:
            group.stop()

    async def wait(self) -> None:
        """Wait until all have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)
            await self._notice.close()

    def _add(self, number: int, ready: asyncio.Event, notice: DeathNotice) -> asyncio.Task[int]:
        from callboard.runtime.processes import ProcessGroup, RestartPolicy, child_command

        level = "warning" if self._settings.origins()["log.level"] == "default" else None
        given = [*words(self._session, self._settings, self._modules, {"log_level": level}), "--quiet"]

        def serving(_slot: int, pid: int) -> None:
            self._tell(number, pid, event="worker", text=f"worker {number} is ready, process {pid}")
            ready.set()

        async def died(pid: int) -> None:
            if self._is_stopping:
                return
            then = "it is started again" if self._restarts else "it is left dead (--no-restart)"
            self._tell(number, pid, event="worker_ended", text=f"worker {number}, process {pid}, died; {then}")
            await notice.tell(pid)

        group = ProcessGroup(
            lambda slot, fd: child_command(given, slot=number - 1, fd=fd, restarts=group.restarts(slot)),
            count=1,
            stop_grace_s=self._settings.worker.drain_grace_s,
            policy=RestartPolicy() if self._restarts else RestartPolicy(budget=0),
            takes_signals=False,
            on_death=died,
            on_ready=serving,
        )
        self._groups.append(group)
        task = asyncio.create_task(group.run(), name=f"crew-{number}")
        self._tasks.append(task)
        return task

    def _tell(self, number: int, pid: int, *, event: str, text: str) -> None:
        if self._session.json:
            emit({"event": event, "number": number, "pid": pid})
        else:
            note(text)
