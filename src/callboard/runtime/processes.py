"""A parent that keeps N worker processes running: starts, restarts with back-off, passes stops on, takes them with it.

The parent and each child share a socket pair. The child writes a byte to it when it is ready; its end tells the child
that the parent is gone, however it died. Children have a session of their own, so Ctrl-C in a terminal reaches the
parent alone, which tells them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec import Struct

from callboard.runtime import events, subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.control import ProcessEnd
from callboard.runtime.logs import get_logger

READY = b"R"
KILL_MARGIN_S = 10.0
TELL_WITHIN_S = 3.0
_PR_SET_PDEATHSIG = 1

_log = get_logger(__name__)


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """When a child that died is started again.

    Attributes:
        base_s: Wait after the first death in the window; each further one waits ``factor`` times longer.
        factor: See ``base_s``.
        max_s: No wait is longer.
        budget: Deaths of one child in the window that are answered with a restart.
        window_s: How far back deaths count.
    """

    base_s: float = 0.2
    factor: float = 2.0
    max_s: float = 10.0
    budget: int = 10
    window_s: float = 60.0

    def decide(self, deaths_s: Sequence[float], now_s: float) -> float | None:
        """Return the seconds to wait before the next start, or None when the budget is spent.

        Args:
            deaths_s: Monotonic times of all deaths so far, the present one included.
            now_s: The present time.
        """
        recent = sum(1 for death_s in deaths_s if now_s - death_s <= self.window_s)
        if recent > self.budget:
            return None
        return min(self.max_s, self.base_s * self.factor ** max(0, min(recent, 64) - 1))


class _Child:
    """One place in the group and the process that fills it now."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.process: asyncio.subprocess.Process | None = None
        self.deaths_s: list[float] = []
        self.was_ready = False

    def send(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class ProcessGroup:
    """N children of the same command. Make one and ``await run()``."""

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        *,
        count: int,
        stop_grace_s: float,
        policy: RestartPolicy | None = None,
        takes_signals: bool = True,
        on_death: Callable[[int], Awaitable[None]] | None = None,
        on_ready: Callable[[int, int], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare.

        Args:
            command: Returns the command line of a child from its slot (0-based) and the number of the file descriptor
                it inherits.
            count: How many.
            stop_grace_s: How long a drain may take; ten seconds later children are killed.
            policy: When to restart.
            takes_signals: Whether ``run`` answers SIGTERM and SIGINT with ``stop``; else the caller does.
            on_death: Called with the process id right after a child ended in any other way than with status 0; its
                errors are logged, and it has ``TELL_WITHIN_S``. ``run`` returns after it.
            on_ready: Called with slot and process id when a child serves.
            clock: Time.
        """
        self._command = command
        self._children = [_Child(slot) for slot in range(count)]
        self._stop_grace_s = stop_grace_s
        self._policy = policy or RestartPolicy()
        self._signals = (signal.SIGTERM, signal.SIGINT) if takes_signals else ()
        self._on_death = on_death
        self._on_ready = on_ready
        self._clock = clock
        self._stopping = asyncio.Event()
        self._first_ready = asyncio.Event()
        self._stops = 0
        self._status = 0
        self._reports: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Keep the children running until they are stopped; return the exit status of the group.

        0 after a clean stop. When the first child cannot start, its own status; 1 when a child's restart budget is
        spent or one had to be killed. Cancelling kills the children.
        """
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.add_signal_handler(number, self.stop)
        try:
            async with asyncio.TaskGroup() as group:
                killer = group.create_task(self._kill_late(), name="processes-killer")
                keepers = [
                    group.create_task(self._keep(child), name=f"process-{child.slot}") for child in self._children
                ]
                await asyncio.wait(keepers)
                killer.cancel()
                if self._reports:
                    await asyncio.wait(self._reports)
        finally:
            for child in self._children:
                child.send(signal.SIGKILL)
            for number in self._signals:
                loop.remove_signal_handler(number)
        return self._status

    def stop(self) -> None:
        """Drain the children; a second call stops them at once."""
        self._stops += 1
        self._stopping.set()
        self._first_ready.set()
        for child in self._children:
            child.send(signal.SIGTERM)

    async def _kill_late(self) -> None:
        await self._stopping.wait()
        give_up_s = self._clock.monotonic() + self._stop_grace_s + KILL_MARGIN_S
        is_hurried = False
        while self._clock.monotonic() < give_up_s:
            if self._stops > 1 and not is_hurried:
                is_hurried = True
                give_up_s = self._clock.monotonic() + KILL_MARGIN_S
            await self._clock.sleep(0.1)
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                self._status = 1
                _log.warning(events.PROCESS_KILLED, slot=child.slot, pid=child.process.pid)
            child.send(signal.SIGKILL)

    async def _keep(self, child: _Child) -> None:
        if child.slot > 0:
            # the first one finds out whether module, settings and broker will do; then the rest is started
            await self._first_ready.wait()
        while not self._stopping.is_set():
            status = await self._live(child)
            if status != 0 and child.was_ready and child.process is not None:
                self._tell_death(child.process.pid)
            if self._stopping.is_set() or status == 0:
                if status not in (0, -signal.SIGTERM):
                    self._status = self._status or 1
                break
            if not self._first_ready.is_set() and status > 0:
                # it has said why on standard error
                self._give_up(status)
                break
            now_s = self._clock.monotonic()
            child.deaths_s.append(now_s)
            delay_s = self._policy.decide(child.deaths_s, now_s)
            if delay_s is None:
                _log.error(
                    events.PROCESS_ABANDONED,
                    slot=child.slot,
                    restarts=len(child.deaths_s) - 1,
                    window_s=self._policy.window_s,
                )
                self._give_up(1)
                break
            _log.warning(
                events.PROCESS_RESTARTED, slot=child.slot, restarts=len(child.deaths_s), delay_s=delay_s, status=status
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
        if child.slot == 0:
            self._first_ready.set()

    def _tell_death(self, pid: int) -> None:
        """Have the death reported beside: the next start does not wait for it."""
        if self._on_death is None:
            return
        task = asyncio.create_task(self._report(self._on_death, pid), name=f"process-report-{pid}")
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, on_death: Callable[[int], Awaitable[None]], pid: int) -> None:
        try:
            async with asyncio.timeout(TELL_WITHIN_S):
                await on_death(pid)
        except Exception as error:  # noqa: BLE001 - whatever it is, the children come first
            _log.warning(events.PROCESS_UNREPORTED, pid=pid, message=str(error) or type(error).__name__)

    def _give_up(self, status: int) -> None:
        self._status = status
        if not self._stopping.is_set():
            self.stop()

    async def _live(self, child: _Child) -> int:
        """Run one process from start to end; return its status, negative for a signal."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - positional only
        try:
            command = self._command(child.slot, theirs.fileno())
            child.process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True
            )
            theirs.close()
            _log.info(events.PROCESS_STARTED, slot=child.slot, pid=child.process.pid)
            if self._stops:
                child.send(signal.SIGTERM)
            hearing = asyncio.create_task(self._hear(child, ours), name=f"process-{child.slot}-hear")
            try:
                return await child.process.wait()
            except asyncio.CancelledError:
                # nobody will look after it any more
                child.send(signal.SIGKILL)
                _ = await child.process.wait()
                raise
            finally:
                hearing.cancel()
        finally:
            theirs.close()
            ours.close()

    async def _hear(self, child: _Child, ours: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if await asyncio.get_running_loop().sock_recv(ours, 1) == READY:
                child.was_ready = True
                self._first_ready.set()
                if self._on_ready is not None and child.process is not None:
                    self._on_ready(child.slot, child.process.pid)


class DeathNotice:
    """Tells all workers on ``cb.ctl.dead`` that a child is gone, over a connection opened at the first death."""

    def __init__(self, connect: Callable[[str], Awaitable[Bus]]) -> None:
        """Prepare.

        Args:
            connect: Opens a connection under the given name.
        """
        self._connect = connect
        self._bus: Bus | None = None
        self._lock = asyncio.Lock()

    async def tell(self, pid: int) -> None:
        """Report the end of the process; for ``ProcessGroup``. One round trip.

        Raises:
            BusError: If there is no broker; then its silence tells, a second later.
        """
        async with self._lock:
            if self._bus is None:
                self._bus = await self._connect("worker-parent")
        report = ProcessEnd(host=socket.gethostname(), pid=pid, by="parent")
        await self._bus.publish(subjects.CTL_DEAD, msgspec.json.encode(report))
        await self._bus.flush(timeout_s=TELL_WITHIN_S)

    async def close(self) -> None:
        """Disconnect, if there was ever a need to connect."""
        if self._bus is not None:
            await self._bus.close()


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere the shared socket alone tells.

    A handler that holds the interpreter lock would neither read the socket nor handle a gentler signal.
    """
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415 - 10 ms, for children only

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        # it died before we asked
        os._exit(1)


def tell_ready(fd: int) -> None:
    """Tell the parent at the other end of ``fd`` that this child serves."""
    with contextlib.suppress(OSError):
        os.write(fd, READY)
