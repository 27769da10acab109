"""One chaos worker process: ``python -m tests.chaos.worker_main '<options as JSON>'``."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.runtime import logs
from callboard.runtime.actor import shutdown
from callboard.runtime.actor.services import ActorRules
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.provision import await_leaders
from callboard.runtime.claim import Claim
from callboard.runtime.errors import CallboardError
from callboard.runtime.pool import Pool, PoolRules
from callboard.runtime.settle import SettleRules
from callboard.runtime.subjects import ACTORS, LATER, LEDGER, WORK
from callboard.runtime.worker import Worker, WorkerOptions
from tests.chaos import breakage, handlers, troupe
from tests.chaos.journal import Journal

PR_SET_PDEATHSIG = 1
START_S = 60.0


class Options(Struct, frozen=True, kw_only=True):
    """How a chaos worker is to be.

    Attributes:
        folder: Where its journal goes.
        breaks: Names of protections taken away.
        is_keeper_apart: False runs the lease keeper on the worker's own loop.
        logs_claims: Write every arrival down, too.
        has_actors: Host the chaos actors in place of serving the capabilities.
        log_level: Lowest level that goes to the log.
    """

    url: str
    folder: str
    concurrency: int = 8
    ack_wait_s: float = 4.0
    extend_every_s: float = 1.0
    quarantine_s: float = 4.0
    crash_limit: int = 3
    drain_grace_s: float = 30.0
    shutdown: str = "cooperative"
    schedule_over_s: float = 30.0
    retry_gap_s: float = handlers.RETRY_GAP_S
    breaks: tuple[str, ...] = ()
    is_keeper_apart: bool = True
    logs_claims: bool = False
    has_actors: bool = False
    log_level: str = "info"
    cursor_every_s: float = 1.0


async def main(options: Options) -> None:
    """Serve until SIGTERM."""
    logs.configure(level=options.log_level, form="json")
    journal = Journal(Path(options.folder))
    for name in options.breaks:
        breakage.BREAKAGES[name]()
    if options.logs_claims:
        _log_claims(journal)

    log = logs.get_logger("callboard.runtime.bus")

    async def open_bus(name: str) -> Bus:
        bus = await connect(
            options.url, name=name, on_event=lambda event, fields: log.info(event, connection=name, **fields)
        )
        # as a worker's host does before it begins
        await await_leaders(bus, streams=(WORK, LATER, LEDGER, ACTORS), within_s=START_S, told=log.info)
        return bus

    tasks = (
        [] if options.has_actors else handlers.make(journal, concurrency=options.concurrency, gap_s=options.retry_gap_s)
    )
    worker = Worker(
        tasks,
        open_bus,
        actors=troupe.make(journal) if options.has_actors else (),
        options=WorkerOptions(
            ack_wait_s=options.ack_wait_s,
            extend_every_s=options.extend_every_s,
            drain_grace_s=options.drain_grace_s,
            shutdown=shutdown.named(options.shutdown),
            pool_rules=PoolRules(crash_limit=options.crash_limit, quarantine_s=options.quarantine_s),
            settle_rules=SettleRules(schedule_over_s=options.schedule_over_s),
            actor_rules=ActorRules(cursor_every_s=options.cursor_every_s),
        ),
        keeper_in_thread=options.is_keeper_apart,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run(lambda: journal.write("ready"))


def _log_claims(journal: Journal) -> None:
    take: Callable[..., Claim] = Pool._claim

    def taken(self: Pool, *args: object) -> Claim:
        claim = take(self, *args)
        journal.write("claim", task=claim.task_id, attempt=claim.attempt, delivered=claim.delivery.delivered)
        return claim

    Pool._claim = taken  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    # a harness that is killed itself must not leave workers behind
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    logs.configure(level="info", form="json", file=None)
    try:
        asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Options)))
    except CallboardError as error:
        print(f"worker {os.getpid()} ended: {error!r}", file=sys.stderr, flush=True)  # noqa: T201 - read from its log
        raise SystemExit(1) from error
