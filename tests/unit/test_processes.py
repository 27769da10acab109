"""Restarting children: the decision, and a group of small real processes."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence

import pytest

from callboard.runtime import processes, subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.memory import MemoryBroker
from callboard.runtime.control import ProcessEnd, decode_death
from callboard.runtime.errors import BusError
from callboard.runtime.processes import DeathNotice, ProcessGroup, RestartPolicy


def test_waits_grow_up_to_the_limit_and_forget_the_past() -> None:
    policy = RestartPolicy(base_s=1, factor=2, max_s=5, budget=10, window_s=60)
    assert [policy.decide(list(range(n)), 10.0) for n in (1, 2, 3, 4)] == [1, 2, 4, 5]
    assert policy.decide([0.0, 1.0, 100.0], 100.0) == 1


def test_the_budget_ends() -> None:
    policy = RestartPolicy(budget=2, window_s=60)
    assert policy.decide([1, 2], 3) is not None
    assert policy.decide([1, 2, 3], 3) is None
    assert policy.decide([1, 2, 100], 100) is not None


QUICK = RestartPolicy(base_s=0.01, max_s=0.02, budget=2)
READY = "import os, sys; fd = int(sys.argv[2]); os.write(fd, b'R'); "


def _group(code: str, *, count: int = 2, on_death: Callable[[int], Awaitable[None]] | None = None) -> ProcessGroup:
    def command(slot: int, fd: int) -> Sequence[str]:
        return [sys.executable, "-S", "-c", code, str(slot), str(fd)]

    return ProcessGroup(command, count=count, stop_grace_s=5, policy=QUICK, on_death=on_death)


async def _until(task: asyncio.Task[int], condition: Callable[[], bool]) -> None:
    """Wait for a condition, as long as the group runs."""
    async with asyncio.timeout(10):
        while not condition() and not task.done():
            await asyncio.wait({task}, timeout=0.02)
    assert not task.done()


async def _end(group: ProcessGroup, task: asyncio.Task[int]) -> int:
    group.stop()
    async with asyncio.timeout(10):
        return await task


def _ready(group: ProcessGroup) -> list[int]:
    return [child.slot for child in group.staying if child.is_ready]


SERVES = (
    "import os, signal, sys, time; fd = int(sys.argv[2]); "
    "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0)); signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
    "os.write(fd, b'R'); "
)
WAITS = SERVES + "[signal.pause() for _ in range(9)]"


async def test_children_are_told_to_stop_and_the_group_ends_clean() -> None:
    group = _group(WAITS)
    task = asyncio.create_task(group.run())
    await _until(task, lambda: _ready(group) == [0, 1])
    assert await _end(group, task) == 0


async def test_what_the_first_child_says_at_the_start_is_the_status_of_the_group() -> None:
    async with asyncio.timeout(10):
        # another one would end with a status of its own
        assert await _group("import sys; sys.exit(3 + int(sys.argv[1]))").run() == 3


async def test_children_that_end_by_themselves_are_let_go() -> None:
    async with asyncio.timeout(10):
        assert await _group(READY).run() == 0


async def test_a_child_sees_the_end_of_its_parent() -> None:
    code = READY + "sys.exit(0 if os.read(fd, 1) == b'' else 5)"
    group = _group(code, count=1)
    task = asyncio.create_task(group.run())
    await _until(task, lambda: _ready(group) == [0])
    process = group.children[0].process
    assert process is not None
    task.cancel()
    await asyncio.wait({task})
    assert process.returncode is not None


async def test_a_group_grows_and_shrinks_and_waits_at_none() -> None:
    group = _group(WAITS, count=1)
    task = asyncio.create_task(group.run())
    await _until(task, lambda: _ready(group) == [0])
    group.resize(4)
    await _until(task, lambda: _ready(group) == [0, 1, 2, 3])
    group.resize(2, first=lambda child: child.slot)
    await _until(task, lambda: sorted(group.children) == [2, 3])
    group.resize(0)
    await _until(task, lambda: not group.children)
    group.resize(1)
    await _until(task, lambda: _ready(group) == [0])
    assert await _end(group, task) == 0


async def test_a_child_that_is_told_to_go_may_take_its_time_and_is_no_death() -> None:
    pids: list[int] = []

    async def note(pid: int) -> None:
        pids.append(pid)

    # it goes on until something else, the stop, ends it
    stays = (
        SERVES.replace("SIGUSR1, lambda *_: sys.exit(0)", "SIGUSR1, signal.SIG_IGN")
        + "[signal.pause() for _ in range(9)]"
    )
    group = _group(stays, count=2, on_death=note)
    task = asyncio.create_task(group.run())
    await _until(task, lambda: _ready(group) == [0, 1])
    group.resize(0)
    assert [child.is_leaving for child in group.children.values()] == [True, True]
    group.resize(1)
    await _until(task, lambda: _ready(group) == [2])
    assert await _end(group, task) == 0
    assert pids == []


async def test_a_worn_child_goes_when_its_replacement_serves() -> None:
    code = SERVES + "sys.argv[1] == '0' and os.write(fd, b'W'); [signal.pause() for _ in range(9)]"
    group = _group(code, count=1)
    task = asyncio.create_task(group.run())
    await _until(task, lambda: _ready(group) == [1] and sorted(group.children) == [1])
    assert group.wanted == 1
    assert await _end(group, task) == 0


async def test_each_death_is_reported_and_a_clean_end_is_not() -> None:
    pids: list[int] = []

    async def note(pid: int) -> None:
        pids.append(pid)

    async with asyncio.timeout(10):
        assert await _group(READY + "os._exit(9)", count=1, on_death=note).run() == 1
    # as often as the budget allows, and once more
    assert len(set(pids)) == 3
    async with asyncio.timeout(10):
        assert await _group(READY, on_death=note).run() == 0
    assert len(pids) == 3


async def test_a_report_that_fails_or_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TELL_WITHIN_S", 0.2)

    async def fail(pid: int) -> None:
        message = "no broker"
        raise BusError(message)

    async def hang(pid: int) -> None:
        await asyncio.Event().wait()

    for on_death in (fail, hang):
        async with asyncio.timeout(10):
            group = _group(READY + "os._exit(9)", count=1, on_death=on_death)
            assert await group.run() == 1


async def test_a_death_notice_names_host_and_process_over_one_connection() -> None:
    broker = MemoryBroker()
    names: list[str] = []
    heard: list[bytes] = []
    await broker.connect().subscribe(subjects.CTL_DEAD, lambda message: heard.append(message.data))

    async def connect(name: str) -> Bus:
        names.append(name)
        return broker.connect(name=name)

    notice = DeathNotice(connect)
    await asyncio.gather(notice.tell(7), notice.tell(8))
    await notice.close()
    assert names == ["worker-parent"]
    assert [decode_death(data) for data in heard] == [
        ProcessEnd(host=socket.gethostname(), pid=pid, by="parent") for pid in (7, 8)
    ]
