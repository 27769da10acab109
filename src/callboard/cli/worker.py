"""``callboard worker start``, and the processes that it consists of."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from callboard.cli.output import SPAN, emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from typing import TextIO

    from callboard.runtime.config import Settings
    from callboard.runtime.loader import Parts
    from callboard.runtime.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])

# flags that are settings of the section `worker`, as the options are called
_FLAGS = {
    "concurrency": "--concurrency",
    "pool": "--pool",
    "labels": "--labels",
    "drain_grace_s": "--drain-grace",
    "shutdown": "--shutdown",
    "health_port": "--health-port",
    "recycle_tasks": "--recycle-tasks",
    "recycle_rss_bytes": "--recycle-rss",
    "max_memory_bytes": "--max-memory",
    "max_cpu_s": "--max-cpu",
    "max_task_s": "--max-task",
    "max_open_files": "--max-open-files",
    "tenants": "--tenants",
}
_OTHER_FLAGS = {"turns": "--turns", "log_level": "--log-level"}
_STRATEGIES = ("cooperative", "immediate", "finish-step", "checkpoint")


@click.group("worker")
def command() -> None:
    """Start workers; `callboard workers` is about those that run."""


def _worker_options(function: F) -> F:
    options = (
        click.argument("modules", nargs=-1, metavar="MODULE..."),
        click.option(
            "--registry", "only_registry", is_flag=True, help="Host the registry and nothing else; no MODULE."
        ),
        click.option("--concurrency", type=click.IntRange(1, 4096), help="Slots of each process.  [default: 8]"),
        click.option("--pool", help="Serve only this pool's capabilities and those that name none."),
        click.option(
            "--tenants",
            type=click.Path(path_type=Path, dir_okay=False),
            help="File of tenants to work for; they share the slots fairly.",
        ),
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
        click.option(
            "--recycle-tasks", type=click.IntRange(0), help="Replace a process after so many tasks and turns."
        ),
        click.option("--recycle-rss", "recycle_rss_bytes", metavar="SIZE", help="Replace it above so much memory."),
        click.option("--max-memory", "max_memory_bytes", metavar="SIZE", help="Most memory of a process, like 2GiB."),
        click.option("--max-cpu", "max_cpu_s", type=SPAN, help="CPU time after which a process is replaced."),
        click.option("--max-task", "max_task_s", type=SPAN, help="Longest run of a task."),
        click.option("--max-open-files", type=click.IntRange(0), help="Open files and sockets of a process."),
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
        "callboard worker start hello.py",
        "callboard worker start shop.tasks --processes 3 --concurrency 8 --pool fast",
        "callboard worker start shop.tasks --min 0 --max 8",
        "callboard worker start --registry",
    ),
)
@_worker_options
@click.option("--processes", type=click.IntRange(1, 512), help="Processes; each has its own slots.  [default: 1]")
@click.option("--max", "max_", type=click.IntRange(1, 512), help="Let the processes follow the work, up to so many.")
@click.option("--min", "min_", type=click.IntRange(0, 512), help="The fewest then; 1 with actors.  [default: 0]")
@click.option("--cool-down", "cool_down_s", type=SPAN, help="A process goes when not needed so long.  [default: 30s]")
@click.option("--group-port", type=click.IntRange(0, 65_535), help="Health and backlog metrics of the parent process.")
@pass_session
def start(
    session: Session,
    /,
    modules: tuple[str, ...],
    *,
    processes: int | None,
    max_: int | None,
    min_: int | None,
    cool_down_s: float | None,
    group_port: int | None,
    **flags: Any,  # noqa: ANN401
) -> None:
    """Serve the capabilities, actors and agents of each MODULE: a dotted name, the path of a .py file, or a folder.

    Of a folder every .py file is served; one that cannot be is reported and left out. @installed serves what installed
    packages offer by entry points of the group callboard.agents.

    SIGTERM or Ctrl-C drains: nothing new is taken, running tasks may finish, the rest is handed back. A second one
    stops at once. A process that crashes is started again. Several of these, here or on other hosts, share the work.

    With --registry it serves no module and hosts the registry of agents, for servers where only its user may.
    """
    settings = _settings(
        session, flags, processes=processes, max=max_, min=min_, cool_down_s=cool_down_s, group_port=group_port
    )
    _check_modules(modules, settings, only_registry=flags["only_registry"])
    if settings.worker.is_supervised:
        from callboard.cli import supervise

        sys.exit(supervise.run(session, settings, words(session, settings, modules, flags)))
    _serve(session, settings, modules, only_registry=flags["only_registry"])


def _check_modules(modules: tuple[str, ...], settings: Settings, *, only_registry: bool) -> None:
    if only_registry and (modules or settings.worker.max or settings.worker.tenants is not None):
        message = "--registry hosts the registry and nothing else: give no MODULE, --max or --tenants with it"
        raise click.UsageError(message)
    if not (modules or only_registry):
        message = "Missing argument 'MODULE...'."
        raise click.UsageError(message)


@command.command("child", hidden=True)
@_worker_options
@click.option("--slot", type=int, required=True)
@click.option("--restarts", type=int, default=0)
@click.option("--parent-fd", type=int, required=True)
@click.option("--parent-pid", type=int, required=True)
@click.option("--group", default="")
@click.option("--quiet", is_flag=True)
@pass_session
def child(
    session: Session,
    /,
    modules: tuple[str, ...],
    *,
    slot: int,
    restarts: int,
    parent_fd: int,
    parent_pid: int,
    group: str,
    quiet: bool,
    **flags: Any,  # noqa: ANN401
) -> None:
    """Be one process of ``worker start --processes N``; it is started by that, not by people."""
    from callboard.runtime.processes import die_with_parent

    os.set_inheritable(parent_fd, False)  # noqa: FBT003 - positional only
    die_with_parent(parent_pid)
    settings = _settings(session, flags, processes=1)
    _serve(
        session,
        settings,
        modules,
        slot=slot,
        restarts=restarts,
        parent_fd=parent_fd,
        group=group,
        is_quiet=quiet,
        only_registry=flags["only_registry"],
    )


@command.command("describe", hidden=True)
@_worker_options
@pass_session
def describe(session: Session, /, modules: tuple[str, ...], **flags: Any) -> None:  # noqa: ANN401
    """Print what a worker would serve, for a parent that loads no code of others."""
    from callboard.runtime import host
    from callboard.runtime.group import Served
    from callboard.runtime.loader import load_parts
    from callboard.runtime.worker import Worker

    settings = _settings(session, flags)
    out, sys.stdout = sys.stdout, sys.stderr
    parts = load_parts(modules)
    worker = Worker(
        parts.capabilities, host.connector(settings), actors=parts.actors, options=host.worker_options(settings)
    )
    actors = [actor.actor_name for actor in parts.actors]
    emit(Served(capabilities=worker.offers, actors=actors, turns=settings.actors.turns), file=out)
    host.leave(0)


def _settings(session: Session, /, flags: dict[str, Any], **more: object) -> Settings:
    given = {f"worker__{name}": flags[name] for name in _FLAGS}
    given |= {f"worker__{name}": value for name, value in more.items()}
    return session.settings(log__level=flags["log_level"], actors__turns=flags["turns"], **given)


def words(session: Session, /, settings: Settings, modules: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """Return the arguments that make a child see the modules, flags and settings of its parent.

    Args:
        session: The call.
        settings: All settings; they lead to the server.
        modules: What the child serves.
        flags: Options of ``worker start`` by their parameter; one that is missing or None was not given.
    """
    found = list(modules)
    for name, option in (_FLAGS | _OTHER_FLAGS).items():
        if flags.get(name) is not None:
            found += [option, str(flags[name])]
    found += ["--registry"] if flags.get("only_registry") else []
    found += ["--nats", settings.nats.url, *(word for file in session.files for word in ("--config", str(file)))]
    return [*found, *(["--json"] if session.json else []), *(["--debug"] if session.debug else [])]


def _serve(
    session: Session,
    /,
    settings: Settings,
    modules: Sequence[str],
    *,
    slot: int = 0,
    restarts: int = 0,
    parent_fd: int | None = None,
    group: str = "",
    is_quiet: bool = False,
    only_registry: bool = False,
) -> None:
    from callboard.runtime import host, limits
    from callboard.runtime.loader import load_parts
    from callboard.runtime.processes import tell_ready

    host.configure_logs(settings, slot=slot)
    limits.hold(host.limits_of(settings))
    out = sys.stdout
    # what modules and handlers print must not stand between the events
    sys.stdout = sys.stderr if session.json else out
    parts = load_parts(modules)
    _tell_skipped(session, parts, out, is_quiet=is_quiet)

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
    if settings.worker.tenants is None:
        serve = partial(host.run_worker, settings, group=group, restarts=restarts, only_registry=only_registry)
        serve = partial(serve, health_port=port + slot if port else 0)
    else:
        from callboard.runtime.tenants import read, run_tenants

        served = read(settings.worker.tenants)
        serve = partial(run_tenants, settings, served, health_port=port + slot * len(served) if port else 0)
    work = serve(capabilities=parts.capabilities, actors=parts.actors, on_ready=on_ready, parent_fd=parent_fd)
    host.run_loop(work)
    host.leave(0)


def _tell_skipped(session: Session, /, parts: Parts, out: TextIO, *, is_quiet: bool) -> None:
    """Say which files of a folder, and which entry points, are not served, and why."""
    for each in () if is_quiet else parts.skipped:
        if session.json:
            said = {"name": each.name, "code": each.error.code, "message": str(each.error)}
            emit({"event": "skipped", **said}, file=out)
        else:
            note(f"{each.name} cannot be used and is left out:\n{each.error}")


def serving(worker: Worker, parts: Parts) -> str:
    """Return what a worker serves, for people."""
    slots = [f"{name} ({pool.slots} slots)" for name, pool in sorted(worker.pools.items())]
    found = [*slots, *(f"the actors {actor.actor_name}/*" for actor in parts.actors)]
    return ", ".join(found) or "the registry of agents"
