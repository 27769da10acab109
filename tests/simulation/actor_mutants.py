"""The actor runtime with one protection taken away; see ``mutants.broken``."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

from callboard.runtime.actor import activation, step
from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.liveness import Liveness
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.mailbox import Mailbox
from callboard.runtime.actor.partition import Partition
from callboard.runtime.actor.record import Reply, StateRecord
from callboard.runtime.actor.run import Runner
from callboard.runtime.bus.base import Bus

HOMES: Sequence[type | types.ModuleType] = (
    activation,
    step,
    Activation,
    Liveness,
    Mailbox,
    Partition,
    Runner,
    StateRecord,
)


def no_fence() -> None:
    """Write the state over whatever stands there."""
    vars(activation)["header"] = types.SimpleNamespace(build=lambda **_options: None)


def reply_before_commit() -> None:
    """Answer first, store then."""
    commit = Activation.commit

    async def broken(
        self: Activation,
        applied: Sequence[int],
        *,
        to: Sequence[tuple[Mail, Reply]] = (),
        **options: Any,  # noqa: ANN401 - handed on
    ) -> None:
        for mail, reply in to:
            await self.answer(mail, reply)
        await commit(self, applied, to=to, **options)

    Activation.commit = broken  # type: ignore[method-assign]


def no_applied() -> None:
    """Do not ask the record what is handled; take the mail that comes."""
    read = Mailbox.read

    async def from_the_start(self: Mailbox, bus: Bus, *, above: int) -> None:
        await read(self, bus, above=0)

    StateRecord.has_applied = lambda self, seq: False  # type: ignore[method-assign]
    Mailbox.read = from_the_start  # type: ignore[method-assign]


def trust_delivery_order() -> None:
    """Run what is delivered, in that order; look for nothing older in the stream."""

    def fresh(self: Partition, key: str, *, read_from: int | None = None) -> Activation:
        return activation_of(self, key)

    activation_of = Partition.activation
    Partition.activation = fresh  # type: ignore[method-assign]


def a_missing_beat_is_a_death() -> None:
    """Believe that whoever is silent for a second and a half is dead, whatever became of our own beats."""

    def is_dead(self: Liveness, peer: Any, now_s: float) -> bool:  # noqa: ANN401 - private to it
        return peer.left_s is not None or (peer.heard_s is not None and now_s - peer.heard_s > 1.5)

    Liveness._is_dead = is_dead  # type: ignore[method-assign]


def ordinal_only_steps() -> None:
    """Tell steps of one name apart by their order alone."""
    vars(step)["digest"] = lambda name, identity, *, parent="": "0" * 16


def no_hold_at_hand_over() -> None:
    """Hand an actor in mid-turn over as if it were idle."""
    next_cursor = Partition.next_cursor

    def forgetful(
        self: Partition, *, epoch: int | None = None, owner: str | None = None, held: dict[str, str] | None = None
    ) -> Cursor:
        return next_cursor(self, epoch=epoch, owner=owner, held={})

    Partition.next_cursor = forgetful  # type: ignore[method-assign]


def look_without_a_word() -> None:
    """Read the cursor after an outage instead of writing it: a takeover under way is not refused.

    Only a takeover written within milliseconds of the return shows it, too rare for dice: see ``test_actor_returns``.
    """

    async def check(self: Partition) -> None:
        async with self._writing:
            await self._check()

    Partition.check = check  # type: ignore[method-assign]


def blind_attempts() -> None:
    """Make one attempt after the other, whoever has taken the turn meanwhile."""

    async def always(self: Runner) -> bool:
        return self._cancel is None

    Runner._is_still_ours = always  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        no_fence,
        reply_before_commit,
        no_applied,
        trust_delivery_order,
        a_missing_beat_is_a_death,
        ordinal_only_steps,
        no_hold_at_hand_over,
        blind_attempts,
    )
}
