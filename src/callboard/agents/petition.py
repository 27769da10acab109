"""What people and turns say to each other about an approval, and the two actors that carry it.

``approval/<id>`` is the record: people mail their decisions to it, and nobody else may. ``petition/<any>`` is the door
for those who ask: it hands on their requests, and their wish to use a grant. A server with users keeps the two apart:
who may ask cannot decide.
"""

from __future__ import annotations

import zlib
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from callboard.agents import decision
from callboard.agents.decision import Entry, Refusal, Risk, Stage, Status
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import on
from callboard.runtime.bus import header
from callboard.runtime.errors import AskTimeoutError, NoHostError

TYPE = "approval"
DOOR = "petition"
# The door's mailboxes: a request takes a moment, and an actor for each would leave a record for each.
DOORS = 16
ASK_S = 30.0
AWAY = "away"

_OVERDUE = "overdue"


class Request(Struct, frozen=True, kw_only=True):
    """Ask people. Goes to the door, and from there to the approval of that id."""

    approval: str
    requester: str
    action: str
    risk: Risk
    payload: Any
    hash: str
    context: Any = None
    stages: tuple[Stage, ...] = ()
    then: str = "deny"
    valid_s: float = decision.VALID_S


class Spend(Struct, frozen=True, kw_only=True):
    """Use a grant: answered with an ``Answer``. ``by`` names the turn, which may repeat it."""

    approval: str
    hash: str
    by: str
    tries: int = 0


class Withdraw(Struct, frozen=True, kw_only=True):
    """The requester does not want it any more."""

    approval: str
    reason: str


class Decision(Struct, frozen=True, kw_only=True):
    """Tells the requester that something was decided. It proves nothing: what counts is asked for with ``Spend``."""

    approval: str
    status: Status


class GrantIt(Struct, frozen=True, kw_only=True):
    """On the wire ``Grant``: say yes to what has this hash."""

    by: str
    hash: str
    role: str = ""
    reason: str = ""


class DenyIt(Struct, frozen=True, kw_only=True):
    """On the wire ``Deny``: say no."""

    by: str
    role: str = ""
    reason: str = ""


class SuggestIt(Struct, frozen=True, kw_only=True):
    """On the wire ``Suggest``: say no, and what to do instead."""

    by: str
    suggestion: str
    role: str = ""


class Show(Struct, frozen=True):
    """Answered with the ``Entry``."""


