"""What a tool call may ask of a person, as the invoker sees it: a port that approvals fill."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from msgspec import Struct

from callboard.agents.tools.base import Action
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.turn_api import TurnApi

Choice = Literal["grant", "done", "again", "give_up"]


class ToolQuestion(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a person is asked before, or in the middle of, a tool call. Equal in every run of the turn.

    Attributes:
        kind: ``call``: may it be made? ``outcome``: it began, and nobody knows whether it took effect.
        tool: Name of the tool.
        action: What a call does to the world.
        arguments: The call's arguments.
        key: The call's idempotency key where it began, to look for outside.
        round: How many times the outcome was asked for before.
        text: The question in words.
        choices: What may be answered.
    """

    kind: Literal["call", "outcome"]
    tool: str
    action: Action
    arguments: dict[str, Any] = {}
    key: str = ""
    round: int = 0
    text: str = ""
    choices: tuple[Choice, ...] = ()


class ToolAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a person said.

    Attributes:
        choice: One of the question's choices. ``done``: it took effect, and ``text`` is its result. ``again``: it had
            no effect; run it. ``give_up``: tell the model that the outcome is unknown.
        text: The result, or the reason.
        by: Who said it.
    """

    choice: Choice
    text: str = ""
    by: str = ""


class Approver(Protocol):
    """Asks a person and waits, by parking the turn: it holds nothing meanwhile."""

    async def __call__(self, turn: TurnApi | Actor, question: ToolQuestion, /) -> ToolAnswer:
        """Return the answer. The turn runs again from its start when it comes.

        Raises:
            ApprovalDeniedError: If the person, or a policy when time was up, said no.
            ApprovalMismatchError: If what was granted is not what is asked now.
        """
        ...
