"""How a person is asked about a call of a tool: by an approval, whose three answers stand for what tools ask."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from callboard.agents import approval
from callboard.agents.decision import Risk
from callboard.agents.errors import ApprovalDeniedError
from callboard.agents.tools.approver import ToolAnswer, ToolQuestion
from callboard.agents.tools.base import Action
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.turn_api import TurnApi

_RISKS: dict[Action, Risk] = {
    "read": "low",
    "write": "medium",
    "network": "medium",
    "delegate": "medium",
    "execute": "high",
    "communicate": "high",
    "spend": "critical",
}
_CALL = "grant makes this call, once; deny tells the agent why not; suggest tells it what to do instead"
_OUTCOME = (
    "it began before a crash, and nobody knows whether it took effect: look outside. grant says that it did not, and "
    "runs it again; suggest says that it did, its text being the result; deny tells the agent that nobody knows"
)


class Consent(Struct, frozen=True, kw_only=True):
    """Asks by approvals. Implements ``Approver``.

    Attributes:
        to: Who may decide, as ``approve`` takes it; "" for anybody who may reach approvals at all.
        timeout: How long they have; None for the policy's own. About an unknown outcome it waits for ever.
    """

    to: str = ""
    timeout: str | float | None = None

    async def __call__(self, turn: TurnApi | Actor, question: ToolQuestion, /) -> ToolAnswer:
        """Return the answer; the turn is parked until then.

        Raises:
            ApprovalDeniedError: If a call was denied.
            ApprovalMismatchError: If what was granted is not what is asked now.
        """
        is_outcome = question.kind == "outcome"
        payload: dict[str, Any] = {"tool": question.tool, "arguments": question.arguments}
        if is_outcome:
            payload |= {"outcome_of": question.key, "round": question.round}
        try:
            grant = await approval.approve(
                turn,
                payload,
                to=self.to,
                timeout=None if is_outcome else self.timeout,
                risk=_RISKS[question.action],
                action=f"{'outcome of ' if is_outcome else ''}tool {question.tool}",
                context={"question": question.text, "answers": _OUTCOME if is_outcome else _CALL},
                on_timeout="wait" if is_outcome else "deny",
            )
        except ApprovalDeniedError as error:
            if not is_outcome:
                raise
            if error.suggestion:
                return ToolAnswer(choice="done", text=error.suggestion)
            return ToolAnswer(choice="give_up", text=error.reason)
        return ToolAnswer(choice="again" if is_outcome else "grant", text=grant.reason, by=grant.by)
