"""What the engine asks of an actor's class: which handler, how to decode, how to load and store its state."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

import msgspec
from msgspec import Raw, UnsetType

from callboard.runtime import codec
from callboard.runtime.actor import handler as marked
from callboard.runtime.actor import message, migration
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import EVERY_PREFIX, Handler
from callboard.runtime.actor.message import Shape
from callboard.runtime.actor.options import ActorOptions
from callboard.runtime.errors import (
    ActorDefinitionError,
    ConfigError,
    DecodeError,
    EncodeError,
    MigrationError,
    StateDecodeError,
    UnknownMessageError,
)
from callboard.runtime.near import near

FINGERPRINT_DIGITS = 16
_KNOWN = "_callboard_type"


class ActorType:
    """An actor's class as the engine sees it. Made once per class: ``ActorType.of(cls)``.

    Attributes:
        name: Name of the type, the first half of its actors' addresses.
        cls: The class.
        options: All numbers, and ``capabilities`` and ``version``.
        handlers: Message handlers by the name of their message type on the wire.
        every: Periodic handlers by ``every:<method>``.
        fingerprint: Short hash of handler names, the JSON schemas of messages and state, and the state's version: two
            hosts with one fingerprint run classes that understand each other. "" before ``prepare``.
    """

    def __init__(self, cls: type[Actor]) -> None:
        """Use ``ActorType.of``.

        Raises:
            ActorDefinitionError: If the class is abstract.
        """
        if cls.is_abstract:
            problem = f"{cls.__qualname__} is abstract and cannot be hosted: host a class that extends it"
            raise ActorDefinitionError(problem)
        self.cls = cls
        self.name = cls.actor_name
        self.options: ActorOptions = cls.actor_options
        self.capabilities = self.options.capabilities
        self.version = self.options.version
        self.handlers: Mapping[str, Handler] = {}
        self.every: Mapping[str, Handler] = {}
        self.fingerprint = ""
        self._aliases: dict[str, Handler] = {}
        self._migrations: Mapping[int, migration.Migration] = {}
        self._state: Shape | None = None
        self._is_prepared = False

    @classmethod
    def of(cls, actor: type[Actor]) -> ActorType:
        """Return the type of a class, prepared; the same object for every call.

        Raises:
            ActorDefinitionError: As ``prepare``.
        """
        found = vars(actor).get(_KNOWN)
        if not isinstance(found, ActorType):
            found = cls(actor)
            found.prepare()
            # on the class itself: one that is loaded anew takes it along when it goes
            setattr(actor, _KNOWN, found)
        return found

    def __repr__(self) -> str:
        """Return name and class."""
        return f"<ActorType {self.name} {self.cls.__module__}.{self.cls.__qualname__}>"

    def prepare(self) -> None:
        """Resolve annotations and build decoders, so that what is wrong is found at start and not by the first mail.

        Raises:
            ActorDefinitionError: Naming class, method and reason.
        """
        if self._is_prepared:
            return
        handlers, every = marked.collect(self.cls, is_final=True)
        for found in handlers.values():
            found.shape = self._shape(found.kind, f"{found.method}: its message type")
        self._aliases = _aliases(handlers)
        self._state = self._state_shape()
        self._migrations = migration.collect(self.cls, version=self.version)
        self._check_init()
        self.handlers = MappingProxyType(handlers)
        self.every = MappingProxyType(every)
        self.fingerprint = self._fingerprint()
        self._is_prepared = True

    # --- messages

    def select(self, type_name: str | None, data: bytes, content_type: str | None = None) -> tuple[Handler, bytes]:
        """Return the handler of a payload, and the part of the payload that is its message.

        The type's name (header ``Cb-Type``) wins. Without one: a body ``{"type": "Ask", "data": …}`` for a handler of
        that name; else the only handler; else the only one whose type fits exactly, with every required field and no
        unknown one; else a handler of a plain type (``dict``, ``Any``) that fits. Plain ones also take what has an
        unknown name. A periodic handler is picked by its name alone.

        Args:
            type_name: Name of the message type, None when the sender did not say.
            data: The payload.
            content_type: Its ``Content-Type``; None for JSON.

        Raises:
            UnknownMessageError: If no handler fits, or more than one; names those that exist.
            DecodeError: If it had to be looked at and is malformed.
        """
        if type_name is not None:
            found = self._named(type_name)
            if found is not None:
                return found, data
            fallback = self._fallback(data, content_type, message.plain(data, content_type))
            if fallback is not None:
                return fallback, data
            problem = f"{self.name} has no handler for {type_name[:128]!r}"
            raise self._unknown(problem, said=type_name)
        envelope = message.open_envelope(data, content_type)
        if envelope is not None:
            found = self._named(envelope[0])
            if found is not None:
                return found, envelope[1]
        if len(self.handlers) == 1:
            return next(iter(self.handlers.values())), data
        return self._fitting(data, content_type), data

    def decode(self, handler: Handler, type_name: str | None, data: bytes, content_type: str | None = None) -> object:
        """Return the message in the payload that ``select`` returned. Fields unknown to its type are left out.

        None for a periodic handler, which takes no message.

        Raises:
            DecodeError: If it does not fit the handler's type.
        """
        if handler.shape is None:
            return None
        try:
            return handler.shape.decode(data, content_type)
        except DecodeError as error:
            sent = "" if type_name is None or type_name == handler.name else f" (sent as {type_name[:128]!r})"
            problem = f"{self.name}, message {handler.name}{sent}: {error}"
            raise DecodeError(problem) from error

    # --- state

    def numbers(self, count: int) -> Sequence[int]:
        """Return the partitions, of ``count``, that its actors are in: all, or those of its residents."""
        residents = self.options.residents
        if not residents:
            return range(count)
        return sorted({Address(self.name, key).partition(count) for key in residents})

    @property
    def has_state(self) -> bool:
        """Whether its actors have a state."""
        return self.cls.State is not None

    def new_state(self) -> object:
        """Return the state of an actor that has none yet; None without a ``State`` class."""
        return None if self._state is None else self.cls.State()

    def load_state(self, raw: Raw | UnsetType, schema: int) -> object:
        """Return a stored state, migrated to this class's version if it is older. What is stored stays as it is.

        Args:
            raw: The state as JSON, UNSET when none was ever stored.
            schema: Version that it was stored with.

        Raises:
            StateDecodeError: If it does not fit the class, or is of a newer version than this host's class.
            MigrationError: If a migration is missing or fails.
        """
        if not isinstance(raw, Raw):
            return self.new_state()
        data = bytes(raw)
        if schema > self.version:
            problem = (
                f"{self.name}: the stored state has version {schema}, this host's class {self.version}: "
                f"upgrade this host"
            )
            raise StateDecodeError(problem)
        if self._state is None:
            if data == b"null":
                return None
            problem = f"{self.name} has a stored state and its class no State: declare one, or State = dict to keep it"
            raise StateDecodeError(problem)
        if schema < self.version:
            return self._migrated(self._state, data, schema)
        try:
            return self._state.decode(data)
        except DecodeError as error:
            problem = (
                f"{self.name}: the stored state does not fit State: {error}; give new fields a default, or raise the "
                f"class's version and add @migrate({self.version})"
            )
            raise StateDecodeError(problem) from error

    def dump_state(self, state: object) -> bytes:
        """Return a state as JSON. It is read back once, so that no turn stores what the next one cannot load.

        Raises:
            EncodeError: If it has no JSON form or does not fit the ``State`` class any more.
        """
        if self._state is None:
            if state is not None:
                problem = f"{self.name} has no State class, so nothing of self.state would last: declare one"
                raise EncodeError(problem)
            return b"null"
        data = codec.encode(state)
        try:
            self._state.decode(data)
        except DecodeError as error:
            problem = f"{self.name}: the turn left a state that does not fit its class: {error}"
            raise EncodeError(problem) from error
        return data

    def new(self, address: Address) -> Actor:
        """Return a new object for an address, with a fresh state; ``load_state`` gives the stored one."""
        actor = self.cls.__new__(self.cls)
        # before the class's own __init__, which may ask for it and need not call ours
        actor._address = address  # noqa: SLF001 - the engine's side of this class
        actor.state = self.new_state()
        actor.__init__()  # type: ignore[misc] # as above
        return actor

    # --- inside

    def _named(self, name: str) -> Handler | None:
        found = self.handlers.get(name) or self._aliases.get(name)
        return self.every.get(name) if found is None and name.startswith(EVERY_PREFIX) else found

    def _fitting(self, data: bytes, content_type: str | None) -> Handler:
        body = message.plain(data, content_type)
        named = [
            found
            for found in self.handlers.values()
            if found.shape is not None and found.is_named and found.shape.fits(data, content_type, body)
        ]
        if len(named) == 1:
            return named[0]
        if named:
            names = " and ".join(sorted(found.name for found in named))
            problem = f"{self.name}: the message does not say its type and fits {names}"
            raise self._unknown(problem)
        fallback = self._fallback(data, content_type, body)
        if fallback is None:
            problem = f"{self.name}: the message does not say its type and fits no handler exactly"
            raise self._unknown(problem)
        return fallback

    def _fallback(self, data: bytes, content_type: str | None, body: object) -> Handler | None:
        """Return the handler of a plain type that fits; ``Any``, which fits everything, comes last."""
        plain = [found for found in self.handlers.values() if found.shape is not None and not found.is_named]
        for found in sorted(plain, key=lambda found: found.kind is Any or found.kind is object):
            if found.shape is not None and found.shape.fits(data, content_type, body):
                return found
        return None

    def _unknown(self, what: str, *, said: str | None = None) -> UnknownMessageError:
        """Return the error that tells what can be sent and how to name it, the sender having ``said`` a name."""
        names = tuple(sorted(self.handlers))
        if not names:
            return UnknownMessageError(f"{what}; it handles no messages, only times")
        meant = near(said, names, count=1) if said is not None else []
        name = meant[0] if meant else names[0]
        known = f"it handles {', '.join(names)}" + (f" - did you mean {name}?" if meant else ".")
        how = (
            f'Send an object of such a class, or plain values and the name: type="{name}"; in a plain publish '
            f'{{"type": "{name}", "data": ...}} or a header Cb-Type'
        )
        return UnknownMessageError(f"{what}; {known} {how}", handlers=names)

    def _migrated(self, state: Shape, data: bytes, schema: int) -> object:
        try:
            old = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem = f"{self.name}: the stored state is no JSON: {error}"
            raise StateDecodeError(problem) from error
        new = migration.bring(old, self._migrations, since=schema, to=self.version, what=self.name)
        try:
            return state.decode(codec.encode(new))
        except (DecodeError, EncodeError) as error:
            problem = (
                f"{self.name}: the state migrated from version {schema} does not fit State: {error}; "
                f"the stored state is untouched"
            )
            raise MigrationError(problem) from error

    def _shape(self, kind: object, what: str) -> Shape:
        try:
            return Shape(kind)
        except (TypeError, NameError, NotImplementedError) as error:
            problem = f"{self.cls.__qualname__}.{what} {message.name_of(kind)} cannot be decoded into: {error}"
            raise ActorDefinitionError(problem) from error

    def _state_shape(self) -> Shape | None:
        kind = self.cls.State
        if kind is None:
            return None
        shape = self._shape(kind, "State:")
        reason = _lack(kind)
        try:
            if not reason:
                shape.decode(codec.encode(kind()))
        except Exception as error:  # noqa: BLE001 - the class's own code
            reason = f"State() fails: {error}"
        if reason:
            problem = f"{self.cls.__qualname__}.State cannot start an actor: {reason}; give every field a default"
            raise ActorDefinitionError(problem)
        return shape

    def _check_init(self) -> None:
        try:
            inspect.signature(self.cls.__init__).bind(None)
        except TypeError as error:
            problem = f"{self.cls.__qualname__}.__init__ {error}: actors are made without arguments, by their address"
            raise ActorDefinitionError(problem) from error

    def _fingerprint(self) -> str:
        facts = {
            "name": self.name,
            "version": self.version,
            "state": None if self._state is None else self._state.schema(),
            "handlers": {name: found.shape.schema() for name, found in self.handlers.items() if found.shape},
            "every": {name: [found.rule, found.time_zone] for name, found in self.every.items()},
        }
        return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()[:FINGERPRINT_DIGITS]


def find_actors(module: ModuleType) -> list[type[Actor]]:
    """Return the actor classes a module holds at its top level, by name.

    Left out are abstract ones, and imported ones that serve as base of a class of this module.

    Raises:
        ConfigError: If two of them have the same name.
    """
    classes = {value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Actor)}
    found: dict[str, type[Actor]] = {}
    for cls in classes:
        is_base = cls.__module__ != module.__name__ and any(
            other is not cls and issubclass(other, cls) for other in classes if other.__module__ == module.__name__
        )
        if cls.is_abstract or is_base:
            continue
        if cls.actor_name in found:
            names = " and ".join(sorted([cls.__qualname__, found[cls.actor_name].__qualname__]))
            problem = f"module {module.__name__}: the actors {names} are both named {cls.actor_name!r}: rename one"
            raise ConfigError(problem)
        found[cls.actor_name] = cls
    return [found[name] for name in sorted(found)]


def with_companions(classes: Sequence[type[Actor]]) -> list[type[Actor]]:
    """Return the classes and all their companions, those of companions too, each once; the given ones come first.

    Raises:
        ActorDefinitionError: If ``companions`` holds something else than actor classes, or one has the name of another
            class.
    """
    found = list(dict.fromkeys(classes))
    for cls in found:
        # grows while it is walked through
        found += [each for each in dict.fromkeys(_companions(cls)) if each not in found]
    names = {cls.actor_name: cls for cls in reversed(found)}
    for cls in found[len(set(classes)) :]:
        other = names[cls.actor_name]
        if other is not cls:
            problem = (
                f"the actor type {cls.actor_name!r} is taken by {cls.__module__}.{cls.__qualname__}, which others "
                f"need beside them: rename {other.__module__}.{other.__qualname__}"
            )
            raise ActorDefinitionError(problem)
    return found


def _companions(cls: type[Actor]) -> Sequence[type[Actor]]:
    given: object = cls.companions
    if not isinstance(given, (list, tuple)) or not all(isinstance(e, type) and issubclass(e, Actor) for e in given):
        problem = f"{cls.__qualname__}.companions is {given!r:.200}: give a list of actor classes"
        raise ActorDefinitionError(problem)
    return given


def _aliases(handlers: Mapping[str, Handler]) -> dict[str, Handler]:
    """Return handlers with a name of their own by the name of their class, where only one goes by it."""
    found: dict[str, Handler] = {}
    twice = set(handlers)
    for handler in handlers.values():
        if handler.shape is None or not handler.is_named or handler.shape.name == handler.name:
            continue
        name = handler.shape.name
        if name in found:
            twice.add(name)
        found[name] = handler
    return {name: handler for name, handler in found.items() if name not in twice}


def _lack(kind: Any) -> str:  # noqa: ANN401 - a class of the user's
    """Return which fields keep ``State()`` from being made; a TypedDict would be made without them."""
    if dataclasses.is_dataclass(kind):
        needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        needed = [f.name for f in msgspec.structs.fields(kind) if f.required]
    elif hasattr(kind, "__required_keys__"):
        needed = sorted(kind.__required_keys__)
    else:
        return ""
    return f"it needs {', '.join(needed)}" if needed else ""
