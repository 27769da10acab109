"""Run a recorded turn again on today's code, on its records alone, and say where the two part.

The handler is given the mail and the state of that moment. Each step returns what it returned then; none is executed,
and nothing goes out. What today's code asks for and was not recorded, what was recorded and is no longer asked for,
another answer, state, mail or event is a difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import parting, recording
from callboard.runtime.actor.actor import Actor, turn_scope
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.commit import TurnCommitter
from callboard.runtime.actor.confined import confined
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.execute import STOP_LOST, Abandoned, Ending, Raised, execute, policy_of
from callboard.runtime.actor.handler import Handler
from callboard.runtime.actor.instance import call_hook
from callboard.runtime.actor.parting import Difference
from callboard.runtime.actor.recall import PastClock, Recall
from callboard.runtime.actor.record import ParkedTurn
from callboard.runtime.actor.recording import Recorded, Recording
from callboard.runtime.actor.services import ActorRules, Services
from callboard.runtime.actor.state import actor_of
from callboard.runtime.actor.turn import Turn
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.sealed import SealedBus
from callboard.runtime.client import Client
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import CallboardError, HistoryError
from callboard.runtime.outcome import Retry

TIMEOUT_S = 60.0
# Loop turns in which other parts of the handler may come further, once one of them is stuck.
_SETTLE_TURNS = 200
_END_S = 5.0


class Habits(Struct, frozen=True, kw_only=True):
    """What a layer above the runtime knows of its own steps.

    Attributes:
        asked: Returns what a recorded step had asked, None where that is not known.
        failure: Returns by what a step without a value failed then, None where that is not known.
        passing: Beginnings of names of steps that a turn takes or not, without a difference to what it does.
    """

    asked: Callable[[Recording, Recorded], object] = lambda _recording, _recorded: None
    failure: Callable[[Recording, str], BaseException | None] = lambda _recording, _entry: None
    passing: tuple[str, ...] = ()


class Rerun(Struct, frozen=True, kw_only=True):
    """How a turn that ran again compares with what is recorded of it.

    Attributes:
        turn: ``<type>/<key>/<sequence of its mail>``.
        steps: Steps that were recalled.
        differences: All that differs, the first one first; empty when nothing does.
        stopped: Why the turn was stopped from outside then; what it would have done after that is not compared.
        tried: What was tried outside, and refused.
        uncompared: What could not be compared, and why.
    """

    turn: str
    steps: int
    differences: list[Difference] = []
    stopped: str = ""
    tried: list[str] = []
    uncompared: list[str] = []

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return self.differences[0] if self.differences else None


async def rerun(
    bus: Bus,
    actor: type[Actor],
    address: Address,
    seq: int | None = None,
    *,
    habits: Habits | None = None,
    timeout_s: float = TIMEOUT_S,
    step_ttl_s: float = ActorRules().step_ttl_s,
) -> Rerun:
    """Run a turn again and compare it with its records.

    Nothing is written and nobody is asked: of the broker only the records are read, before the handler begins. The
    handler's code must not touch the outside except in steps; connections and programs that it tries are refused and
    are a difference. Files that it writes outside of steps are written.

    Args:
        bus: Where the records are; only read from.
        actor: Today's class.
        address: Whose turn.
        seq: Sequence of its mail; None for the last turn.
        habits: What is known of the steps.
        timeout_s: Longest time of the run.
        step_ttl_s: How long records of steps are kept where there is no audit: the worker's setting.

    Raises:
        NotFoundError: If no such turn is kept.
        HistoryError: If its mail, its steps or the state before it are kept no more, or mails were handled inside it.
        StateDecodeError: If the state before it does not fit today's class.
        MigrationError: If it cannot be brought to today's version.
    """
    found = await recording.read(bus, address, await recording.last_turn(bus, address) if seq is None else seq)
    if found.nested:
        text = f"{found.id} handled mail {found.nested[0]} of its own chain inside: such a turn cannot run again alone"
        raise HistoryError(text)
    run = _Run(found, ActorType.of(actor), habits or Habits(), timeout_s)
    seen = await run.see(BlobStore(bus))
    if not found.steps and any(each.kind == "step" for each in seen.differences):
        await _check_kept(bus, found, step_ttl_s)
    return seen


async def _check_kept(bus: Bus, found: Recording, step_ttl_s: float) -> None:
    """Raise if a turn without a record of any step is so old that it may have had some."""
    age_s = (SYSTEM_CLOCK.now() - found.ended).total_seconds()
    info = await bus.stream_info(subjects.AUDIT)
    is_audited = info is not None and info.first_time is not None and info.first_time <= found.began
    if age_s >= step_ttl_s and not is_audited:
        text = f"the records of its steps have expired: {found.id} ended {age_s:.0f} s ago, and no audit is that old"
        raise HistoryError(text)


class _Run:
    """One run of a recorded turn, with its attempts."""

    def __init__(self, found: Recording, kind: ActorType, habits: Habits, timeout_s: float) -> None:
        self._recording = found
        self._kind = kind
        self._habits = habits
        self._timeout_s = timeout_s
        self._sealed = SealedBus()
        self._background: set[asyncio.Task[None]] = set()
        self._clock = PastClock(found.began)

    async def see(self, blobs: BlobStore) -> Rerun:
        found = self._recording
        # from here on nothing of the broker is needed
        state = await actor_of(self._kind, found.address, found.before, blobs)
        then = await parting.state_after(self._kind, found.after, blobs)
        try:
            mail = found.mail
            handler, data = self._kind.select(mail.type, mail.data, mail.content_type)
            argument = self._kind.decode(handler, mail.type, data, mail.content_type)
        except CallboardError as error:
            return self._compared(parting.Now(ending=Raised(error), actor=state), self._recall(), [], then)
        with confined() as tried:
            work = asyncio.create_task(self._attempts(handler, argument, state), name=f"rerun-{found.id}")
            now, recall = await work
        return self._compared(now, recall, [*self._sealed.tried, *tried], then)

    def _compared(self, now: parting.Now, recall: Recall, tried: Sequence[str], then: bytes | None) -> Rerun:
        found = self._recording
        parted = parting.Parting(found, self._kind, recall, asked=self._habits.asked, passing=self._habits.passing)
        return Rerun(
            turn=found.id,
            steps=len(recall.served),
            differences=parted.differences(now, tried, then),
            stopped=found.stopped,
            tried=list(tried),
            uncompared=_uncompared(found),
        )

    async def _attempts(self, handler: Handler, argument: object, actor: Actor) -> tuple[parting.Now, Recall]:
        attempt = 0
        state = self._kind.dump_state(actor.state) if self._kind.has_state else None
        while True:
            attempt += 1
            recall = self._recall()
            turn = self._turn(recall, attempt)
            ending = await self._attempt(turn, handler, actor, argument, recall)
            if self._background:
                _ = await asyncio.wait(self._background)
            now = parting.Now(ending=ending, actor=actor, turn=turn)
            if not isinstance(ending, Raised) or recall.wanted:
                return now, recall
            decision = policy_of(handler, self._kind.options.retry).decide(ending.error, attempt)
            if not isinstance(decision, Retry):
                return now, recall
            actor = self._kind.new(self._recording.address)
            if state is not None:
                actor.state = self._kind.load_state(parting.raw(state), self._kind.version)

    async def _attempt(
        self, turn: Turn, handler: Handler, actor: Actor, argument: object, recall: Recall
    ) -> Ending | None:
        """Return how an attempt ended; None if it did not end in time, or wants a step that was not recorded."""
        work = asyncio.ensure_future(self._started(turn, handler, actor, argument))
        stuck = asyncio.ensure_future(recall.is_stuck.wait())
        try:
            _ = await asyncio.wait([work, stuck], timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if recall.wanted:
                await self._settled(recall)
            if work.done() and not recall.wanted:
                return work.result()
            return None
        finally:
            stuck.cancel()
            turn.stop = (STOP_LOST, "the run on records is over")
            turn.is_over = True
            work.cancel()
            recall.give_up()
            _ = await asyncio.wait([work], timeout=_END_S)
            if work.done() and not work.cancelled():
                _ = work.exception()

    async def _started(self, turn: Turn, handler: Handler, actor: Actor, argument: object) -> Ending:
        try:
            with turn_scope(actor, turn):
                await call_hook(actor.on_start)
        except asyncio.CancelledError:
            return Abandoned()
        except Exception as error:  # noqa: BLE001 - the start hook is the user's code; it is data from here on
            return Raised(error)
        return await execute(turn, handler, actor, argument, part=None)

    async def _settled(self, recall: Recall) -> None:
        """Let what runs beside the step that is not recorded come as far as it can."""
        known = -1
        while known != len(recall.served) + len(recall.wanted):
            known = len(recall.served) + len(recall.wanted)
            for _ in range(_SETTLE_TURNS):
                await asyncio.sleep(0)

    # --- parts

    def _recall(self) -> Recall:
        return Recall(
            self._sealed,
            self._recording,
            clock=self._clock,
            passing=self._habits.passing,
            failure=self._habits.failure,
        )

    def _turn(self, recall: Recall, attempt: int) -> Turn:
        found, mail = self._recording, self._recording.mail
        parked = ParkedTurn(seq=mail.seq, id=mail.id, data=b"", time=mail.time, waits=found.waits)
        return Turn(
            self._services(),
            address=found.address,
            mail=mail,
            journal=lambda: recall,
            attempt=attempt,
            epoch=found.after.record.epoch,
            cause_seq=found.cause,
            parked=parked if found.waits else None,
        )

    def _services(self) -> Services:
        bus, clock = self._sealed, self._clock
        return Services(
            worker="rerun",
            bus=bus,
            clock=clock,
            committer=TurnCommitter(bus, clock=clock),
            blobs=BlobStore(bus),
            client=Client(bus, clock=clock),
            rules=ActorRules(),
            spawn=self._spawn,
            slots=asyncio.Semaphore(1),
            echo_age_s=lambda: 0.0,
        )

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _uncompared(found: Recording) -> list[str]:
    if found.stopped:
        return [f"what it would have done after it was stopped: {found.stopped}"]
    if found.mail.reply_to and found.reply is None and found.parked is None:
        return ["its answer, which was not kept: who asked gave no id, or many have asked since"]
    return []
