"""``@migrate``: how a stored state of an older layout becomes one of the present."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from callboard.runtime.errors import ActorDefinitionError, MigrationError

Migration = Callable[[dict[str, Any]], dict[str, Any]]

_MARK = "__callboard_migrates__"


def migrate(version: int, /) -> Callable[[Migration], staticmethod[[dict[str, Any]], dict[str, Any]]]:
    """Make a function in an actor's class bring a state of ``version`` to the next version.

    It takes the stored state as plain values and returns the next version's. It runs when an old state is first loaded;
    the result is stored by the commit of that turn, so it may run again and must do nothing else. With ``version=3`` on
    the class, ``@migrate(1)`` and ``@migrate(2)`` run one after the other.

    Raises:
        ActorDefinitionError: If the version is not 1 or more, or this is no function of one value.
    """
    if not _is_version(version):
        message = f"@migrate({version!r}): name the version it starts from, 1 or more, such as @migrate(1)"
        raise ActorDefinitionError(message)

    def wrap(function: Migration) -> staticmethod[[dict[str, Any]], dict[str, Any]]:
        inner = _plain(function)
        if not inspect.isfunction(inner):
            message = f"@migrate({version}) belongs above a function that takes the old state and returns the new one"
            raise ActorDefinitionError(message)
        setattr(inner, _MARK, version)
        return staticmethod(inner)

    return wrap


def collect(cls: type, *, version: int) -> dict[int, Migration]:
    """Return the migrations of a class by the version that each starts from; a subclass's own come first.

    Raises:
        ActorDefinitionError: If two start from one version, or one from the class's own or a later one.
    """
    found: dict[int, Migration] = {}
    for base in cls.__mro__:
        own: dict[int, Migration] = {}
        for name, value in vars(base).items():
            function = _plain(value)
            start = getattr(function, _MARK, None)
            if not isinstance(start, int):
                continue
            if start in own:
                message = f"{base.__qualname__}: two migrations start from version {start}; {name} is the second"
                raise ActorDefinitionError(message)
            if start >= version:
                message = (
                    f"{cls.__qualname__}.{name} migrates from version {start} and the class has version={version}: "
                    f"write version={start + 1} on the class"
                )
                raise ActorDefinitionError(message)
            own[start] = function
        found = {**own, **found}
    return found


def bring(
    state: dict[str, Any], migrations: Mapping[int, Migration], *, since: int, to: int, what: str
) -> dict[str, Any]:
    """Return a plain state brought from one version to another, one step after the other.

    Args:
        state: The stored state; it is changed by migrations that work in place.
        migrations: By the version that each starts from.
        since: Version of ``state``.
        to: Version wanted.
        what: Whose state it is, for the message.

    Raises:
        MigrationError: If a step is missing, fails, or returns no dict.
    """
    for version in range(since, to):
        step = migrations.get(version)
        if step is None:
            message = (
                f"{what}: the stored state has version {since}, the class {to}, and there is no migration from "
                f"{version}: add @migrate({version}); the stored state is untouched"
            )
            raise MigrationError(message)
        try:
            state = step(state)
        except Exception as error:
            message = (
                f"{what}: the migration from version {version} failed: {type(error).__name__}: {error}; "
                f"the stored state is untouched"
            )
            raise MigrationError(message) from error
        _check_dict(state, f"{what}: the migration from version {version} returned")
    return state


def _plain(function: Any) -> Any:  # noqa: ANN401 - whatever stands in a class
    return function.__func__ if isinstance(function, staticmethod) else function


def _is_version(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_dict(value: object, what: str) -> None:
    if not isinstance(value, dict):
        message = f"{what} {type(value).__name__}: return the new state as a dict; the stored state is untouched"
        raise MigrationError(message)