class Overdue(Struct, frozen=True):
    """The time of a stage is over."""

    stage: int


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a decision or of a use. Refusals are answers, so that a mistake harms no mailbox.

    Attributes:
        ok: Whether it was taken.
        error: Why not.
    """

    ok: bool
    approval: str
    status: Status = "pending"
    action: str = ""
    hash: str = ""
    by: str = ""
    reason: str = ""
    suggestion: str = ""
    error: Refusal | None = None


class Approval(Actor, name=TYPE, poison_limit=1_000_000, restart_budget=1_000_000, idle_s=5.0):
    """One approval. The first decision stands; a grant is used once."""

    State = Entry
    state: Entry

    @on
    async def request(self, m: Request) -> None:
        """Put it before people. A second request under one id changes nothing."""
        if self.state.exists:
            if self.state.hash != m.hash:
                self.emit("approval.refused", {"code": "hash", "hash": m.hash})
            return
        entry = Entry(
            requester=m.requester,
            action=m.action,
            risk=m.risk,
            payload=m.payload,
            hash=decision.digest(m.payload),
            context=m.context,
            stages=m.stages,
            then="wait" if m.then == "wait" else "deny",
            valid_s=m.valid_s,
        )
        self.state = decision.begun(entry, self.mail.time)
        self._remind()
        self.emit("approval.requested", self._facts())

    @on(name="Grant")
    async def grant(self, m: GrantIt) -> Answer:
        """Take a yes."""
        return self._decide("granted", by=m.by, role=m.role, given_hash=m.hash, reason=m.reason)

    @on(name="Deny")
    async def deny(self, m: DenyIt) -> Answer:
        """Take a no."""
        return self._decide("denied", by=m.by, role=m.role, reason=m.reason)

    @on(name="Suggest")
    async def suggest(self, m: SuggestIt) -> Answer:
        """Take a no that says what to do instead."""
        return self._decide("suggested", by=m.by, role=m.role, reason=m.suggestion, suggestion=m.suggestion)

    @on(read_only=True)
    async def show(self, _: Show) -> Entry:
        """Return the record."""
        return self.state

    @on
    async def spend(self, m: Spend) -> Answer:
        """Let a turn use the grant."""
        before = self.state.status
        self.state, refused = decision.spent(self.state, by=m.by, given_hash=m.hash, now=self.mail.time)
        if self.state.status != before:
            self.emit(f"approval.{self.state.status}", {"by": m.by})
        elif refused is not None and refused.code in ("hash", "used"):
            self.emit("approval.refused", {"code": refused.code, "by": m.by, "hash": m.hash})
        return self._answer(refused)

    @on
    async def withdraw(self, m: Withdraw) -> None:
        """Close it: nobody needs it any more."""
        if self.state.exists and self.state.status in ("pending", "granted"):
            self.state = replace(self.state, status="withdrawn", reason=m.reason, at=self.mail.time, until=None)
            self.cancel_timer(_OVERDUE)
            self.emit("approval.withdrawn", {"reason": m.reason})

    @on
    async def overdue(self, m: Overdue) -> None:
        """Ask the next, or end it."""
        before = self.state
        self.state = decision.overdue(before, m.stage, self.mail.time)
        if self.state.stage != before.stage:
            self._remind()
            self.emit("approval.escalated", {"from": before.to, "to": self.state.to, "stage": self.state.stage})
        elif self.state.status != before.status:
            self._told()

    def _decide(
        self,
        status: Status,
        *,
        by: str,
        role: str,
        given_hash: str | None = None,
        reason: str = "",
        suggestion: str = "",
    ) -> Answer:
        refused = decision.refusal(self.state, by=by, role=role, given_hash=given_hash)
        if header.SCHEDULER in self.mail.headers:
            # whoever may set timers can have the server mail here; people ask, and hear what became of it
            refused = Refusal("not_allowed", "a decision is not made by a timer")
        if refused is not None:
            self.emit("approval.refused", {"code": refused.code, "by": by, "wanted": status})
            return self._answer(refused)
        self.state = decision.decided(
            self.state, status, by=by, role=role, now=self.mail.time, reason=reason, suggestion=suggestion
        )
        self.cancel_timer(_OVERDUE)
        self._told()
        return self._answer(None)

    def _told(self) -> None:
        self.emit(f"approval.{self.state.status}", self._facts())
        self.tell(self.state.requester, Decision(approval=self.key, status=self.state.status))

    def _remind(self) -> None:
        if self.state.until is not None:
            self.remind(_OVERDUE, Overdue(self.state.stage), at=self.state.until)

    def _answer(self, refused: Refusal | None) -> Answer:
        found = self.state
        return Answer(
            ok=refused is None,
            approval=self.key,
            status=found.status,
            action=found.action,
            hash=found.hash,
            by=found.by,
            reason=found.reason,
            suggestion=found.suggestion,
            error=refused,
        )

    def _facts(self) -> dict[str, object]:
        found = self.state
        facts = {
            "requester": found.requester,
            "action": found.action,
            "risk": found.risk,
            "hash": found.hash,
            "to": found.to,
            "until": found.until,
            "by": found.by,
            "role": found.role,
            "reason": found.reason,
        }
        return {name: value for name, value in facts.items() if value}


class Petition(Actor, name=DOOR, poison_limit=1_000_000, restart_budget=1_000_000, idle_s=5.0):
    """The door for those who ask: it keeps nothing and hands on what a requester may say."""

    companions = (Approval,)

    @on
    async def request(self, m: Request) -> None:
        """Hand a request on."""
        self.tell(Address(TYPE, m.approval), m)

    @on
    async def withdraw(self, m: Withdraw) -> None:
        """Hand on that it is not wanted any more."""
        self.tell(Address(TYPE, m.approval), m)

    @on
    async def spend(self, m: Spend) -> Any:  # noqa: ANN401 - an answer as it came
        """Use a grant and return what the approval says."""
        try:
            return await self.ask(Address(TYPE, m.approval), m, timeout_s=ASK_S)
        except (AskTimeoutError, NoHostError) as error:
            return Answer(ok=False, approval=m.approval, error=Refusal(AWAY, str(error)))


COMPANIONS: tuple[type[Actor], ...] = (Approval, Petition)
"""What an actor that calls ``approve`` needs beside it: name it in the class's ``companions``."""


def door(approval: str) -> Address:
    """Return where a requester's messages about an approval go."""
    return Address(DOOR, str(zlib.crc32(approval.encode()) % DOORS))
