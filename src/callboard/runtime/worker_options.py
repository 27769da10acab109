"""What a worker needs to know."""

from __future__ import annotations

from msgspec import Struct

from callboard.runtime.actor.services import ActorRules
from callboard.runtime.actor.shutdown import COOPERATIVE, Shutdown
from callboard.runtime.capability import DEFAULT_CONCURRENCY
from callboard.runtime.fairness import Seat
from callboard.runtime.pool import PoolRules
from callboard.runtime.settle import SettleRules


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """What a worker needs to know; ``Settings`` makes it from file, environment and flags.

    Attributes:
        concurrency: Slots of a capability that names no number itself.
        pool: Serve only capabilities of this pool and those that name none; None serves all.
        group: Id of the parent that keeps this process among others; "" without one.
        drain_grace_s: How long running work may go on after a stop was asked for.
        shutdown: What becomes of running work meanwhile; see ``callboard.runtime.actor.shutdown``.
        max_block_s: The lease of a handler that blocks the loop is kept this long.
        seat: Its tenant's place among the workers of one process that share their slots.
        hosts_registry: Whether it takes part in hosting the registry: it leads it, or stands by, and enters the agents
            that it hosts.
        enters_agents: Whether it enters those that it hosts although it does not host the registry.
        only_registry: Whether it hosts the registry and nothing else.
        hosts_companions: Whether it hosts the companions of its actors' classes; False where other workers do, under a
            login of their own.
    """

    concurrency: int = DEFAULT_CONCURRENCY
    pool: str | None = None
    labels: dict[str, str] = {}
    group: str = ""
    ack_wait_s: float = 4.0
    extend_every_s: float = 1.0
    max_ack_pending: int = 4096
    max_block_s: float = 60.0
    drain_grace_s: float = 30.0
    shutdown: Shutdown = COOPERATIVE
    holds_wait_s: float = 0.75
    pool_rules: PoolRules = PoolRules()
    settle_rules: SettleRules = SettleRules()
    actor_rules: ActorRules = ActorRules()
    seat: Seat | None = None
    hosts_registry: bool = True
    enters_agents: bool = False
    only_registry: bool = False
    hosts_companions: bool = True
