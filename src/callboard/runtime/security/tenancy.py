"""Tenants: each an account of its own with limits, users and streams; made, suspended and removed in one step."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable

import msgspec

from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import Settings
from callboard.runtime.errors import BusError, ConfigError, TopologyError
from callboard.runtime.security import servers
from callboard.runtime.security.folder import Folder
from callboard.runtime.security.plan import Tenant

Connector = Callable[[Settings], Callable[[str], Awaitable[Bus]]]
_ARRIVE_S = 10.0
_RETRY_S = 0.1


async def create(folder: Folder, tenant: Tenant, *, connector: Connector, clock: Clock = SYSTEM_CLOCK) -> bool:
    """Make a tenant, or bring the one of its name to these limits; return whether its streams were made.

    The servers' files are written and checked, the running servers read them, and the streams are made inside the
    account, as large as its room allows. Doing it twice gives one tenant. One that was there keeps its limits when the
    new ones cannot be: its streams do not fit them, or its own users hold all connections.

    Args:
        folder: Where the configuration stands.
        tenant: What it shall be.
        connector: Makes from settings what opens a connection.
        clock: Time.

    Returns:
        False when no server runs here: its streams are made by the next call, or by ``callboard provision``.

    Raises:
        ConfigError: If the name or a limit is not usable.
        ServerStartError: If a server refuses the configuration.
        TopologyError: If the streams do not fit the limits, or a known tenant cannot live with them.
    """
    before = folder.plan()
    folder.write(before.with_tenant(tenant))
    reloaded = await servers.reload(folder, clock=clock)
    if tenant.is_suspended or not any(server.is_running for server in reloaded):
        return False
    try:
        await _provision(folder, tenant, connector=connector, clock=clock)
    except BusError as error:
        if tenant.name not in {each.name for each in before.tenants}:
            raise
        folder.write(before)
        await servers.reload(folder, clock=clock)
        message = f"tenant {tenant.name} keeps the limits that it had, because it cannot live with these: {error}"
        raise TopologyError(message) from error
    return True


async def suspend(folder: Folder, name: str, *, is_suspended: bool = True, clock: Clock = SYSTEM_CLOCK) -> None:
    """Shut a tenant's users out, or let them in again. What is connected is cut at once; its streams stay.

    Raises:
        NotFoundError: If there is no such tenant.
        ServerStartError: If a server refuses the configuration.
    """
    plan = folder.plan()
    tenant = msgspec.structs.replace(plan.tenant(name), is_suspended=is_suspended)
    folder.write(plan.with_tenant(tenant))
    await servers.reload(folder, clock=clock)


async def remove(folder: Folder, name: str, *, connector: Connector, clock: Clock = SYSTEM_CLOCK) -> int:
    """Delete a tenant's streams, its account, and its users' keys; return how many streams went.

    A suspended tenant is let in for the moment that the deletion takes.

    Raises:
        NotFoundError: If there is no such tenant.
        ConfigError: If no server runs here: its streams could not be deleted.
    """
    plan = folder.plan()
    tenant = plan.tenant(name)
    if tenant.is_suspended:
        await suspend(folder, name, is_suspended=False, clock=clock)
    if not any(server.is_running for server in await servers.reload(folder, clock=clock)):
        message = f"no server of {folder.path} runs here, so the streams of {name} cannot be deleted: start one first"
        raise ConfigError(message)
    bus = await _enter(folder, name, connector=connector, clock=clock)
    try:
        names = await bus.stream_names()
        # a copy before its source
        for stream in sorted(names, key=lambda each: each not in {topology.AUDIT, topology.GAPS}):
            await bus.delete_stream(stream)
    finally:
        await bus.close()
    folder.write(plan.without_tenant(name))
    await servers.reload(folder, clock=clock)
    shutil.rmtree(folder.path / "users" / name, ignore_errors=True)
    for file in (folder.path / "tls").glob(f"{name}.*"):
        file.unlink()
    return len(names)


async def _provision(folder: Folder, tenant: Tenant, *, connector: Connector, clock: Clock) -> None:
    settings = Settings.load(file=folder.settings_file(tenant.name, "operator"), env={})
    bus = await _enter(folder, tenant.name, connector=connector, clock=clock)
    try:
        fitting = topology.fit(settings.topology, store_bytes=tenant.max_bytes)
        fitting = fitting.model_copy(
            update={"tokens_max_bytes": min(fitting.tokens_max_bytes, tenant.max_memory_bytes // fitting.replicas)}
        )
        named = {name for user in folder.plan().users for name in user.capabilities if name != "*"}
        wanted = topology.declared(fitting, capabilities=sorted(named), audit=settings.actors.audit)
        await provision.apply(bus, await provision.plan(bus, wanted))
    finally:
        await bus.close()


async def _enter(folder: Folder, name: str, *, connector: Connector, clock: Clock) -> Bus:
    """Connect as the tenant's operator; servers of a cluster that load one after another may refuse at first."""
    settings = Settings.load(file=folder.settings_file(name, "operator"), env={})
    deadline = clock.monotonic() + _ARRIVE_S
    while True:
        try:
            return await connector(settings)("tenant")
        except BusError:
            if clock.monotonic() >= deadline:
                raise
        await clock.sleep(_RETRY_S)
