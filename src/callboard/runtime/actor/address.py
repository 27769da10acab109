"""Who an actor is: its type and its key, written ``type/key``."""

from __future__ import annotations

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.bus.pattern import partition_of
from callboard.runtime.errors import InvalidNameError

# ``cb.event.task.<id>`` is where tasks report progress, ``cb.event.ticket.<id>`` the history of a ticket.
RESERVED_TYPES = frozenset({"task", "ticket", "client"})


class Address(Struct, frozen=True, order=True):
    """One actor. ``str()`` gives ``type/key``; ``parse`` reads it back.

    Attributes:
        type: Subject token, ``[a-z0-9_-]``, at most 64 bytes.
        key: Any text of 1 to 256 bytes of UTF-8.
    """

    type: str
    key: str

    def __str__(self) -> str:
        """Return ``type/key``."""
        return f"{self.type}/{self.key}"

    @property
    def token(self) -> str:
        """The key as one subject token."""
        return subjects.escape(self.key)

    def partition(self, count: int) -> int:
        """Return the partition, 0 to ``count - 1``, that the broker files this actor's mail under."""
        return partition_of(count, self.type, self.token)


def parse(text: str) -> Address:
    """Return the address that ``type/key`` names; the key may hold further slashes.

    Raises:
        InvalidNameError: If there is no slash, or type or key cannot be used.
    """
    kind, slash, key = text.partition("/")
    if not slash:
        message = f"{text[:80]!r} is no address: write <type>/<key>, for example greeter/ann"
        raise InvalidNameError(message, name=text)
    return checked(kind, key)


def of(given: object) -> Address:
    """Return an address that came as one, or as text.

    Raises:
        InvalidNameError: If it is neither, or a text that names none; says which.
    """
    if isinstance(given, Address):
        return given
    if isinstance(given, str):
        return parse(given)
    shown = f"{type(given).__name__} {repr(given)[:80]}" if given is not None else "None"
    message = f"an actor's address is text, <type>/<key>, for example 'greeter/ann', or an Address; got {shown}"
    raise InvalidNameError(message, name=repr(given)[:80])


def checked(kind: str, key: str) -> Address:
    """Return the address of a type and a key.

    Raises:
        InvalidNameError: If one of them cannot be used.
    """
    check_type(kind)
    subjects.escape(key)
    return Address(kind, key)


def check_type(kind: str) -> str:
    """Return an actor type's name if it can be used.

    Raises:
        InvalidNameError: If it is no subject token, or one that Callboard uses itself.
    """
    subjects.check_name(kind, what="actor type")
    if kind in RESERVED_TYPES:
        message = f"actor type {kind!r} is taken by Callboard itself: choose another name"
        raise InvalidNameError(message, name=kind)
    return kind
