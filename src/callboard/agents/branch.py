"""Who is asked for a part of a run, and with what; and what several parts came to together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from callboard.agents.message import AgentResult
from callboard.agents.run_record import Outcome
from callboard.runtime.actor.actor import Actor
from callboard.runtime.capability import Capability
from callboard.runtime.errors import InputError

# A capability, an address ``type/key``, ``type/`` for one of the run's own, a class for the same, or code of the flow.
Whom = str | Capability[..., Any] | type[Actor] | Callable[[], Awaitable[Any]]


class Branch(Struct, frozen=True):
    """One part of a join, a sequence or an adaptive row: an agent to ask, or code of the flow's own.

    Attributes:
        to: A capability's name: the least busy agent that has it, or a pool. ``type/key``: that actor. ``type/`` or an
            actor class: an actor of this type that is this part's alone. An async function without arguments: the
            flow's own code, which may ask agents in turn.
        value: What it is sent. A text becomes a ``Task``; a ``Task`` is told of the run; anything else goes as it is.
        name: Name in the run's records; default: that of the capability, type or function.
        context: Added to the ``context`` of a ``Task``.
        timeout_s: Longest wait for the answer of one agent, in seconds; default: what the join, or the run, has left,
            at most an hour.
        is_optional: Whether the rest can do without it.
        tries: Agents that are asked before it has failed, 1 or more. Only a capability has a second one.
    """

    to: Whom
    value: object = UNSET
    name: str = ""
    context: Mapping[str, Any] = {}
    timeout_s: float | None = None
    is_optional: bool = False
    tries: int = 2

    @property
    def label(self) -> str:
        """What it is called where it has no name of its own."""
        if self.name:
            return self.name
        if isinstance(self.to, str):
            return self.to.partition("/")[0]
        if isinstance(self.to, Capability):
            return self.to.name
        if isinstance(self.to, type) and issubclass(self.to, Actor):
            return self.to.actor_name
        return str(getattr(self.to, "__name__", "code")).strip("<>")


class Joined(Struct, frozen=True, kw_only=True):
    """What several parts came to.

    Attributes:
        value: ``collect``: the list of results; ``vote``: the one that most came to; ``first``: the first one;
            ``reduce``: what they were made into. Of a sequence or an adaptive row: the last result.
        results: Results of those that are done, by name, in order.
        outcomes: How every part ended, in order.
        votes: Of a vote: how many came to each, by its JSON.
    """

    value: Any = None
    results: dict[str, Any] = {}
    outcomes: Sequence[Outcome] = ()
    votes: dict[str, int] = {}

    @property
    def missing(self) -> list[str]:
        """Names of the parts that failed or were lost."""
        return [each.name for each in self.outcomes if each.status in ("failed", "lost")]

    @property
    def is_partial(self) -> bool:
        """Whether a part is missing."""
        return bool(self.missing)


class Trail(Struct, frozen=True, kw_only=True):
    """What an adaptive row has done so far, for whoever chooses the next agent.

    Attributes:
        task: The text of the task.
        results: By name, in order.
        steps: Whom it asked, in order: as the chooser named them.
    """

    task: str
    results: Mapping[str, AgentResult] = {}
    steps: Sequence[str] = ()

    @property
    def last(self) -> AgentResult | None:
        """The latest result."""
        return list(self.results.values())[-1] if self.results else None

    @property
    def last_step(self) -> str:
        """Who gave it; "" at the beginning."""
        return self.steps[-1] if self.steps else ""


Next = str | Branch | None
Rule = Mapping[str, str | None]
Choose = (
    Rule | Sequence[tuple[Callable[[Trail], bool], str | None]] | Callable[[Trail], Next | Awaitable[Next]] | Branch
)


def as_branch(given: Branch | Whom, value: object | UnsetType = UNSET) -> Branch:
    """Return what stands for a part of a run as a ``Branch``, with ``value`` where it names none.

    Raises:
        InputError: If it can be none.
    """
    found = given if isinstance(given, Branch) else Branch(given)
    to = cast("object", found.to)
    if not (isinstance(to, (str, Capability)) or callable(to)) or to == "":
        message = f"a branch is {to!r:.80}: give a capability, type/key, an actor class, a function or a Branch"
        raise InputError(message)
    if found.tries < 1:
        message = f"branch {found.label!r}: tries is {found.tries}, and the first agent counts: take 1 or more"
        raise InputError(message)
    return found if found.value is not UNSET else replace(found, value=value)
