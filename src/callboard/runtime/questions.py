"""Ask before running: is this task recorded, and is somebody running it? One read and one round of answers a burst."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, Message, Stored
from callboard.runtime.claim import Claim
from callboard.runtime.clock import Clock
from callboard.runtime.lease import HoldsAnswer, HoldsQuestion, LeaseKeeper
from callboard.runtime.record import AttemptRecord
from callboard.runtime.settle import read_history

# A question is asked so often at most, of workers that are alive and do not answer.
ROUNDS = 4
_answer = msgspec.json.Decoder(HoldsAnswer)


class Answers(Struct, frozen=True):
    """What the ledger and the other workers said about one claim."""

    is_recorded: bool
    is_held: bool
    history: list[AttemptRecord]

    @property
    def is_closed(self) -> bool:
        """Whether no run of it can be under way: it is recorded, or its last run wrote down how it ended."""
        return self.is_recorded or (bool(self.history) and self.history[-1].kind != "started")


def _began_since(answer: Answers, known: int) -> bool:
    return not (answer.is_closed or answer.is_held) and len(answer.history) > known


class Questions:
    """Asks the ledger and the other workers about claims that may have run before."""

    def __init__(
        self,
        bus: Bus,
        keeper: LeaseKeeper,
        *,
        clock: Clock,
        holds_wait_s: float,
        peers: Callable[[], frozenset[str] | None],
    ) -> None:
        """Prepare.

        Args:
            bus: The worker's connection.
            keeper: Knows what this process holds.
            clock: Time.
            holds_wait_s: How long to wait for workers that do not answer.
            peers: The other workers whose beats were heard lately; once all have answered nobody is waited for. None as
                long as we have not listened for long enough to know them all.
        """
        self._bus = bus
        self._keeper = keeper
        self._clock = clock
        self._holds_wait_s = holds_wait_s
        self._peers = peers

    async def ask(self, claims: Sequence[Claim], known: Sequence[Answers] = ()) -> list[Answers]:
        """Return the answers for each claim, in order. One broadcast and one direct get for all of them.

        Args:
            claims: What to ask about.
            known: What ``read_ledger`` said of them before; spares a second round where a run's start is written down.

        Raises:
            BusError: If the ledger cannot be read; nothing may be run then.
        """
        before = [len(answer.history) for answer in known] or [0] * len(claims)
        while True:
            # first who runs it, then what is recorded: a run that ends between the two questions is seen by the second
            held = await self._held(claims)
            answers = [
                Answers(
                    is_recorded=answer.is_recorded,
                    is_held=claim.task_id in held or self._holds_other(claim),
                    history=answer.history,
                )
                for claim, answer in zip(claims, await self.read_ledger(claims), strict=True)
            ]
            # and one that began between them had not begun when we asked: ask again
            if not any(map(_began_since, answers, before)):
                return answers
            before = [len(answer.history) for answer in answers]

    async def _until(self, done: asyncio.Event) -> None:
        timer = asyncio.ensure_future(self._clock.sleep(self._holds_wait_s))
        waiter = asyncio.ensure_future(done.wait())
        try:
            await asyncio.wait((timer, waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            waiter.cancel()

    def _holds_other(self, claim: Claim) -> bool:
        delivery = claim.delivery
        return self._keeper.holds(claim.task_id, seq=delivery.seq, turn=delivery.delivered, asker=claim)

    async def read_ledger(self, claims: Sequence[Claim]) -> list[Answers]:
        """Return what the ledger alone knows; ``is_held`` is False throughout. A few requests to the leader.

        A follower that is behind would say "no record" of a task that is finished, and it would run again.

        Raises:
            BusError: If it cannot be read.
        """
        wanted: list[str] = []
        for claim in claims:
            wanted.append(claim.result_subject)
            wanted.append(subjects.attempts(claim.capability, claim.task_id))
        found = await self._bus.get_many(subjects.LEDGER, wanted, from_leader=True)
        recorded = {stored.subject for stored in found if stored.subject.startswith("cb.result.")}
        notes: dict[str, list[Stored]] = {}
        for stored in found:
            if stored.subject.startswith("cb.attempt."):
                notes.setdefault(stored.subject.rpartition(".")[0], []).append(stored)
        return [
            Answers(
                is_recorded=claim.result_subject in recorded,
                is_held=False,
                history=read_history(notes.get(subjects.attempts(claim.capability, claim.task_id)[:-2], [])),
            )
            for claim in claims
        ]

    async def _held(self, claims: Sequence[Claim]) -> set[str]:
        peers = self._peers()
        waiting_for = set(peers or ())
        fresh = peers is not None and all(claim.delivery.delivered == 1 for claim in claims)
        if fresh and not waiting_for:
            # nobody else is alive that beats; a first delivery cannot be running here under another name
            return set()
        held: set[str] = set()
        done = asyncio.Event()

        def on_answer(message: Message) -> None:
            try:
                answer = _answer.decode(message.data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return
            held.update(answer.held)
            waiting_for.discard(answer.worker)
            if not waiting_for and fresh:
                done.set()

        inbox = self._bus.inbox()
        subscription = await self._bus.subscribe(inbox, on_answer)
        try:
            question = HoldsQuestion(
                [c.task_id for c in claims],
                [c.delivery.seq for c in claims],
                [c.delivery.delivered for c in claims],
                self._keeper.worker,
            )
            for _ in range(ROUNDS):
                await self._bus.publish(subjects.CTL_HOLDS, msgspec.json.encode(question), reply=inbox)
                await self._until(done)
                # whoever beats and says nothing may hold one, and its answer was lost; the dead do not beat
                if not waiting_for & (self._peers() or frozenset()):
                    break
        finally:
            await subscription.close()
        return held
