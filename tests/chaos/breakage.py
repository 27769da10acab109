"""Workers that are broken on purpose: each takes one protection away, and the checker must notice.

These are patches of the product made inside test workers; the product has no switch for any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from callboard.runtime import pool
from callboard.runtime.actor.commit import Result, TurnCommitter
from callboard.runtime.actor.liveness import Liveness
from callboard.runtime.actor.mailbox import Mailbox
from callboard.runtime.actor.partition import Partition
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.actor.steplog import StepLog
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.claim import Claim
from callboard.runtime.doubt import Doubt
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.questions import Questions
from callboard.runtime.settle import Settler
from callboard.runtime.slot import Slot

SILENCE_S = 3.0


def ack_before_effect() -> None:
    """Settle a task when it begins."""
    run_one = Slot._run_one

    async def broken(self: Slot, claim: Claim) -> None:
        host: Any = self._pool
        await host._bus.ack([claim.token], confirm=True)
        await run_one(self, claim)

    Slot._run_one = broken  # type: ignore[method-assign]


def no_holds() -> None:
    """Ask nobody who runs a redelivery."""

    async def nobody(self: Questions, claims: Sequence[Claim]) -> set[str]:
        return set()

    Questions._held = nobody  # type: ignore[method-assign]
    LeaseKeeper.holds = lambda *_args, **_options: False  # type: ignore[method-assign]


def no_doubt() -> None:
    """Believe the broker that a first delivery is the first, whatever happened to it."""
    Doubt.is_doubtful = lambda self, lane, delivery: False  # type: ignore[method-assign]


def deaf_to_newest() -> None:
    """Do not compare with what was handed out already: doubt after a lost link alone."""
    Doubt.is_doubtful = lambda self, lane, delivery: delivery.seq <= self.up_to[lane]  # type: ignore[method-assign]


def no_questions() -> None:
    """Run whatever arrives: the message id is the only guard."""
    vars(pool)["needs_questions"] = lambda **_facts: False


def bare_nak() -> None:
    """Give a task back without a delay."""

    async def give_back(self: Settler, claim: Claim, delay_s: float, name: str) -> None:
        self._forget(claim, name)
        bus: Bus = self._bus
        await bus.publish(claim.token, b"-NAK")

    Settler._give_back = give_back  # type: ignore[method-assign]


def lapsed_leases_still_answer() -> None:
    """Believe in a lease however long it was not extended."""
    LeaseKeeper.has_lapsed = lambda self, claim: False  # type: ignore[method-assign]


def no_pull_after_reconnect() -> None:
    """Stay connected and deaf after the link was lost."""
    from callboard.runtime.bus.jetstream_pull import StandingPull

    def stay_deaf(self: StandingPull) -> None:
        self._is_closed = True

    StandingPull.came_up = stay_deaf  # type: ignore[method-assign]


def no_fence() -> None:
    """Write an actor's record over whatever stands there."""
    commit = TurnCommitter.commit

    async def broken(self: TurnCommitter, *writes: Write) -> Result:
        first, *others = writes
        if first.subject.startswith("cb.state."):
            kept = {name: value for name, value in (first.headers or {}).items() if name != header.EXPECTED_SUBJECT_SEQ}
            first = Write(first.subject, first.data, kept)
        return await commit(self, first, *others)

    TurnCommitter.commit = broken  # type: ignore[method-assign]


def never_lost() -> None:
    """Take a partition for ours whatever its cursor says: then the fence alone stands between two hosts."""

    async def look_away(self: Partition) -> None:
        self._doubts = False

    # the look before a turn, and the one after a cursor's write was refused
    Partition.check = look_away  # type: ignore[method-assign]
    Partition._check = look_away  # type: ignore[method-assign]


def silence_is_death() -> None:
    """Declare dead whoever was not heard for three seconds, whether or not anybody could be."""

    def is_dead(self: Liveness, peer: Any, now_s: float) -> bool:  # noqa: ANN401 - what one worker knows of another
        return peer.left_s is not None or (peer.heard_s is not None and now_s - peer.heard_s >= SILENCE_S)

    Liveness._is_dead = is_dead  # type: ignore[method-assign]


def no_journal() -> None:
    """Take a turn over without a look at what it has recorded."""

    async def nothing(self: StepLog, entry: str) -> None:
        return None

    StepLog.find = nothing  # type: ignore[method-assign]


def no_applied() -> None:
    """Run all mail that is found, handled or not."""
    StateRecord.has_applied = lambda self, seq: False  # type: ignore[method-assign]
    read = Mailbox.read

    async def all_of_it(self: Mailbox, bus: Bus, *, above: int) -> None:
        await read(self, bus, above=0)

    Mailbox.read = all_of_it  # type: ignore[method-assign]


BREAKAGES: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        ack_before_effect,
        no_holds,
        no_doubt,
        deaf_to_newest,
        no_questions,
        bare_nak,
        lapsed_leases_still_answer,
        no_pull_after_reconnect,
        no_fence,
        never_lost,
        silence_is_death,
        no_journal,
        no_applied,
    )
}
