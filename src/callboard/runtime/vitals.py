"""Whether a worker fetches, and what stands in its way: looked at 20 times a second."""

from __future__ import annotations

from typing import Protocol

from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.beat import WorkerStatus
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import Clock
from callboard.runtime.errors import CallboardError
from callboard.runtime.lease import KeeperThread, LeaseKeeper
from callboard.runtime.pool import MAX_STALL_S, Pool

TICK_S = 0.05
# Without any word from the broker for so long it is deaf; connected for longer, and with nothing running, it ends.
# While the connection is down it waits: it comes back by itself.
DEAF_AFTER_S = 12.0
DEAF_EXIT_S = 45.0


class Watched(Protocol):
    """What of a worker is watched."""

    status: WorkerStatus
    pools: dict[str, Pool]
    host: ActorHost | None
    keeper: LeaseKeeper

    def stalled(self, now_s: float) -> None:
        """Hear that the loop stood still: what comes in now may be old, and nobody was heard meanwhile."""
        ...

    def stop(self, *, now: bool = False) -> None:
        """Drain and end."""
        ...


class Vitals:
    """The worker's view of its own health.

    Attributes:
        loop_lag_s: How late the event loop was at the last tick.
        problem: Why the worker is deaf; None when it is not.
        fetched_s: When the broker last answered its pulls, monotonic; None before.
        thread: The lease keeper's, whose death ends the worker; None where it has none of its own.
        stuck: What the worker ends with, once a thread of a handler could not be stopped.
    """

    def __init__(self, worker: Watched, *, clock: Clock, max_block_s: float) -> None:
        """Prepare; ``max_block_s`` is how long a stopped handler's thread may go on."""
        self.loop_lag_s = 0.0
        self.problem: str | None = None
        self.fetched_s: float | None = None
        self.stuck: CallboardError | None = None
        self.thread: KeeperThread | None = None
        self._worker = worker
        self._clock = clock
        self._max_block_s = max_block_s

    async def run(self, bus: Bus) -> None:
        """Look until cancelled; ``bus`` is the one that the pools pull by.

        Raises:
            CallboardError: If the worker must end: the keeper's thread died, or it is deaf for good.
        """
        worker, clock = self._worker, self._clock
        due_s = clock.monotonic()
        while True:
            now_s = clock.monotonic()
            self.loop_lag_s = max(0.0, now_s - due_s)
            due_s = now_s + TICK_S
            if self.loop_lag_s > MAX_STALL_S:
                worker.stalled(now_s)
            worker.keeper.loop_ticked_at = now_s
            now = clock.now()
            for pool in worker.pools.values():
                pool.sweep(now_s, now)
            self._judge(now_s, bus)
            if self.thread is not None and worker.status != "starting" and not self.thread.is_alive:
                cause = self.thread.error
                message = f"the lease keeper's thread died ({cause!r}); the worker stops, its tasks are taken over"
                raise CallboardError(message) from cause
            await clock.sleep(TICK_S)

    def _judge(self, now_s: float, bus: Bus) -> None:
        worker = self._worker
        if worker.status not in ("ready", "deaf"):
            return
        fetches = [f for pool in worker.pools.values() if not pool.is_paused and (f := pool.last_fetch()) is not None]
        problems = [p for pool in worker.pools.values() if (p := pool.problem())]
        if fetches:
            self.fetched_s = min(fetches)
        silent_s = 0.0
        if self.fetched_s is not None and fetches:
            # what came while we stood still is not read yet
            silent_s = now_s - max(self.fetched_s, worker.keeper.stalled_at)
        actors_problem = worker.host.problem() if worker.host is not None else None
        self.problem = problems[0] if problems else actors_problem
        if silent_s > DEAF_AFTER_S:
            self.problem = f"the broker has not answered a pull for {silent_s:.0f} s"
        worker.status = "deaf" if self.problem else "ready"
        self._look_for_stuck_threads(now_s)
        linked_s = now_s - bus.connected_at if bus.is_connected else 0.0
        if min(silent_s, linked_s) > DEAF_EXIT_S and all(not pool.running for pool in worker.pools.values()):
            raise CallboardError(self.problem or "deaf")

    def _look_for_stuck_threads(self, now_s: float) -> None:
        limit_s = self._max_block_s
        since = [since_s for pool in self._worker.pools.values() for since_s in pool.lingering.values()]
        if since and now_s - min(since) > limit_s and self.stuck is None:
            text = f"a synchronous handler went on for {limit_s:g} s after its run was stopped"
            self.stuck = CallboardError(f"{text}; only the end of the process ends its thread, so the worker drains")
            self._worker.stop()
