"""The health port of a worker: health, metrics of itself, and what the broker holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from callboard.runtime import metrics
from callboard.runtime.bus import topology
from callboard.runtime.config import Settings
from callboard.runtime.health import Health, HealthServer
from callboard.runtime.survey import Surveyor
from callboard.runtime.view import view_of
from callboard.runtime.worker import Worker


@asynccontextmanager
async def serving(worker: Worker, settings: Settings, *, port: int) -> AsyncIterator[Surveyor | None]:
    """Serve health and metrics for the time of a block.

    Yields what looks at the broker for them, to be run once there is a connection; None with port 0, then nothing is
    served.

    Raises:
        PortInUseError: If the port is taken.
    """
    if not port:
        yield None
        return

    def ready() -> Health:
        problem = worker.ready_problem()
        return Health(problem is None, () if problem is None else (problem,))

    declared = topology.declared(settings.topology, audit=settings.actors.audit).streams
    surveyor = Surveyor(
        [config.name for config in declared],
        agents=lambda: worker.house.cache.tally() if worker.house is not None else {},
    )
    server = HealthServer(
        live=lambda: Health(is_ok=True),
        ready=ready,
        metrics=lambda: metrics.render(lambda: view_of(worker), lambda: surveyor.tables(worker.id)),
    )
    _ = await server.start(host=settings.worker.health_host, port=port)
    try:
        yield surveyor
    finally:
        await server.close()
