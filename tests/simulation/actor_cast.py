"""The actors of the simulation: they count, pay, forward, wait and set timers, as a script drawn from the seed says."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import RetryableError
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.simulation.host import Host
from callboard.runtime.simulation.loop import Process, process
from callboard.runtime.simulation.world import World

KIND = "ledger"


class Script(Struct, frozen=True, kw_only=True):
    """What the turn of one message does.

    Attributes:
        takes_s: How long it takes.
        parts: Steps, each of which pays for one thing.
        fails: Attempts that fail before one goes well.
        remind_s: Set a timer for so much later, if above 0.
    """

    takes_s: float = 0.0
    parts: int = 0
    fails: int = 0
    remind_s: float = 0.0


class Note(Struct, frozen=True):
    """Write it down and pass it on along ``hops``."""

    id: str
    hops: list[str] = []


class Hold(Struct, frozen=True):
    """Wait for the ``Go`` with the same id, then write that down."""

    id: str


class Go(Struct, frozen=True):
    """End the wait of the ``Hold`` with the same id."""

    id: str


class Rung(Struct, frozen=True):
    """A timer has fired."""

    id: str


class Payment(Struct, frozen=True):
    """What a step returned: the part that it was for, and a number that no other payment has."""

    part: int
    receipt: int


class Stage:
    """What the actors know of the test around them, and what they did, outside the product.

    Attributes:
        scripts: By message id; a message without one is written down and that is all.
        paid_again: Payments for a part whose record stood, on hosts that fared well.
        wrong: Values that a step returned and that were another one's.
        beside: Turns that began while another host was in the midst of them, which was up and linked since it began
            them: what had befallen it before does not count.
    """

    def __init__(self, world: World, dice: random.Random, *, stands: Callable[[str, int], bool]) -> None:
        self.world = world
        self.dice = dice
        self.scripts: dict[str, Script] = {}
        self.paid_again: list[str] = []
        self.wrong: list[str] = []
        self.beside: list[str] = []
        self._running: dict[str, list[tuple[Process, float]]] = {}
        self.turns = 0
        self.receipts = 0
        self.stands = stands

    @contextmanager
    def run(self, turn: str, what: str) -> Iterator[None]:
        """Note a run of a turn, and whether it goes on elsewhere at the same time."""
        self.turns += 1
        me = process.get()
        self.world.simulation.note("turn", f"{turn} {what}", host=me.name)
        others = self._running.setdefault(turn, [])
        for other, began_s in others:
            if other is not me and _lives_since(other, began_s):
                self.beside.append(f"{turn} began on {me.name} while it ran on {other.name}")
        run = (me, self.world.simulation.loop.time())
        others.append(run)
        try:
            yield
        finally:
            others.remove(run)

    def pay(self, turn: str, part: int) -> Payment:
        self.receipts += 1
        # a host that was given up and lives may do it at the same time; only one of the two is recorded
        is_alone = all(other is process.get() for other, _ in self._running.get(turn, ()) if not _is_dead(other))
        if self.stands(turn, part) and is_alone and _fares_well(process.get()):
            self.paid_again.append(f"{turn} part {part}")
        return Payment(part, self.receipts)


def cast(stage: Stage) -> type[Actor]:
    """Return an actor class that plays on ``stage``."""

    class Ledger(
        Actor, name=KIND, retry=RetryPolicy(attempts=6, base_s=0.3, max_s=2.0), idle_s=5.0, restart_budget=1000
    ):
        class State(Struct):
            seen: list[str] = []
            paid: dict[str, list[Payment]] = {}

        state: State

        @on
        async def note(self, m: Note) -> str:
            turn = f"{self.address}/{self.mail.seq}"

            async def pay(part: int) -> Payment:
                return stage.pay(turn, part)

            with stage.run(turn, f"{m.id} {self.attempt}"):
                return await write_down(self, stage, m, pay)

        @on
        async def hold(self, m: Hold) -> None:
            with stage.run(f"{self.address}/{self.mail.seq}", f"hold {m.id} {self.attempt}"):
                found = await self.wait_for(Go, where={"id": m.id})
            self.state.seen.append(f"went/{found.id}")

        @on
        async def go(self, m: Go) -> None:
            self.state.seen.append(f"stray/{m.id}")

        @on
        async def rung(self, m: Rung) -> None:
            self.state.seen.append(f"rung/{m.id}")

    return Ledger


async def write_down(
    self: Any,  # noqa: ANN401 - the actor, whose class is made per stage
    stage: Stage,
    m: Note,
    pay: Callable[[int], Coroutine[Any, Any, Payment]],
) -> str:
    """Handle a note as its script says."""
    script = stage.scripts.get(m.id, Script())
    parts = list(range(script.parts))
    # another order in each attempt: steps are found by what they are for
    stage.dice.shuffle(parts)
    payments = []
    for part in parts:
        payment = await self.step("pay", pay, part)
        if payment.part != part:
            stage.wrong.append(f"{self.address}/{self.mail.seq}: part {part} was paid by that of {payment.part}")
        payments.append(payment)
    await stage.world.clock.sleep(script.takes_s)
    if self.attempt <= script.fails:
        text = "not yet"
        raise RetryableError(text)
    if script.remind_s:
        self.remind(f"r-{m.id}", Rung(m.id), delay_s=script.remind_s)
    if m.hops:
        self.tell(f"{KIND}/{m.hops[0]}", Note(f"{m.id}>{m.hops[0]}", m.hops[1:]))
    self.state.seen.append(m.id)
    self.state.paid[m.id] = sorted(payments, key=lambda payment: payment.part)
    return m.id


def _is_dead(owner: Process) -> bool:
    return isinstance(owner, Host) and owner.is_dead


def _lives_since(owner: Process, began_s: float) -> bool:
    return isinstance(owner, Host) and owner.is_up and owner.well_since_s <= began_s


def _fares_well(owner: Process) -> bool:
    return isinstance(owner, Host) and not owner.is_dead and owner.is_unharmed
