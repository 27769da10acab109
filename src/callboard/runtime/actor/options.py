"""What stands in an actor's class statement beside its bases: name, capabilities and numbers, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from msgspec import Struct, structs

from callboard.runtime import subjects
from callboard.runtime.actor.address import Address, check_type, parse
from callboard.runtime.actor.handler import check_retry, check_seconds
from callboard.runtime.actor.recovery import Recovery
from callboard.runtime.actor.recovery import checked as check_recovery
from callboard.runtime.capability import Capability
from callboard.runtime.errors import ActorDefinitionError, ConfigError, InvalidNameError
from callboard.runtime.retry import RetryPolicy

MailboxPolicy = Literal["reject", "park", "drop"]

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LEAST = {
    "version": 1,
    "mailbox_cap": 1,
    "restart_budget": 0,
    "poison_limit": 1,
    "state_limit_bytes": 1,
    "max_chain": 1,
    "weight": 1,
}


class ActorOptions(Struct, frozen=True, kw_only=True):
    """What an actor's class statement says. A subclass takes over what it does not say itself.

    Attributes:
        capabilities: What it may be asked for by name, beside its address.
        labels: What the registry tells of its actors, for selection.
        weight: Requests that one actor can do at once, for its share of work; a turn runs alone, so it is 1 by default.
        residents: Keys of actors that are kept awake: whoever owns the partition of one makes its object, runs
            ``on_start`` without waiting for mail, and ``on_stop`` when the partition goes elsewhere. A type with
            residents has no other actors.
        version: Version of its state's layout; ``@migrate`` brings older states to it.
        idle_s: After so long without mail its object is forgotten; nothing stored changes. None for the host's setting.
        retry: What follows when an attempt at a turn fails. The next one is made in place, before any later mail.
        turn_timeout_s: Longest time of one attempt; None for no limit.
        mailbox_cap: Mails that may wait, or None for the host's setting.
        mailbox_policy: What happens to more: ``reject`` answers with an error, ``park`` keeps them aside, ``drop``
            forgets those of droppable handlers.
        restart_budget: Restarts within ``restart_window_s``; after one more failure it waits for a person. The default
            is more than ``poison_limit`` mails use up by default, so that such mail is buried before.
        restart_window_s: The window of the budget.
        poison_limit: Mails in a row that may become dead letters before it waits for a person.
        state_limit_bytes: Largest state as JSON; a turn that leaves more is not committed. None for the host's setting.
        max_chain: Turns that may lead to one another before the chain is cut.
        recovery: What a host does with a turn that another had begun: ``resume`` from its journal, ``restart`` it but
            for its steps with ``once=True``, or what a function of a ``Begun`` returns.
        supervisor: Address, ``type/key``, of the actor that is told ``ActorFailed`` when this one fails; None for
            nobody. It is told in the commit that fails this one.
    """

    capabilities: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    weight: int = 1
    residents: tuple[str, ...] = ()
    version: int = 1
    idle_s: float | None = None
    retry: RetryPolicy = RetryPolicy()
    turn_timeout_s: float | None = None
    mailbox_cap: int | None = None
    mailbox_policy: MailboxPolicy = "reject"
    restart_budget: int = 10
    restart_window_s: float = 60.0
    poison_limit: int = 3
    state_limit_bytes: int | None = None
    max_chain: int = 50
    recovery: Recovery = "resume"
    supervisor: Address | None = None


def checked(cls: type, given: Mapping[str, Any], *, base: ActorOptions) -> ActorOptions:
    """Return a class's options: those given, and the rest from the class it extends.

    Raises:
        ConfigError: If a value is out of range.
        ActorDefinitionError: If the capabilities are no list of names.
    """
    where = f"actor {cls.__qualname__}"
    values = dict(given)
    if "capabilities" in values:
        values["capabilities"] = _capabilities(values["capabilities"], where)
    if "residents" in values:
        values["residents"] = _residents(values["residents"], where)
    if "labels" in values:
        values["labels"] = _labels(values["labels"], where)
    for name in ("idle_s", "turn_timeout_s", "restart_window_s"):
        if values.get(name) is not None:
            check_seconds(values[name], what=f"{where}: {name}")
    for name, least in _LEAST.items():
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            message = f"{where}: {name} is {value!r}, take a whole number from {least} on"
            raise ConfigError(message)
    policies = get_args(MailboxPolicy)
    if values.get("mailbox_policy", "reject") not in policies:
        message = f"{where}: mailbox_policy is {values['mailbox_policy']!r}, take one of {', '.join(policies)}"
        raise ConfigError(message)
    if "recovery" in values:
        values["recovery"] = check_recovery(values["recovery"], what=f"{where}: recovery")
    if isinstance(values.get("supervisor"), str):
        values["supervisor"] = _supervisor(values["supervisor"], where)
    if "retry" in values:
        check_retry(values["retry"], what=f"{where}: retry")
    return structs.replace(base, **values)


def type_name(cls: type, name: str | None) -> str:
    """Return an actor type's name: the one given, or the class's own; of ``HttpProbe`` that is ``http-probe``.

    Raises:
        ActorDefinitionError: If it cannot be a subject token, or is one of Callboard's own.
    """
    found = _WORDS.sub("-", cls.__name__).lower() if name is None else name
    try:
        return check_type(found)
    except InvalidNameError as error:
        message = f'actor {cls.__qualname__}: {error}; write class {cls.__name__}(Actor, name="...")'
        raise ActorDefinitionError(message) from error


def _supervisor(given: str, where: str) -> Address:
    try:
        return parse(given)
    except InvalidNameError as error:
        message = f"{where}: supervisor: {error}"
        raise ActorDefinitionError(message) from error


def _residents(given: object, where: str) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        message = f'{where}: residents is {given!r}: give a list of keys, such as residents=["main"]'
        raise ActorDefinitionError(message)
    for key in given:
        try:
            subjects.escape(key)
        except (InvalidNameError, TypeError) as error:
            message = f"{where}: residents has {key!r}: {error}"
            raise ActorDefinitionError(message) from error
    return tuple(dict.fromkeys(given))


def _labels(given: object, where: str) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for pair in given.items() for text in pair):
        message = f'{where}: labels is {given!r}: give texts by name, such as labels={{"zone": "eu"}}'
        raise ActorDefinitionError(message)
    return dict(given)


def _capabilities(given: object, where: str) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, (list, tuple, set, frozenset)):
        message = f'{where}: capabilities is {given!r}: give a list of names, such as capabilities=["greet"]'
        raise ActorDefinitionError(message)
    names = [item.name if isinstance(item, Capability) else item for item in given]
    for item in names:
        try:
            subjects.check_name(item, what="capability")
        except (InvalidNameError, TypeError) as error:
            message = f"{where}: capabilities has {item!r}: {error}"
            raise ActorDefinitionError(message) from error
    return tuple(sorted(names) if isinstance(given, (set, frozenset)) else dict.fromkeys(names))
