"""``callboard worker``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from callboard.cli.output import SPAN, emit, note, stamp, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.beat import Beat
    from callboard.runtime.config import Settings
    from callboard.runtime.loader import Parts
    from callboard.runtime.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS = ("concurrency", "pool", "labels", "drain_grace_s", "shutdown", "health_port")
_STRATEGIES = ("cooperative", "immediate", "finish-step", "checkpoint")


@click.group("worker")
def command() -> None:
    """Start workers; list, drain and resize those that run."""


def _worker_options(function: F) -> F:
    options = (
        click.argument("modules", nargs=-1, required=True, metavar="MODULE..."),
        click.option("--concurrency", type=click.IntRange(1, 4096), help="Slots of each process.  [default: 8]"),
        click.option("--pool", help="Serve only this pool's capabilities and those that name none."),
        click.option("--turns", type=click.IntRange(1, 65_536), help="Turns of actors at once.  [default: 256]"),
        click.option("--labels", metavar="K=V,...", help="Facts for selection, such as gpu=yes,zone=a."),
        click.option("--drain-grace", "drain_grace_s", type=SPAN, help="Time to finish after a stop.  [default: 30s]"),
        click.option(
            "--shutdown",
            type=click.Choice(_STRATEGIES),
            help="What becomes of running work when it drains.  [default: cooperative]",
        ),
        click.option(
            "--health-port",
            type=click.IntRange(0, 65_535),
            help="Serve /livez, /readyz and /metrics here; process K of several takes the K-th port from it.",
        ),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"])),
        json_option,
        global_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command(
    "start",
    epilog=example(
        "callboard worker start hello.py", "callboard worker start shop.tasks --processes 3 --concurrency 8 --pool fast"
    ),
)
@_worker_options
@click.option("--processes", type=click.IntRange(1, 512), help="Processes; each has its own slots.  [default: 1]")
@pass_session
def start(session: Session, /, modules: tuple[str, ...], *, processes: int | None, **flags: Any) -> None:  # noqa: ANN401
    """Serve the capabilities and actors of each MODULE: a dotted name, or the path of a .py file.

    SIGTERM or Ctrl-C drains: nothing new is taken, running tasks may finish, the rest is handed back. A second one
    stops at once. A process that crashes is started again. Several of these, here or on other hosts, share the work.
    """
    settings = _settings(session, flags, processes=processes)
    if settings.worker.processes == 1:
        _serve(session, settings, modules)
    else:
        _supervise(session, settings, modules, flags)


@command.command("child", hidden=True)
@_worker_options
@click.option("--slot", type=int, required=True)
@click.option("--parent-fd", type=int, required=True)
@click.option("--parent-pid", type=int, required=True)
@click.option("--quiet", is_flag=True)
@pass_session
def child(
    session: Session,
    /,
    modules: tuple[str, ...],
    *,
    slot: int,
    parent_fd: int,
    parent_pid: int,
    quiet: bool,
    **flags: Any,  # noqa: ANN401
) -> None:
    """Be one process of ``worker start --processes N``; it is started by that, not by people."""
    from callboard.runtime.processes import die_with_parent

    os.set_inheritable(parent_fd, False)  # noqa: FBT003 - positional only
    die_with_parent(parent_pid)
    settings = _settings(session, flags, processes=1)
    _serve(session, settings, modules, slot=slot, parent_fd=parent_fd, is_quiet=quiet)


def _settings(session: Session, /, flags: dict[str, Any], *, processes: int | None) -> Settings:
    given = {f"worker__{name}": flags[name] for name in _FLAGS}
    return session.settings(
        worker__processes=processes, log__level=flags["log_level"], actors__turns=flags["turns"], **given
    )


def _serve(
    session: Session,
    /,
    settings: Settings,
    modules: Sequence[str],
    *,
    slot: int = 0,
    parent_fd: int | None = None,
    is_quiet: bool = False,
) -> None:
    from callboard.runtime import host
    from callboard.runtime.loader import load_parts
    from callboard.runtime.processes import tell_ready

    host.configure_logs(settings, slot=slot)
    out = sys.stdout
    if session.json:
        # what modules and handlers print must not stand between the events
        sys.stdout = sys.stderr
    parts = load_parts(modules)

    def on_ready(worker: Worker) -> None:
        host.settle_memory()
        if parent_fd is not None:
            tell_ready(parent_fd)
        if is_quiet:
            return
        if session.json:
            actors = sorted(actor.actor_name for actor in parts.actors)
            ready = {"worker": worker.id, "pid": os.getpid(), "capabilities": sorted(worker.pools), "actors": actors}
            emit({"event": "ready", **ready}, file=out)
            return
        note(f"worker {worker.id} is ready and serves {serving(worker, parts)}; Ctrl-C drains it")

    port = settings.worker.health_port
    host.run_loop(
        host.run_worker(
            settings,
            parts.capabilities,
            actors=parts.actors,
            on_ready=on_ready,
            parent_fd=parent_fd,
            health_port=port + slot if port else 0,
        )
    )
    host.leave(0)


def serving(worker: Worker, parts: Parts) -> str:
    """Return what a worker serves, for people."""
    slots = [f"{name} ({pool.slots} slots)" for name, pool in sorted(worker.pools.items())]
    return ", ".join([*slots, *(f"the actors {actor.actor_name}/*" for actor in parts.actors)])


def child_command(session: Session, /, settings: Settings, modules: Sequence[str]) -> list[str]:
    """Return the command line of a worker that is a child of ours, but for its slot and its end of the socket."""
    files = [word for file in session.files for word in ("--config", str(file))]
    parts = [sys.executable, "-m", "callboard", "worker", "child", *modules, "--nats", settings.nats.url, *files]
    return [*parts, *(["--debug"] if session.debug else []), "--parent-pid", str(os.getpid())]


def _supervise(session: Session, /, settings: Settings, modules: Sequence[str], flags: dict[str, Any]) -> None:
    import asyncio

    from callboard.runtime import host
    from callboard.runtime.processes import DeathNotice, ProcessGroup

    host.configure_logs(settings)
    parts = child_command(session, settings, modules)
    for name, option in (("concurrency", "--concurrency"), ("pool", "--pool"), ("labels", "--labels")):
        if flags[name] is not None:
            parts += [option, str(flags[name])]
    for name, option in (
        ("turns", "--turns"),
        ("drain_grace_s", "--drain-grace"),
        ("shutdown", "--shutdown"),
        ("health_port", "--health-port"),
        ("log_level", "--log-level"),
    ):
        if flags[name] is not None:
            parts += [option, str(flags[name])]
    parts += ["--json"] if session.json else []

    async def work() -> int:
        notice = DeathNotice(host.connector(settings))
        group = ProcessGroup(
            lambda slot, fd: [*parts, "--slot", str(slot), "--parent-fd", str(fd)],
            count=settings.worker.processes,
            stop_grace_s=settings.worker.drain_grace_s,
            on_death=notice.tell,
        )
        try:
            return await group.run()
        finally:
            await notice.close()

    sys.exit(asyncio.run(work()))


@command.command("ls", epilog=example("callboard worker ls", "callboard worker ls --json | jq '.[].worker'"))
@json_option
@global_options
@pass_session
def ls(session: Session) -> None:
    """List the workers that are alive, by their heartbeats; listens for a little over a second."""
    from callboard.runtime.roster import live_workers

    async def work() -> list[Beat]:
        async with session.bus("worker-ls") as bus:
            return await live_workers(bus)

    beats = session.run(work())
    if session.json:
        emit(beats)
        return
    table(
        [
            (
                beat.worker,
                beat.status,
                str(beat.pid),
                stamp(beat.started_at),
                ", ".join(f"{c.name} {c.busy}/{c.slots}{' paused' if c.is_paused else ''}" for c in beat.capabilities),
                ", ".join(f"{a.kind} {a.running}/{a.active} ({len(a.partitions)})" for a in beat.actors) or "-",
                ",".join(f"{key}={value}" for key, value in beat.labels.items()) or "-",
            )
            for beat in beats
        ],
        head=("WORKER", "STATUS", "PID", "STARTED", "BUSY/SLOTS", "ACTORS BUSY/AWAKE (PARTITIONS)", "LABELS"),
        empty="no worker was heard; start one with `callboard worker start MODULE`",
    )


@command.command(
    "drain", epilog=example("callboard worker drain shop-4211-a1b2c3", "callboard worker drain shop --wait")
)
@click.argument("worker")
@click.option("--wait", is_flag=True, help="Wait until they have stopped.")
@json_option
@global_options
@pass_session
def drain(session: Session, /, worker: str, *, wait: bool) -> None:
    """Drain WORKER: an id from `worker ls`, or a host, which means all its workers. Each then ends with status 0."""
    from callboard.runtime import roster
    from callboard.runtime.control import Order

    async def work() -> list[str]:
        async with session.bus("worker-drain") as bus:
            chosen = await roster.select(bus, worker)
            for name in chosen:
                await roster.order(bus, name, Order(op="drain"))
            if wait:
                await roster.wait_gone(bus, chosen)
            return chosen

    chosen = session.run(work())
    if session.json:
        emit({"drained" if wait else "draining": chosen})
    else:
        click.echo(f"{'drained' if wait else 'draining'}: {', '.join(chosen)}")


@command.command("slots", epilog=example("callboard worker slots shop-4211-a1b2c3 search 16"))
@click.argument("worker")
@click.argument("capability")
@click.argument("count", type=click.IntRange(1, 4096))
@json_option
@global_options
@pass_session
def slots(session: Session, /, worker: str, capability: str, count: int) -> None:
    """Give CAPABILITY COUNT slots in WORKER (an id or a host), now and until that process ends."""
    from callboard.runtime import roster
    from callboard.runtime.control import Order

    async def work() -> list[str]:
        async with session.bus("worker-slots") as bus:
            chosen = await roster.select(bus, worker, capability=capability)
            for name in chosen:
                await roster.order(bus, name, Order(op="slots", capability=capability, slots=count))
            return chosen

    chosen = session.run(work())
    if session.json:
        emit({"workers": chosen, "capability": capability, "slots": count})
    else:
        click.echo(f"{capability} has {count} slots in {', '.join(chosen)}")
