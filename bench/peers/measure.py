"""One round of one row, on empty servers: start-up, latency, throughput with CPU and memory, and a worker's death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.job import ROOT, environment
from bench.peers import notes
from bench.peers.apps.side import BEGAN
from bench.peers.notes import Crash
from bench.peers.peer import Peer, Variant
from bench.peers.process import Sending, Tree

_EVERY_S = 0.005
# What still happens for the last tasks (acks, results) is counted to their CPU time.
_REST_S = 0.25
_WARM_UP = 20
_REPLACED_S = 1.0


class Plan(Struct, frozen=True, kw_only=True):
    """Sizes.

    Attributes:
        tasks: No-op tasks of a round of throughput.
        singles: Tasks of a round of latency, one after the other.
        slow_s: Length of the tasks whose worker is killed.
        slow: How many of them, on two workers.
        again_within_s: How long to wait for their second starts.
        within_s: How long any other part may take.
        rounds: Of every row, one after the other: A B C A B C. The kill is part of the first ``kills`` rounds.
    """

    tasks: int = 5_000
    singles: int = 200
    slow_s: float = 3.0
    slow: int = 4
    again_within_s: float = 60.0
    within_s: float = 300.0
    rounds: int = 3
    kills: int = 1


class Round(Struct, kw_only=True):
    """What a round found. Seconds, microseconds and megabytes as the names say; None where nothing was measured.

    Attributes:
        rate: No-op tasks a second of one worker that finds them waiting, from the first to the last.
        submit_rate: Tasks a second that one sender handed over before, nothing else running.
        lost: No-op tasks that never ran within the time.
        repeated: Runs of no-op tasks beyond the first of each; nobody was killed.
    """

    startup_s: float | None = None
    rate: float | None = None
    submit_rate: float | None = None
    cpu_us: float | None = None
    memory_mb: float | None = None
    to_handler_us: list[float] = []
    to_result_us: list[float] = []
    lost: int = 0
    repeated: int = 0
    crash: Crash | None = None


class Stage:
    """A server, a sender and a folder for notes."""

    def __init__(self, peer: Peer, python: str, folder: Path, told: dict[str, Any], sending: Sending) -> None:
        self.folder = folder
        self.sending = sending
        self._command = peer.worker_command(python)
        self._environment = _environment(peer, told)

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncIterator[Tree]:
        """Run a worker for the block."""
        tree = Tree(self._command, self._environment, self.folder)
        try:
            yield tree
        finally:
            await tree.stop()

    async def until(self, is_done: Callable[[], bool], *trees: Tree, within_s: float) -> bool:
        """Wait; return whether it was done in time. A worker that ends by itself is an error."""
        until_s = time.monotonic() + within_s
        while not is_done():
            if time.monotonic() > until_s:
                return False
            for tree in trees:
                tree.check()
            await asyncio.sleep(_EVERY_S)
        return True


async def one(peer: Peer, variant: Variant, python: str, plan: Plan, found: Round, *, with_kill: bool) -> None:
    """Measure one round of a row into ``found``, which keeps what was measured before an error.

    Raises:
        PeerUnavailableError: If its server is not here.
        RuntimeError: If a worker or the sender ended; with its last words.
    """
    async with _stage(peer, variant, python, "noop") as stage:
        await _startup_and_latency(stage, plan, found)
    async with _stage(peer, variant, python, "noop") as stage:
        await _throughput(stage, plan, found)
    if with_kill:
        async with _stage(peer, variant, python, "slow") as stage:
            found.crash = await _death(stage, plan)


@contextlib.asynccontextmanager
async def _stage(peer: Peer, variant: Variant, python: str, tasks: str) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix=f"cb-peers-{peer.name}-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        async with peer.server(variant, folder) as server:
            told = {"folder": str(folder), "tasks": tasks, "variant": variant.key, **variant.options, **server}
            send = peer.sender_command(python)
            async with Sending.started(send, _environment(peer, told), folder) as sending:
                yield Stage(peer, python, folder, told, sending)


def _environment(peer: Peer, told: dict[str, Any]) -> dict[str, str]:
    ours = {**os.environ, "PYTHONPATH": str(ROOT)} if peer.has_venv else environment()
    return {**ours, "PEER": json.dumps(told), **peer.environment(told)}


async def _startup_and_latency(stage: Stage, plan: Plan, found: Round) -> None:
    """A task waits before the worker starts; then one task at a time."""
    await stage.sending.order("burst", 0, 1)
    async with stage.worker() as worker:
        if not await stage.until(lambda: notes.count(stage.folder) > 0, worker, within_s=plan.within_s):
            message = f"the worker did not run its first task within {plan.within_s:g} s"
            raise RuntimeError(message)
        found.startup_s = (notes.read(stage.folder)[0].at_ns - worker.began_ns) / 1e9
        await stage.sending.order("single", 1, _WARM_UP)
        first = 1 + _WARM_UP
        answer = await stage.sending.order("single", first, plan.singles)
    ran = notes.first_run(notes.read(stage.folder))
    for index, (sent, answered) in enumerate(zip(answer["sent_ns"], answer["answered_ns"], strict=True)):
        found.to_handler_us.append((ran[first + index] - sent) / 1e3)
        if answered:
            found.to_result_us.append((answered - sent) / 1e3)


async def _throughput(stage: Stage, plan: Plan, found: Round) -> None:
    """The queue is filled, then a worker starts: from the first task to the last."""
    answer = await stage.sending.order("burst", 0, plan.tasks)
    found.submit_rate = plan.tasks / (answer["took_ns"] / 1e9)
    async with stage.worker() as worker:
        await stage.until(lambda: notes.count(stage.folder) > 0, worker, within_s=plan.within_s)
        before, cpu_s = notes.count(stage.folder), worker.cpu_s()
        await stage.until(lambda: notes.count(stage.folder) >= plan.tasks, worker, within_s=plan.within_s)
        await asyncio.sleep(_REST_S)
        noted = notes.count(stage.folder) - before
        if noted:
            found.cpu_us = (worker.cpu_s() - cpu_s) / noted * 1e6
        found.memory_mb = worker.memory_mb()
    all_notes = notes.read(stage.folder)
    runs = sorted(notes.first_run(all_notes).values())
    found.lost = len(notes.missing(all_notes, range(plan.tasks)))
    found.repeated = notes.repeated(all_notes)
    if len(runs) > 1:
        found.rate = (len(runs) - 1) / ((runs[-1] - runs[0]) / 1e9)


async def _death(stage: Stage, plan: Plan) -> Crash:
    """Kill the worker that runs most of a few slow tasks in their middle; the other goes on, and a new one comes."""
    wanted = range(plan.slow)
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(stage.worker())
        other = await stack.enter_async_context(stage.worker())
        # both have started once a quick task was run, and so many seconds are over
        await stage.sending.order("burst", 1_000_000, 1)
        await stage.until(lambda: notes.count(stage.folder) > 0, one, other, within_s=plan.within_s)
        await asyncio.sleep(plan.slow_s)
        await stage.sending.order("slow", 0, plan.slow, seconds=plan.slow_s)

        def begun() -> list[notes.Note]:
            return [note for note in notes.read(stage.folder) if note.kind == BEGAN]

        await stage.until(lambda: bool(begun()), one, other, within_s=plan.within_s)
        await asyncio.sleep(plan.slow_s / 3)
        mine = sum(note.pid in one.pids() for note in begun())
        victim, heir = (one, other) if mine * 2 >= len(begun()) else (other, one)
        killed_ns = time.monotonic_ns()
        dead = victim.kill()
        # as a supervisor does; some peers look for a dead one's tasks only when a worker starts
        await asyncio.sleep(_REPLACED_S)
        await stack.enter_async_context(stage.worker())

        def has_recovered() -> bool:
            crash = notes.after_kill(notes.read(stage.folder), wanted, killed_ns=killed_ns, dead=dead)
            return crash.lost == 0 and len(crash.again_s) == crash.hit

        await stage.until(has_recovered, heir, within_s=plan.again_within_s)
        # a second run of what ended meanwhile shows within the time of one task
        await asyncio.sleep(plan.slow_s)
        return notes.after_kill(notes.read(stage.folder), wanted, killed_ns=killed_ns, dead=dead)
