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


async def _stop_when(group: ProcessGroup, condition: Callable[[], bool]) -> int:
    task = asyncio.create_task(group.run())
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.wait({task}, timeout=0.02)
        group.stop()
        return await task


async def test_children_are_told_to_stop_and_the_group_ends_clean() -> None:
    group = _group(READY + "import signal; signal.sigwait({signal.SIGTERM})")
    # nosemgrep: the children block the signal by waiting for it
    assert await _stop_when(group, lambda: all(child.was_ready for child in group._children)) == 0


async def test_what_the_first_child_says_at_the_start_is_the_status_of_the_group() -> None:
    async with asyncio.timeout(10):
        group = _group("raise SystemExit(3)")
        assert await group.run() == 3
        assert group._children[1].process is None


async def test_a_child_that_keeps_crashing_spends_the_budget() -> None:
    async with asyncio.timeout(10):
        group = _group(READY + "os._exit(9)", count=1)
        assert await group.run() == 1
        assert len(group._children[0].deaths_s) == 3


async def test_children_that_end_by_themselves_are_let_go() -> None:
    async with asyncio.timeout(10):
        assert await _group(READY).run() == 0


async def test_a_child_sees_the_end_of_its_parent() -> None:
    code = READY + "sys.exit(0 if os.read(fd, 1) == b'' else 5)"
    group = _group(code, count=1)
    task = asyncio.create_task(group.run())
    async with asyncio.timeout(10):
        while not group._children[0].was_ready:
            await asyncio.wait({task}, timeout=0.02)
        process = group._children[0].process
        assert process is not None
        task.cancel()
        await asyncio.wait({task})
        assert process.returncode is not None


async def test_each_death_is_reported_and_a_clean_end_is_not() -> None:
    pids: list[int] = []

    async def note(pid: int) -> None:
        pids.append(pid)

    async with asyncio.timeout(10):
        assert await _group(READY + "os._exit(9)", count=1, on_death=note).run() == 1
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
            assert len(group._children[0].deaths_s) == 3


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
