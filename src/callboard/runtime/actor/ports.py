"""How the parts of the engine see one another: an actor in memory, its partition, the host of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.mailbox import Mailbox
from callboard.runtime.actor.record import Reply, StateRecord
from callboard.runtime.actor.services import Services
from callboard.runtime.actor.turn import Turn
from callboard.runtime.bus.base import Write
from callboard.runtime.record import Failure


class Owner(Protocol):
    """The partition, as its activations see it."""

    @property
    def number(self) -> int:
        """Its number."""
        ...

    @property
    def former(self) -> str:
        """Worker that we took it from, "" when that is not known."""
        ...

    @property
    def epoch(self) -> int:
        """Epoch of our ownership."""
        ...

    def may_have_run(self, seq: int) -> bool:
        """Return whether another host may have begun the mail with this sequence."""
        ...

    def suspects_crash(self, seq: int) -> bool:
        """Return whether the host that had this mail before died."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether it is another's."""
        ...

    @property
    def is_moving(self) -> bool:
        """Whether we give it to another worker, or have done so: it was not taken from us."""
        ...

    async def is_ours(self) -> bool:
        """Return whether we still own it, asking the broker when our own beats do not come back."""
        ...

    async def still_runs(self, activation: Staged) -> bool:
        """Return whether an actor in mid-turn may go on here, asking the broker when our own beats do not come back."""
        ...

    def doubt(self) -> None:
        """Look at once whether we still own it: a commit was refused, or another host recorded a step."""
        ...

    def committed(self, key: str, seq: int) -> None:
        """Hear that an actor's record was written, at ``seq``: what stood before can be swept."""
        ...

    def settled(self, activation: Staged) -> None:
        """Hear that the actor's loop came to rest."""
        ...


class Stays(Protocol):
    """What keeps a resident actor awake, as the parts around it see it; ``Resident`` is one."""

    def look(self) -> None:
        """See that its object is there while it should be, and gone when it should not."""
        ...

    async def ready(self) -> Actor:
        """Return the object, when it has been started.

        Raises:
            TurnFencedError: If it is not ours to start any more.
        """
        ...


class Staged(Protocol):
    """An actor in memory, as the part that runs its turns sees it; ``Activation`` is one."""

    address: Address
    kind: ActorType
    owner: Owner
    mailbox: Mailbox
    turn: Turn | None
    is_leaving: bool
    held_by: str | None
    resident: Stays | None
    services: Services

    @property
    def is_busy(self) -> bool:
        """Whether its loop runs."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether somebody else runs it, or is about to: no further turn begins here."""
        ...

    @property
    def is_dropped(self) -> bool:
        """Whether it was thrown away, with the turn under way."""
        ...

    async def may_begin(self) -> bool:
        """Return whether a step of the turn under way may begin here."""
        ...

    def doubt(self) -> None:
        """Hear that another host has recorded a step of the turn under way."""
        ...

    @property
    def under_way(self) -> int:
        """Sequence of the mail that is being handled, 0 when none is."""
        ...

    async def may_go_on(self) -> bool:
        """Return whether the mail under way may be attempted again here.

        Raises:
            BusError: If that cannot be found out now.
        """
        ...

    def wake(self) -> None:
        """Let the loop look whether a mail may be handled."""
        ...

    @property
    def known(self) -> StateRecord:
        """The record that stands."""
        ...

    async def commit(
        self,
        applied: Sequence[int],
        *,
        to: Sequence[tuple[Mail, Reply]] = (),
        writes: Sequence[Write] = (),
        remembers: bool = True,
        changes: Mapping[str, object] | None = None,
    ) -> None:
        """Write the next record; a function among the ``changes`` is given the one before it.

        Raises:
            TurnFencedError: If another host has written since.
            CallboardError: If it can never be stored.
        """
        ...

    async def ensure_read(self) -> None:
        """Read the record if it was not read yet.

        Raises:
            BusError: If it cannot be read now.
            StateDecodeError: If it is none.
        """
        ...

    def fenced(self) -> None:
        """Hear that a commit was refused because another host has written since."""
        ...

    async def letter(self, mail: Mail, failure: Failure, *, attempts: int) -> None:
        """Store a mail's dead letter.

        Raises:
            BusError: If it can never be stored.
        """
        ...

    async def answer(self, mail: Mail, reply: Reply) -> None:
        """Send an answer to whoever waits for one."""
        ...

    async def bury(
        self,
        mail: Mail,
        failure: Failure,
        *,
        attempts: int,
        cause_seq: int | None = None,
        changes: Mapping[str, object] | None = None,
        writes: Sequence[Write] = (),
    ) -> None:
        """Make a dead letter of a mail and go on after it."""
        ...

    async def new_actor(self) -> Actor:
        """Return an instance with the state that stands.

        Raises:
            CallboardError: If the state does not fit the class, or cannot be read now.
        """
        ...
