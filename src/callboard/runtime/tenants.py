"""One process that works for several tenants: a worker for each, with its own connection, and slots that they share."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from callboard.runtime import events, logs
from callboard.runtime.actor.actor import Actor
from callboard.runtime.capability import Capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import Settings
from callboard.runtime.errors import CallboardError, ConfigError
from callboard.runtime.fairness import Fairness
from callboard.runtime.host import run_worker
from callboard.runtime.worker import Worker

AGAIN_S = 5.0

_log = logs.get_logger(__name__)


class Served(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tenant to work for.

    Attributes:
        config: Settings file of the user in its account; relative to the file that lists it.
        weight: Its part of the slots, relative to the others'.
        cap: Most slots of one capability that it may have at once.
    """

    name: str
    config: str
    weight: int = 1
    cap: int | None = None


def read(path: Path) -> list[Served]:
    """Return the tenants that a file lists: a JSON list of ``Served``.

    Raises:
        ConfigError: If it cannot be read, lists nobody, or one twice.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[Served])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"worker.tenants: {path} cannot be used: {error}"
        raise ConfigError(message) from error
    names = [each.name for each in found]
    if not found or len(set(names)) < len(names):
        message = f"worker.tenants: {path} must list at least one tenant, and each once"
        raise ConfigError(message)
    if any(each.weight < 1 or (each.cap is not None and each.cap < 1) for each in found):
        message = f"worker.tenants: {path}: weight and cap are at least 1"
        raise ConfigError(message)
    return [msgspec.structs.replace(each, config=str(path.parent / each.config)) for each in found]


def settings_of(settings: Settings, tenant: Served) -> Settings:
    """Return ``settings`` with the connection and the user of a tenant, and its part in the registry.

    Raises:
        ConfigError: If its file is wrong.
    """
    theirs = Settings.load(file=tenant.config, env={})
    worker = settings.worker.model_copy(update={"user": theirs.worker.user})
    return settings.model_copy(update={"nats": theirs.nats, "worker": worker, "registry": theirs.registry})


async def run_tenants(
    settings: Settings,
    tenants: Sequence[Served],
    capabilities: Sequence[Capability[..., Any]],
    *,
    actors: Sequence[type[Actor]] = (),
    on_ready: Callable[[Worker], None] | None = None,
    parent_fd: int | None = None,
    health_port: int = 0,
) -> None:
    """Serve all until SIGTERM or SIGINT; the first drains, the second stops at once.

    A tenant that cannot be served (suspended, not provisioned, over its connections) is tried again every five seconds,
    and the others go on.

    Args:
        settings: All settings; ``worker.concurrency`` is what the tenants share.
        tenants: Whom to serve, see ``read``.
        capabilities: What to serve.
        actors: Classes of the actors to host, for each tenant.
        on_ready: Called with each tenant's worker when it pulls.
        parent_fd: A pipe whose end means that the parent died.
        health_port: Port of the first tenant's health endpoint, the others' follow; 0 switches them off.

    Raises:
        ConfigError: If a tenant's settings are wrong.
    """
    theirs = [settings_of(settings, tenant) for tenant in tenants]
    fairness = Fairness()
    crew = _Crew()
    with crew.signals():
        async with asyncio.TaskGroup() as group:
            for number, (tenant, own) in enumerate(zip(tenants, theirs, strict=True)):
                seat = fairness.seat(tenant.name, weight=tenant.weight, cap=tenant.cap)

                serve = partial(
                    run_worker,
                    own,
                    capabilities,
                    actors=actors,
                    on_ready=crew.joined(on_ready),
                    parent_fd=parent_fd,
                    health_port=health_port + number if health_port else 0,
                    seat=seat,
                    has_signals=False,
                )
                crew.tasks.append(group.create_task(_keep(tenant, serve, crew), name=f"tenant-{tenant.name}"))


class _Crew:
    """The workers of all tenants, to stop them together."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.workers: list[Worker] = []
        self.stops = 0

    def joined(self, on_ready: Callable[[Worker], None] | None) -> Callable[[Worker], None]:
        def ready(worker: Worker) -> None:
            self.workers.append(worker)
            if on_ready is not None:
                on_ready(worker)
            if self.stops:
                worker.stop(now=self.stops > 1)

        return ready

    def is_stopping(self) -> bool:
        return self.stops > 0

    def stop(self) -> None:
        self.stops += 1
        for worker in self.workers:
            worker.stop(now=self.stops > 1)
        if not self.workers or self.stops > 1:
            for task in self.tasks:
                task.cancel()

    @contextmanager
    def signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        caught = (signal.SIGTERM, signal.SIGINT)
        for number in caught:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


async def _keep(tenant: Served, serve: Callable[[], Awaitable[None]], crew: _Crew) -> None:
    """Serve one tenant, again and again while it fails, until all are to stop."""
    while not crew.is_stopping():
        try:
            await serve()
        except CallboardError as error:
            _log.warning(events.TENANT_UNSERVED, tenant=tenant.name, code=error.code, message=str(error))
        until_s = SYSTEM_CLOCK.monotonic() + AGAIN_S
        while SYSTEM_CLOCK.monotonic() < until_s and not crew.is_stopping():
            await SYSTEM_CLOCK.sleep(0.1)
