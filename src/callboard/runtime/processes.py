"""A parent that keeps N worker processes running: starts, restarts with back-off, passes stops on, takes them with it.

The parent and each child share a socket pair. The child writes a byte to it when it is ready, and another when it is
worn and wants to be replaced; its end tells the child that the parent is gone, however it died. Children have a session
of their own, so Ctrl-C in a terminal reaches the parent alone, which tells them in order.
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
WORN = b"W"
# tells a child to finish what it runs, however long it takes, and to end
RETIRE = signal.SIGUSR1
# told to end before it could hear it in any other way
_CLEAN = (0, 130, -signal.SIGTERM, -signal.SIGINT, -RETIRE)
KILL_MARGIN_S = 10.0
TELL_WITHIN_S = 3.0
_PR_SET_PDEATHSIG = 1

_log = get_logger(__name__)


def child_command(words: Sequence[str], /, *, slot: int, fd: int, restarts: int = 0) -> list[str]:
    """Return the command line of a worker that is a child of this process.

    Args:
        words: Modules and options of ``worker start``, and ``--group`` or ``--quiet``.
        slot: Its place among its siblings.
        fd: Its end of the socket pair that it inherits.
        restarts: How often it was started anew.
    """
    command = [sys.executable, "-m", "callboard", "worker", "child", *words]
    command += ["--slot", str(slot), "--restarts", str(restarts)]
    return [*command, "--parent-fd", str(fd), "--parent-pid", str(os.getpid())]


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


class Child:
    """One process of the group and what came before it in its place.

    Attributes:
        slot: Its place, the lowest that was free; no two have the same at a time.
        process: The process that fills it now, or was the last to.
        deaths_s: Monotonic seconds of its crashes.
        was_ready: Whether a process of it ever served.
        is_ready: Whether the present one serves.
        is_leaving: It shall end when it has finished what it runs, and nobody comes after it in its place.
        replaces: Whom it stands in for; that one is retired when this one serves.
    """

    def __init__(self, slot: int, *, replaces: Child | None = None) -> None:
        """Begin with no process."""
        self.slot = slot
        self.process: asyncio.subprocess.Process | None = None
        self.deaths_s: list[float] = []
        self.was_ready = False
        self.is_ready = False
        self.is_leaving = False
        self.replaces = replaces

    @property
    def pid(self) -> int:
        """Process id; 0 before there was one."""
        return self.process.pid if self.process is not None else 0

    def send(self, number: int) -> None:
        """Send a signal, if there is a process to hear it."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class ProcessGroup:
    """Children of the same command, as many as are wanted. Make one and ``await run()``.

    Attributes:
        children: Those that are there, by slot.
        first_ready: Set when one of them has served, or the group stops.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        *,
        count: int,
        stop_grace_s: float,
        policy: RestartPolicy | None = None,
        takes_signals: bool = True,
        stays: bool = False,
        on_death: Callable[[int], Awaitable[None]] | None = None,
        on_ready: Callable[[int, int], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare.

        Args:
            command: Returns the command line of a child from its slot (0-based) and the number of the file descriptor
                it inherits.
            count: How many to begin with.
            stop_grace_s: How long a drain may take; ten seconds later children are killed.
            policy: When to restart.
            takes_signals: Whether ``run`` answers SIGTERM and SIGINT with ``stop``; else the caller does.
            stays: Whether ``run`` goes on without children until ``stop``; so it does after a ``resize``.
            on_death: Called with the process id right after a child ended in any other way than with status 0; its
                errors are logged, and it has ``TELL_WITHIN_S``. ``run`` returns after it.
            on_ready: Called with slot and process id when a child serves.
            clock: Time.
        """
        self.children: dict[int, Child] = {}
        self.first_ready = asyncio.Event()
        self._command = command
        self._wanted = count
        self._stays = stays
        self._stop_grace_s = stop_grace_s
        self._policy = policy or RestartPolicy()
        self._signals = (signal.SIGTERM, signal.SIGINT) if takes_signals else ()
        self._on_death = on_death
        self._on_ready = on_ready
        self._clock = clock
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._stops = 0
        self._status = 0
        self._began = False
        self._group: asyncio.TaskGroup | None = None
        self._reports: set[asyncio.Task[None]] = set()

    @property
    def wanted(self) -> int:
        """Children that there shall be; those that leave do not count."""
        return self._wanted

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def staying(self) -> list[Child]:
        """The children that are to go on, by slot."""
        return [child for _, child in sorted(self.children.items()) if not child.is_leaving]

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
                self._group = group
                killer = group.create_task(self._kill_late(), name="processes-killer")
                self._adjust(self.staying)
                self._look_for_the_end()
                await self._ended.wait()
                killer.cancel()
                if self._reports:
                    await asyncio.wait(self._reports)
        finally:
            self._group = None
            for child in self.children.values():
                child.send(signal.SIGKILL)
            for number in self._signals:
                loop.remove_signal_handler(number)
        return self._status

    def restarts(self, slot: int) -> int:
        """Return how often the child in a slot was started anew."""
        return len(self.children[slot].deaths_s)

    def stop(self) -> None:
        """Drain the children; a second call stops them at once."""
        self._stops += 1
        self._stopping.set()
        self.first_ready.set()
        for child in self.children.values():
            # another signal the second time: two of a kind that follow at once may arrive as one
            child.send(signal.SIGTERM if self._stops == 1 else signal.SIGINT)
        self._look_for_the_end()

    def resize(self, count: int, *, first: Callable[[Child], object] | None = None) -> None:
        """Have ``count`` children from now on; those beyond it finish what they run and leave.

        Args:
            count: 0 or more; with 0 the group waits to be resized again or stopped.
            first: Sorts the children, those that shall leave soonest first; None takes the highest slots.
        """
        self._wanted = count
        self._stays = True
        staying = self.staying[::-1]
        self._adjust(sorted(staying, key=first) if first is not None else staying)  # type: ignore[arg-type]  # the caller's key

    def _adjust(self, leaving_first: Sequence[Child]) -> None:
        if self._stopping.is_set():
            return
        number = len(leaving_first)
        for child in leaving_first[: max(0, number - self._wanted)]:
            self._retire(child)
        for _ in range(self._wanted - number):
            self._start()

    def _start(self, *, replaces: Child | None = None) -> None:
        if self._group is None:
            return
        slot = next(slot for slot in range(len(self.children) + 1) if slot not in self.children)
        child = self.children[slot] = Child(slot, replaces=replaces)
        is_first, self._began = not self._began, True
        _ = self._group.create_task(self._keep(child, is_first=is_first), name=f"process-{slot}")

    def _retire(self, child: Child) -> None:
        """Have it finish what it runs, however long that takes, and end."""
        child.is_leaving = True
        _log.info(events.PROCESS_RETIRED, slot=child.slot, pid=child.pid)
        child.send(RETIRE)
        if child.replaces is not None:
            # it goes before it could stand in
            former, child.replaces = child.replaces, None
            self._retire(former)

    def _recycle(self, child: Child) -> None:
        """Have another child take the place of one that wants to end, and only then let it go."""
        if self._stopping.is_set() or child.is_leaving:
            return
        child.is_leaving = True
        _log.info(events.PROCESS_RECYCLED, slot=child.slot, pid=child.pid)
        if len(self.staying) < self._wanted:
            self._start(replaces=child)
        else:
            self._retire(child)

    async def _kill_late(self) -> None:
        await self._stopping.wait()
        give_up_s = self._clock.monotonic() + self._stop_grace_s + KILL_MARGIN_S
        is_hurried = False
        while self._clock.monotonic() < give_up_s:
            if self._stops > 1 and not is_hurried:
                is_hurried = True
                give_up_s = self._clock.monotonic() + KILL_MARGIN_S
            await self._clock.sleep(0.1)
        for child in self.children.values():
            if child.process is not None and child.process.returncode is None:
                self._status = 1
                _log.warning(events.PROCESS_KILLED, slot=child.slot, pid=child.process.pid)
            child.send(signal.SIGKILL)

    async def _keep(self, child: Child, *, is_first: bool) -> None:
        if not is_first:
            # the first one finds out whether module, settings and broker will do; then the rest is started
            await self.first_ready.wait()
        while not (self._stopping.is_set() or child.is_leaving):
            status = await self._live(child)
            child.is_ready = False
            if status != 0 and child.was_ready:
                self._tell_death(child.pid)
            if not await self._goes_on(child, status, is_first=is_first):
                break
        del self.children[child.slot]
        if is_first:
            self.first_ready.set()
        self._look_for_the_end()

    async def _goes_on(self, child: Child, status: int, *, is_first: bool) -> bool:
        """Return whether a child whose process ended is started again; wait until it may be."""
        if self._stopping.is_set() or status == 0:
            if status not in _CLEAN:
                self._status = self._status or 1
            if not child.is_leaving:
                # drained by an order of its own: nobody shall come after it
                self._wanted = max(0, self._wanted - 1)
            return False
        if child.is_leaving:
            return False
        if is_first and not self._stays and not self.first_ready.is_set() and status > 0:
            # it has said why on standard error
            self._give_up(status)
            return False
        now_s = self._clock.monotonic()
        child.deaths_s.append(now_s)
        delay_s = self._policy.decide(child.deaths_s, now_s)
        if delay_s is None:
            restarts, window_s = len(child.deaths_s) - 1, self._policy.window_s
            _log.error(events.PROCESS_ABANDONED, slot=child.slot, restarts=restarts, window_s=window_s)
            self._give_up(1)
            return False
        restarts = len(child.deaths_s)
        _log.warning(events.PROCESS_RESTARTED, slot=child.slot, restarts=restarts, delay_s=delay_s, status=status)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        return True

    def _look_for_the_end(self) -> None:
        if not self.children and (self._stopping.is_set() or not self._stays):
            self._ended.set()

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

    async def _live(self, child: Child) -> int:
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
            elif child.is_leaving:
                child.send(RETIRE)
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

    async def _hear(self, child: Child, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while said := await loop.sock_recv(ours, 1):
                if said == WORN:
                    self._recycle(child)
                elif said == READY:
                    child.was_ready = child.is_ready = True
                    self.first_ready.set()
                    if self._on_ready is not None and child.process is not None:
                        self._on_ready(child.slot, child.process.pid)
                    if child.replaces is not None:
                        self._retire(child.replaces)
                        child.replaces = None


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


def tell_worn(fd: int) -> None:
    """Ask the parent at the other end of ``fd`` for a replacement."""
    with contextlib.suppress(OSError):
        os.write(fd, WORN)
