"""The parent of the processes of one ``callboard worker start``: it serves nothing and keeps those that do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from callboard.cli.output import emit, note
from callboard.cli.session import Session

if TYPE_CHECKING:
    from callboard.runtime.config import Settings
    from callboard.runtime.group import GroupDesk, Scaling, Served
    from callboard.runtime.processes import ProcessGroup


def run(session: Session, /, settings: Settings, words: Sequence[str]) -> int:
    """Keep worker processes running until they are stopped; return the exit status.

    Args:
        session: The call.
        settings: All settings.
        words: The arguments of each process: modules, flags, where the server is.
    """
    import asyncio

    from callboard.runtime import host, ids

    host.configure_logs(settings)
    scaling = None
    if settings.worker.max:
        status, served = _describe(words)
        if served is None:
            # it has said why on standard error
            return status
        scaling = _scaling(settings, served)
    name = ids.new_worker_id(settings.worker.user)
    _greet(session, name, scaling)
    return asyncio.run(_keep(settings, words, name=name, scaling=scaling))


def _describe(words: Sequence[str]) -> tuple[int, Served | None]:
    """Ask a process of its own what the workers will serve: the parent loads no code of others, and stays small."""
    import msgspec

    from callboard.runtime.group import Served

    command = [sys.executable, "-m", "callboard", "worker", "describe", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)  # noqa: S603 - ourselves
    if done.returncode:
        return max(1, done.returncode), None
    return 0, msgspec.json.decode(done.stdout, type=Served)


def _scaling(settings: Settings, served: Served) -> Scaling:
    from callboard.runtime.autoscale import Rules
    from callboard.runtime.group import Scaling

    worker = settings.worker
    least = max(1, worker.min) if served.actors else worker.min
    rules = Rules(min=least, max=worker.max, cool_down_s=worker.cool_down_s)
    # the users of workers that `callboard nats config` writes may not read tasks before they are handed out
    may_read = worker.user is None
    return Scaling(rules=rules, served=served, numbers=settings.work, reads_queue=may_read)


def _greet(session: Session, /, name: str, scaling: Scaling | None) -> None:
    if session.json:
        emit({"event": "group", "group": name, "pid": os.getpid()})
        return
    if scaling is None:
        note(f"group {name} starts; `callboard workers scale {name} N` changes the number of its processes")
        return
    rules = scaling.rules
    note(f"group {name} keeps {rules.min} to {rules.max} processes, as the work wants")
    if scaling.served.actors:
        hosted = ", ".join(f"{kind}/*" for kind in scaling.served.actors)
        note(f"one process always stays, for it hosts {hosted}: with none an ask would find nobody who listens")


async def _keep(settings: Settings, words: Sequence[str], *, name: str, scaling: Scaling | None) -> int:
    import asyncio

    from callboard.runtime import host
    from callboard.runtime.group import GroupDesk
    from callboard.runtime.processes import DeathNotice, ProcessGroup, child_command

    connect = host.connector(settings)
    notice = DeathNotice(connect)
    group = ProcessGroup(
        lambda slot, fd: child_command([*words, "--group", name], slot=slot, fd=fd, restarts=group.restarts(slot)),
        count=scaling.rules.min if scaling is not None else settings.worker.processes,
        stop_grace_s=settings.worker.drain_grace_s,
        stays=scaling is not None,
        on_death=notice.tell,
    )
    desk = GroupDesk(group, connect, name=name, labels=settings.worker.labels, scaling=scaling)
    if scaling is not None:
        # nobody else would find out that there is no broker
        await desk.open()
    try:
        async with _health(settings, group, desk):
            speaking = asyncio.create_task(_speak(group, desk, at_once=scaling is not None), name="group-desk")
            try:
                return await group.run()
            finally:
                speaking.cancel()
                await asyncio.wait([speaking])
    finally:
        await notice.close()


async def _speak(group: ProcessGroup, desk: GroupDesk, *, at_once: bool) -> None:
    if not at_once:
        # the first process finds out whether there is a broker, and says so in words
        await group.first_ready.wait()
        if group.is_stopping:
            return
    await desk.run()


@asynccontextmanager
async def _health(settings: Settings, group: ProcessGroup, desk: GroupDesk) -> AsyncIterator[None]:
    from callboard.runtime import metrics
    from callboard.runtime.health import Health, HealthServer

    if not settings.worker.group_port:
        yield
        return

    def ready() -> Health:
        missing = group.wanted - sum(child.is_ready for child in group.staying)
        reasons = [desk.problem] if desk.problem else []
        reasons += [f"{missing} of {group.wanted} processes do not serve yet"] if missing > 0 else []
        return Health(not reasons, tuple(reasons))

    server = HealthServer(
        live=lambda: Health(is_ok=True), ready=ready, metrics=lambda: metrics.render_group(desk.beat())
    )
    _ = await server.start(host=settings.worker.health_host, port=settings.worker.group_port)
    try:
        yield
    finally:
        await server.close()
