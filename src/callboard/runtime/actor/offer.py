"""A capability that an actor type offers: the pool's slot picks an actor, asks it, and settles with its reply."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import replace

from callboard.runtime import codec, subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.partition import Stage
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.capability import Capability
from callboard.runtime.clock import Clock
from callboard.runtime.context import TaskContext, stop_reason
from callboard.runtime.errors import (
    ActorStoppedError,
    BusError,
    ConfigError,
    ConflictError,
    RetryableError,
)
from callboard.runtime.registry.message import Query
from callboard.runtime.registry.select import Candidate, choose

NAME = "~serve"
# An answer may take as long as the task: its deadline and its cancellation end the wait.
WAIT_S = 3650 * 86400.0
_CANCEL_WAIT_S = 2.0


class Offer:
    """One capability of one actor type in one worker.

    A task goes to the actor that its header ``Cb-Key`` names, else to the least busy one of ``<capability>-1`` to
    ``-N``. Which one that was is noted before it is asked, and it is asked under the task's id: a task that runs again
    asks the same actor the same question, which has no second effect.
    """

    def __init__(
        self, kind: ActorType, name: str, *, slots: int, stage: Callable[[], Stage | None], clock: Clock
    ) -> None:
        """Prepare.

        Args:
            kind: The actor type.
            name: The capability.
            slots: How many actors share the tasks that name none.
            stage: Returns the host of the worker's actors, None before it runs.
            clock: Time.
        """
        self.kind = kind
        self.name = name
        self._slots = slots
        self._stage = stage
        self._clock = clock
        self._asked: Counter[str] = Counter()
        self._turn = 0

    def capability(self) -> Capability[..., Any]:
        """Return what a pool serves."""

        async def serve(value: Any = UNSET, *, context: TaskContext) -> Any:  # noqa: ANN401 - whatever the task brings
            return await self.serve(value, context)

        return Capability(serve, name=self.name, concurrency=self._slots, actor_type=self.kind.name)

    async def serve(self, value: object, context: TaskContext) -> object:
        """Have an actor do a task; return its reply as plain values.

        Raises:
            AskFailedError: If its handler failed for good.
            UnknownMessageError: If it has no handler that fits the payload.
            RetryableError: If it is stopped: it may not be for long.
        """
        data = b"" if value is UNSET else codec.encode(value)
        handler, message = self.kind.select(context.headers.get(header.TYPE), data)
        key = await self._choose(context)
        try:
            return await self._ask(Address(self.kind.name, key), message, handler.name, context)
        except ActorStoppedError as error:
            raise RetryableError(str(error)) from error
        finally:
            self._asked[key] -= 1
            if not self._asked[key]:
                del self._asked[key]

    async def _ask(self, address: Address, message: bytes, kind: str, context: TaskContext) -> object:
        mail_id = mail_id_of(context)
        try:
            return await ActorRef(context.bus, address, clock=self._clock).ask(
                message, type=kind, timeout_s=WAIT_S, deadline=context.deadline, idempotency_key=mail_id
            )
        except BaseException:
            if stop_reason() == "cancel":
                await _cancel(context.bus, address, mail_id)
            raise

    # --- which actor

    async def _choose(self, context: TaskContext) -> str:
        """Return the actor for a task, counted as asked: the one it names, had before, or the least busy one."""
        key = context.headers.get(header.KEY)
        subject = subjects.step(self.kind.name, self.name, 0, f"{NAME}.{_digest(context.id)}.0")
        if key is None and context.attempt > 1:
            key = await self._noted(context.bus, subject)
        if key is not None:
            self._asked[key] += 1
            return key
        key = self._least_busy()
        # at once: whoever chooses while this one is being noted takes another
        self._asked[key] += 1
        try:
            noted = await self._note(context, subject, key)
        except BaseException:
            self._asked[key] -= 1
            raise
        if noted != key:
            self._asked[key] -= 1
            self._asked[noted] += 1
        return noted

    async def _note(self, context: TaskContext, subject: str, key: str) -> str:
        """Note which actor has a task; return the one that was noted first."""
        stage = self._stage()
        record = StepRecord(
            name=NAME,
            kind="done",
            at=self._clock.now(),
            worker=context.worker,
            args_digest=_digest(context.id),
            value=Raw(codec.encode(key)),
        )
        ttl_s = stage.services.rules.step_ttl_s if stage is not None else None
        try:
            await context.bus.store(Write(subject, step.encode(record), header.build(expected_seq=0, ttl_s=ttl_s)))
        except ConflictError:
            return await self._noted(context.bus, subject) or key
        return key

    async def _noted(self, bus: Bus, subject: str) -> str | None:
        stored = await bus.get_last(subjects.ACTORS, subject, from_leader=True)
        if stored is None:
            return None
        value = step.decode(stored.data).value
        return msgspec.json.decode(value, type=str) if value is not UNSET else None

    def _least_busy(self) -> str:
        """Return the key with the least to do: of the agents that the registry knows, else of ``<capability>-1`` on.

        This worker knows what it asked itself, and all about the actors that it owns.
        """
        keys = [f"{self.name}-{number}" for number in range(1, self._slots + 1)]
        registered = self._registered()
        if not {found.address.partition("/")[2] for found in registered} <= set(keys):
            self._turn += 1
            chosen = choose(registered, turn=self._turn).address
            if chosen is not None:
                return chosen.partition("/")[2]
        return min(keys, key=lambda key: (self._load(key), hashlib.blake2b(f"{id(self)}{key}".encode()).digest()))

    def _registered(self) -> list[Candidate]:
        """Return the agents of the type with the capability, as loaded as the registry or this worker knows."""
        stage = self._stage()
        cache = stage.services.client.lookups.cache if stage is not None else None
        if cache is None or not cache.is_warm:
            return []
        found = cache.candidates(Query(capability=self.name, type=self.kind.name))
        return [replace(one, busy=max(one.busy, self._asked[one.address.partition("/")[2]])) for one in found]

    def _load(self, key: str) -> tuple[bool, int]:
        stage = self._stage()
        partition = stage.find(self.kind.name, key) if stage is not None else None
        activation = partition.activations.get(key) if partition is not None else None
        if activation is None:
            return False, self._asked[key]
        is_stopped = activation.problem is not None or (
            activation.record is not None and activation.record.status != "active"
        )
        return is_stopped, max(self._asked[key], activation.mailbox.depth)


def with_offers(
    own: Sequence[Capability[..., Any]],
    types: Sequence[ActorType],
    *,
    slots: int,
    stage: Callable[[], Stage | None],
    clock: Clock,
) -> list[Capability[..., Any]]:
    """Return a worker's own capabilities and those that its actor types offer.

    Raises:
        ConfigError: If two of all these have one name.
    """
    found = {capability.name: capability for capability in own}
    for kind in types:
        for name in kind.capabilities:
            if name in found:
                message = (
                    f"the capability {name!r} of the actor type {kind.name} is offered twice here: serve one of them"
                )
                raise ConfigError(message)
            found[name] = Offer(kind, name, slots=slots, stage=stage, clock=clock).capability()
    return list(found.values())


def mail_id_of(context: TaskContext) -> str:
    """Return the id under which an actor is asked for a task: the same in every run of it."""
    text = f"task/{context.capability}/{context.id}"
    if len(text.encode()) <= subjects.MAX_KEY_BYTES and text.isascii() and text.isprintable():
        return text
    return f"task/{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _digest(task_id: str) -> str:
    return hashlib.blake2b(task_id.encode(), digest_size=16).hexdigest()


async def _cancel(bus: Bus, address: Address, mail_id: str) -> None:
    """Have the actor drop a question that nobody wants answered any more, wherever it is with it."""
    body = codec.encode({"op": "cancel", "id": mail_id, "reason": "its task was cancelled"})
    with contextlib.suppress(BusError):
        await bus.request(subjects.ctl_actor(address.type, address.key), body, timeout_s=_CANCEL_WAIT_S)
