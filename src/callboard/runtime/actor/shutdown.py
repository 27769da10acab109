"""How a worker ends what still runs when it drains: the built-in strategies, and the port for one of your own.

Whatever the strategy, nothing new begins, a turn that ends in time is committed, and one that is stopped leaves no
trace but its recorded steps: the next host of the actor runs it from there. A stopped task goes back to the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

from callboard.runtime import events, logs
from callboard.runtime.clock import Clock
from callboard.runtime.errors import ConfigError

Decision = Literal["go_on", "halt", "cancel"]

# What was cancelled has this long to end; a handler that takes longer is left behind.
END_WAIT_S = 5.0

_log = logs.get_logger(__name__)


class Work(Struct, frozen=True, kw_only=True):
    """Something that runs while the worker drains.

    Attributes:
        what: A turn of an actor, or a task of a capability.
        kind: The actor's type, or the capability.
        id: ``type/key@sequence``, or the task's id.
        since_s: Seconds since the drain began.
        grace_s: Seconds that all work is given in the end.
        steps: Steps that the turn has recorded or replayed so far; 0 for a task.
    """

    what: Literal["turn", "task"]
    kind: str
    id: str
    since_s: float
    grace_s: float
    steps: int = 0


class Shutdown(Protocol):
    """Decides what becomes of running work; give one to ``WorkerOptions(shutdown=...)``.

    Its methods are called on the event loop and must not block.
    """

    @property
    def name(self) -> str:
        """Its name, for logs."""
        ...

    @property
    def leaves_note(self) -> bool:
        """Whether a turn that it stopped emits the event ``interrupted``, which says where it stood."""
        ...

    def grace_s(self, configured_s: float) -> float:
        """Return how long work may go on, given what ``drain_grace_s`` says. After it everything is cancelled."""
        ...

    def decide(self, work: Work) -> Decision:
        """Say what becomes of a piece of work; asked at once and then every 50 ms until it has ended.

        ``go_on`` lets it run. ``halt`` lets the steps of a turn that are under way finish and be recorded, and stops
        it when it wants to begin another; a turn that wants none goes on to its commit, and so does a task, which has
        no steps. ``cancel`` stops it now. ``halt`` cannot be taken back, nor can ``cancel``. An error counts as
        ``go_on``.
        """
        ...


class Cooperative(Struct, frozen=True):
    """Tell handlers (``is_stopping``, ``on_drain``) and let them finish within the grace time."""

    name: str = "cooperative"
    leaves_note: bool = False

    def grace_s(self, configured_s: float) -> float:
        """Return all of it."""
        return configured_s

    def decide(self, work: Work) -> Decision:  # noqa: ARG002 - the same for all
        """Let it run."""
        return "go_on"


class Immediate(Struct, frozen=True):
    """Cancel everything at once."""

    name: str = "immediate"
    leaves_note: bool = False

    def grace_s(self, configured_s: float) -> float:  # noqa: ARG002 - whatever it is
        """Return 0."""
        return 0.0

    def decide(self, work: Work) -> Decision:  # noqa: ARG002 - the same for all
        """Stop it."""
        return "cancel"


class FinishStep(Struct, frozen=True):
    """Let the steps under way finish and be recorded, then stop; tasks may finish within the grace time."""

    name: str = "finish-step"
    leaves_note: bool = False

    def grace_s(self, configured_s: float) -> float:
        """Return all of it."""
        return configured_s

    def decide(self, work: Work) -> Decision:  # noqa: ARG002 - the same for all
        """Stop it before its next step."""
        return "halt"


class Checkpoint(Struct, frozen=True):
    """As ``FinishStep``; and a turn that was stopped emits the event ``interrupted``, which says where it stood."""

    name: str = "checkpoint"
    leaves_note: bool = True

    def grace_s(self, configured_s: float) -> float:
        """Return all of it."""
        return configured_s

    def decide(self, work: Work) -> Decision:  # noqa: ARG002 - the same for all
        """Stop it before its next step."""
        return "halt"


COOPERATIVE = Cooperative()
BUILT_IN: dict[str, Shutdown] = {each.name: each for each in (COOPERATIVE, Immediate(), FinishStep(), Checkpoint())}


def named(name: str) -> Shutdown:
    """Return a built-in strategy.

    Raises:
        ConfigError: If there is none of that name.
    """
    try:
        return BUILT_IN[name]
    except KeyError:
        message = f"there is no shutdown strategy {name!r}: take one of {', '.join(BUILT_IN)}"
        raise ConfigError(message) from None


class Drain:
    """One drain under way: its strategy, since when it runs, and whether its grace time is over."""

    def __init__(
        self, strategy: Shutdown, *, clock: Clock, configured_s: float, is_now: Callable[[], bool] = lambda: False
    ) -> None:
        """Begin now. ``is_now`` says that nobody wants to wait any more: a second signal came."""
        self.strategy = strategy
        self._clock = clock
        self._began_s = clock.monotonic()
        self._grace_s = max(0.0, strategy.grace_s(configured_s))
        self._is_now = is_now
        self._over_s: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the grace time is over: everything is to be cancelled."""
        now_s = self._clock.monotonic()
        if self._over_s is None and (self._is_now() or now_s - self._began_s >= self._grace_s):
            self._over_s = now_s
        return self._over_s is not None

    @property
    def is_ended(self) -> bool:
        """Whether what was cancelled at the end of the grace time has had its five seconds as well."""
        return self.is_over and self._clock.monotonic() - (self._over_s or 0.0) >= END_WAIT_S

    def decide(self, what: Literal["turn", "task"], kind: str, work_id: str, *, steps: int = 0) -> Decision:
        """Ask the strategy about a piece of work; when the grace time is over it is cancelled unasked."""
        if self.is_over:
            return "cancel"
        since_s = self._clock.monotonic() - self._began_s
        work = Work(what=what, kind=kind, id=work_id, since_s=since_s, grace_s=self._grace_s, steps=steps)
        try:
            return self.strategy.decide(work)
        except Exception as error:  # noqa: BLE001 - the user's code; a drain goes on without it
            _log.warning(events.HOOK_FAILED, actor=work_id, hook="shutdown", type=type(error).__name__)
            return "go_on"
