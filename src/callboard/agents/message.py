"""What is said to an agent and what it answers: ``Task`` and ``AgentResult``, the same on every wire."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

from msgspec import Struct

from callboard.agents.llm.base import Usage

Status = Literal["done", "max_turns", "budget", "stopped", "failed", "refused"]


class Task(Struct, frozen=True, omit_defaults=True):
    """Work for an agent; ``{"text": "..."}`` is enough.

    Who works for somebody else passes on what it inherited: ``run``, ``budgets``. The deadline and the trace travel in
    headers.

    Attributes:
        text: What shall be done, in words.
        context: What the agent needs to know beside it, by name; plain JSON values. A flow puts earlier results under
            ``results``.
        run: Id of the run that this is a part of, ``<flow>/<id>``; "" outside of runs.
        agent_run: Name of the agent's part within the run, such as ``summarise-2``; the records of a run go by it.
        budgets: Scopes, innermost first, that pay for what the agent does, such as ``run/digest/7f3a``.
    """

    text: str
    context: dict[str, Any] = {}
    run: str = ""
    agent_run: str = ""
    budgets: tuple[str, ...] = ()


class AgentResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent made of a task, also when it did not get to its end.

    Attributes:
        status: Why it ended. ``done``: it has its answer. ``max_turns``: its loop came to its limit. ``budget``: a
            budget was used up. ``stopped``: it was told to stop, or its deadline came. ``failed``: it could not.
            ``refused``: the model declined.
        text: The answer, or as much of it as there is.
        output: The answer in the agent's output type, as plain JSON values; None without one.
        reason: Why it is not ``done``, for people; "" where it is.
        turns: How many times the model was asked.
        usage: Tokens of all its calls.
        cost_usd: Exact price of all its calls; None where a price is not known.
        model: The model that answered last, ``provider/model``.
        note: What else there is to say, such as that no model was configured.
    """

    status: Status
    text: str = ""
    output: Any = None
    reason: str = ""
    turns: int = 0
    usage: Usage = Usage()
    cost_usd: Decimal | None = None
    model: str = ""
    note: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the agent came to its end."""
        return self.status == "done"
