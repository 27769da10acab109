"""What turns and partitions of one worker share."""

from __future__ import annotations

import asyncio
import traceback
from collections import defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

from msgspec import Struct, field

from callboard.runtime import events, logs
from callboard.runtime.actor.commit import TurnCommitter
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.shutdown import Drain
from callboard.runtime.actor.trim import SETTLE_S
from callboard.runtime.blobs import CLAIM_CHECK_BYTES, BlobStore
from callboard.runtime.bus.base import Bus
from callboard.runtime.client import Client
from callboard.runtime.clock import Clock
from callboard.runtime.errors import CallboardError
from callboard.runtime.stats import TurnStats

_log = logs.get_logger(__name__)

DAY_S = 86400.0
DEFAULT_PARTITIONS = 16


class ActorRules(Struct, frozen=True, kw_only=True):
    """Numbers of the actor runtime; ``Settings`` makes them from file, environment and flags.

    Attributes:
        partitions: Partitions of each type, as the stream was made with.
        turns: Turns that run at once in this worker.
        step_ttl_s: How long a finished turn's steps stay.
        event_ttl_s: How long events stay.
        cursor_every_s: Least time between two writes of a partition's cursor.
        echo_limit_s: With no own beat heard for longer, the epoch is read again before a turn.
        crash_limit: Deaths of its host, without a step done between, after which a mail is run once more.
        reply_inline_bytes: A larger kept answer goes to the object store.
        claim_check_bytes: Values above this go to the object store.
        idle_s: After so long without mail an actor's object is forgotten, where its class says nothing.
        state_limit_bytes: Largest state as JSON, where its class says nothing.
        retention_s: How long handled mail is kept.
        audit: Whether what is swept must have been copied to the audit before.
        audit_settle_s: How long a copy must have stood before its original may go.
        trim_every_s: Pause between two rounds of sweeping over the partitions that we own.
    """

    partitions: int = DEFAULT_PARTITIONS
    turns: int = 256
    step_ttl_s: float = 7 * DAY_S
    event_ttl_s: float = 7 * DAY_S
    cursor_every_s: float = 1.0
    echo_limit_s: float = 2.0
    crash_limit: int = 5
    reply_inline_bytes: int = 16384
    claim_check_bytes: int = CLAIM_CHECK_BYTES
    idle_s: float = 60.0
    state_limit_bytes: int = 1 << 20
    retention_s: float = 7 * DAY_S
    audit: bool = True
    audit_settle_s: float = SETTLE_S
    trim_every_s: float = 5.0


class Services(Struct, kw_only=True):
    """Shared parts of one worker's actors; made by ``ActorHost``, handed down.

    Attributes:
        spawn: Starts a task that the worker's group owns.
        client: Submits the tasks of turns and waits for them.
        executor: Threads of synchronous handlers; None for the loop's own few, which steps use.
        slots: Turns that may run at once; a parked turn, and one that waits for another actor, holds none.
        echo_age_s: Seconds since the worker's own beat came back to it.
        stays: Whether a worker, by its name, is alive and does not drain.
        drain: Our own drain, once it has begun.
        stats: Counters of each type.
        enroller: Told type, key, status and reason of an agent that awoke here or changed its status; None where no
            registry is hosted.
    """

    worker: str
    bus: Bus
    clock: Clock
    committer: TurnCommitter
    blobs: BlobStore
    client: Client
    rules: ActorRules
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None] | None]
    slots: asyncio.Semaphore
    echo_age_s: Callable[[], float]
    executor: Executor | None = None
    stays: Callable[[str], bool] = lambda _: True
    drain: Drain | None = None
    enroller: Callable[[ActorType, str, str, str], None] | None = None
    stats: dict[str, TurnStats] = field(default_factory=lambda: defaultdict(TurnStats))

    def enrol(self, kind: ActorType, key: str, status: str, reason: str) -> None:
        """Have the registry know of an agent that awoke here, or whose status changed."""
        if kind.capabilities and self.enroller is not None:
            self.enroller(kind, key, status, reason)


async def alone(coroutine: Coroutine[Any, Any, None], name: str) -> None:
    """Run it so that its failure concerns nobody else; ``name`` says in the log whose it was."""
    try:
        await coroutine
    except Exception as error:  # noqa: BLE001 - a mistake, ours or the user's, of which the other actors know nothing
        code = error.code if isinstance(error, CallboardError) else "internal"
        trace = "".join(traceback.format_exception(error, limit=-8))
        _log.error(events.ACTOR_FAILED, actor=name, code=code, message=trace)
