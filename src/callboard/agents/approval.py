"""Approvals: a turn asks a person, waits for days without holding anything, and does exactly what was granted, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from msgspec import Struct, convert
from msgspec.structs import replace

from callboard.agents import decision
from callboard.agents.decision import Escalation, Policy, Risk
from callboard.agents.errors import ApprovalDeniedError, ApprovalMismatchError
from callboard.agents.petition import ASK_S, AWAY, COMPANIONS, Answer, Decision, Request, Spend, Withdraw, door
from callboard.runtime import ids
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.span import span_s
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.errors import AskTimeoutError, NoHostError, WaitTimeoutError

__all__ = ["COMPANIONS", "Escalation", "Grant", "approve"]

ID_BYTES = 5
# Approvals may be hosted elsewhere: who cannot be asked is asked again, and nothing is held meanwhile.
_AWAY_S = 5.0


class Grant(Struct, frozen=True, kw_only=True):
    """A person's word that something may be done, once, and exactly as it was shown.

    Attributes:
        approval: Its id.
        action: What was granted.
        hash: SHA-256 of the payload's canonical JSON.
        by: Who granted it.
        reason: What they said.
    """

    approval: str
    action: str
    hash: str
    by: str
    reason: str = ""

    def check(self, payload: object) -> None:
        """See that ``payload`` is, byte for byte, what was granted; call it where the deed is done.

        Raises:
            ApprovalMismatchError: If it is not.
        """
        found = decision.digest(payload)
        if found != self.hash:
            message = (
                f"approval {self.approval} was given for {self.action} {self.hash[:12]}…, to be done is "
                f"{found[:12]}…: ask for approval of what is to be done now"
            )
            raise ApprovalMismatchError(message)


async def approve(
    turn: TurnApi | Actor,
    payload: object,
    *,
    to: str | Sequence[str] = "",
    timeout: str | float | None = None,  # noqa: ASYNC109 - a time that is stored, longer than any process
    risk: Risk = "medium",
    action: str = "",
    context: object = None,
    on_timeout: Policy | Mapping[Risk, Policy] = "deny",
    valid: str | float = decision.VALID_S,
) -> Grant:
    """Ask people whether ``payload`` may be done, and wait for the answer without holding a slot or a process.

    The turn is parked (``TurnApi.wait_for``): after the answer the handler runs again from its start, with its steps
    recorded. If it then comes here with another payload, what was granted is withdrawn and the new one is asked for.
    The grant is used up by this turn; a repeated run of the same turn still has it. Costs two stored steps.

    Args:
        turn: The turn, or the actor that runs it.
        payload: Exactly what will be done: a Struct, dataclass or plain values; at most 64 KiB as JSON.
        to: Who may decide: a name or several; default: anybody who may reach approvals at all.
        timeout: How long people have, ``"3d"`` or seconds; default: what ``on_timeout`` says.
        risk: How bad a mistake would be.
        action: What is done; default: the name of the payload's class.
        context: What helps to decide, as plain values; it is shown and not hashed.
        on_timeout: What follows when nobody decides: ``deny`` (after 240 minutes), ``wait``, ``tiered``, an
            ``Escalation``, or one of them for each risk.
        valid: How long a grant may wait for the turn to go on; one that has lapsed is asked for again.

    Raises:
        ApprovalDeniedError: If the answer was no; ``suggestion`` says what to do instead, if anything.
        ConfigError: If a time or the policy cannot be used.
        EncodeError: If the payload has no JSON form.
        PayloadTooLargeError: If it is too much to be read.
    """
    named = action or type(payload).__name__
    stages, then = decision.stages_of(on_timeout, to=decision.names(to), risk=risk, timeout=timeout)
    asked = Request(
        approval="",
        requester=str(turn.address),
        action=named,
        risk=risk,
        payload=payload,
        hash=decision.digest(payload),
        context=context,
        stages=stages,
        then=then,
        valid_s=span_s(valid),
    )
    for number in count():
        found = await _answered(turn, asked, number)
        if found.ok:
            return Grant(approval=found.approval, action=named, hash=found.hash, by=found.by, reason=found.reason)
        if found.error is None or found.error.code != "expired":
            break
    raise _refused(found, named)


async def _answered(turn: TurnApi | Actor, asked: Request, number: int) -> Answer:
    """Ask once, and wait until there is an answer that the approval itself confirms.

    A later run of the turn takes the same way: what it depends on is recorded.
    """
    # by the payload: when that changes between two runs of the turn, it is another question
    own = await turn.step(f"approval {asked.action[:100]}", _new_id, key=f"{asked.hash}/{number}")
    turn.tell(door(own), replace(asked, approval=own))
    is_away = False
    for tries in count():
        try:
            said = await turn.wait_for(Decision, where={"approval": own}, timeout=_AWAY_S if is_away else None)
        except WaitTimeoutError:
            if not is_away:
                continue
        else:
            if said.approval != own:
                reason = f"the payload has changed; asked again as {own}"
                turn.tell(door(said.approval), Withdraw(approval=said.approval, reason=reason))
                continue
        answer = await _spent(turn, own, asked.hash, tries)
        if answer is not None and answer.status != "pending":
            return answer
        is_away = answer is None
    raise AssertionError


async def _spent(turn: TurnApi | Actor, own: str, given_hash: str, tries: int) -> Answer | None:
    """Use the grant and return what the approval says, None when nobody could be asked now."""
    # with the number of the try: each is a question of its own
    wish = Spend(approval=own, hash=given_hash, by=turn.idempotency_key("approval"), tries=tries)
    answer: Answer | None
    try:
        answer = convert(await turn.ask(door(own), wish, timeout_s=2 * ASK_S), Answer)
    except (AskTimeoutError, NoHostError):
        answer = None
    if answer is not None and answer.error is not None and answer.error.code == AWAY:
        answer = None
    was_away = await turn.step("approval away", _same, answer is None, key=f"{own}/{tries}")
    return None if was_away else answer


async def _new_id() -> str:
    return ids.new_token(ID_BYTES)


async def _same(given: bool) -> bool:  # noqa: FBT001 - the argument of a step
    return given


def _refused(found: Answer, action: str) -> ApprovalDeniedError | ApprovalMismatchError:
    name = f"approval {found.approval} of {action}"
    if found.error is not None and found.error.code in ("hash", "used"):
        return ApprovalMismatchError(f"{name}: {found.error.message}")
    said = f": {found.reason}" if found.reason else ""
    text = f"{name} was {found.status} by {found.by or 'its requester'}{said}"
    return ApprovalDeniedError(text, approval=found.approval, reason=found.reason, suggestion=found.suggestion)
