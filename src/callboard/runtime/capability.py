"""A capability: a plain function that worker pools serve and anybody may submit tasks to."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints, overload

import msgspec

from callboard.runtime import codec
from callboard.runtime.context import TaskContext
from callboard.runtime.errors import ConfigError, DecodeError, InputError, ModuleLoadError
from callboard.runtime.labels import fits, split
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.subjects import check_name

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_CONCURRENCY = 8
MAX_CONCURRENCY = 4096
DEFAULT_POOL = "default"
_CONTEXT = object()


class Capability(Generic[P, R]):
    """What ``@capability`` makes of a function. Calling it runs the function here, in this process, as it is.

    Attributes:
        name: The subject token under which tasks are submitted.
        concurrency: Slots per worker process, or None for the worker's own setting.
        timeout_s: Longest time of one run, or None for no limit.
        retry: What follows when a run fails.
        has_own_retry: False when it named none, so that the worker's settings may give one.
        pool: Name of the pool that serves it. ``default`` is served by every pool: a worker started with ``--pool``
            serves that pool's capabilities and those that name none.
        labels: A worker serves it only if it bears all of these.
        actor_type: Actor type whose actors do it, "" for a plain function.
        is_async: False when the function is synchronous and runs in a thread.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str,
        concurrency: int | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        pool: str = DEFAULT_POOL,
        labels: Mapping[str, str] | None = None,
        actor_type: str = "",
    ) -> None:
        """Use the decorator ``capability`` instead."""
        self.actor_type = actor_type
        self.name = check_name(name, what="capability")
        self.pool = check_name(pool, what="pool")
        self.labels = dict(labels or {})
        if split(name)[1]:
            message = f"capability {name!r} has the form of a pool by label: take another name, or labels=..."
            raise ConfigError(message)
        if concurrency is not None and not 1 <= concurrency <= MAX_CONCURRENCY:
            message = f"capability {name!r}: concurrency is {concurrency}, take 1 to {MAX_CONCURRENCY}"
            raise ConfigError(message)
        if timeout_s is not None and not timeout_s > 0:
            message = f"capability {name!r}: timeout_s is {timeout_s}, take more than 0 or None for no limit"
            raise ConfigError(message)
        self.function = function
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.has_own_retry = retry is not None
        self.retry = retry or RetryPolicy()
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        self._bind: Callable[[bytes, str | None], tuple[tuple[object, ...], dict[str, object]]] | None = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here; no task is made. Use ``Client.call`` to have a worker run it."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        """Return name and pool."""
        return f"<Capability {self.name} pool={self.pool}>"

    def bind(self, data: bytes, content_type: str | None) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return the function's arguments from a payload. A ``TaskContext`` parameter is filled at the call.

        Raises:
            DecodeError: If the payload is malformed or does not fit the signature.
        """
        if self._bind is None:
            self._bind = _binder(self.function, self.name)
        return self._bind(data, content_type)

    def renamed(self, name: str) -> Capability[P, R]:
        """Return it under another name, that of a pool by label."""
        other = copy.copy(self)
        other.name = name
        return other

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of its payload; of a type that has none, an empty one.

        Raises:
            ConfigError: If an annotation cannot be resolved.
        """
        fields, _ = _fields(self.function, self.name)
        try:
            if len(fields) == 1:
                return msgspec.json.schema(fields[0][1])
            return msgspec.json.schema(msgspec.defstruct("Arguments", [(n, k) for n, k, _ in fields], kw_only=True))
        except (TypeError, ValueError, NotImplementedError):
            return {}

    def prepare(self) -> None:
        """Resolve the annotations now, so that a wrong one is found at start and not by the first task.

        Raises:
            ConfigError: If an annotation cannot be resolved or decoded into.
        """
        self._bind = _binder(self.function, self.name)


@overload
def capability(name: Callable[P, R], /) -> Capability[P, R]: ...


@overload
def capability(
    name: str | None = None,
    /,
    *,
    concurrency: int | None = None,
    timeout_s: float | None = None,
    retry: RetryPolicy | None = None,
    pool: str = DEFAULT_POOL,
    labels: Mapping[str, str] | None = None,
) -> Callable[[Callable[P, R]], Capability[P, R]]: ...


def capability(
    name: str | Callable[..., Any] | None = None,
    /,
    *,
    concurrency: int | None = None,
    timeout_s: float | None = None,
    retry: RetryPolicy | None = None,
    pool: str = DEFAULT_POOL,
    labels: Mapping[str, str] | None = None,
) -> Any:
    """Make a function a capability.

    A handler may run twice: after a crash of its worker the task is run again. Make outside effects idempotent; the
    task's id (``current_task().id``) is a good key.

    Args:
        name: Subject token, ``[a-z0-9_-]``; the function's name when omitted.
        concurrency: Slots per worker process; default: the worker's ``--concurrency``.
        timeout_s: Longest time of one run in seconds; default: no limit.
        retry: Attempts and gaps; default: 3 attempts, 2 and 4 s apart.
        pool: Pool that serves it.
        labels: Only workers that bear all of these (``--labels gpu=yes``) serve it; others leave it alone.

    Raises:
        InvalidNameError: If the name cannot be a subject token.
        ConfigError: If a number is out of range.
    """

    def wrap(function: Callable[..., Any]) -> Capability[..., Any]:
        own_name = name if isinstance(name, str) else getattr(function, "__name__", "")
        return Capability(
            function,
            name=own_name,
            concurrency=concurrency,
            timeout_s=timeout_s,
            retry=retry,
            pool=pool,
            labels=labels,
        )

    return wrap(name) if callable(name) else wrap


def find_capabilities(module: ModuleType) -> list[Capability[..., Any]]:
    """Return the capabilities a module holds at its top level, by name.

    An object whose class has ``__callboard_capability__`` stands for the capability there, or for none.

    Raises:
        ConfigError: If two of them have the same name.
    """
    found: dict[str, Capability[..., Any]] = {}
    for held in vars(module).values():
        # asked of the class: an object that answers to any name at all stands for nothing
        value = held.__callboard_capability__ if hasattr(type(held), "__callboard_capability__") else held
        if not isinstance(value, Capability):
            continue
        if value.name in found and found[value.name] is not value:
            message = f"module {module.__name__} has two capabilities named {value.name!r}: rename one"
            raise ConfigError(message)
        found[value.name] = value
    return [found[name] for name in sorted(found)]


def _binder(
    function: Callable[..., Any], name: str
) -> Callable[[bytes, str | None], tuple[tuple[object, ...], dict[str, object]]]:
    fields, contexts = _fields(function, name)
    try:
        return _bind_to(fields, contexts)
    except (TypeError, NotImplementedError) as error:
        message = f"capability {name!r}: a parameter's type cannot be decoded into: {error}"
        raise ConfigError(message) from error


def _fields(function: Callable[..., Any], name: str) -> tuple[list[tuple[str, Any, Any]], dict[str, object]]:
    """Return name, type and default of each parameter that comes in a payload, and those that get the context."""
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(function)
    except (NameError, TypeError, ValueError) as error:
        message = f"capability {name!r}: its annotations cannot be resolved: {error}"
        raise ConfigError(message) from error
    fields: list[tuple[str, Any, Any]] = []
    contexts: dict[str, object] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            if parameter.kind is parameter.POSITIONAL_ONLY:
                message = f"capability {name!r}: parameter {parameter.name!r} is positional only; give it a plain name"
                raise ConfigError(message)
            continue
        kind = hints.get(parameter.name, Any)
        if kind is object:
            # anything at all, said in the stricter way
            kind = Any
        if kind is TaskContext:
            contexts[parameter.name] = _CONTEXT
        else:
            fields.append((parameter.name, kind, parameter.default))
    return fields, contexts


def _bind_to(
    fields: list[tuple[str, Any, Any]], contexts: dict[str, object]
) -> Callable[[bytes, str | None], tuple[tuple[object, ...], dict[str, object]]]:
    if not fields:
        anything = codec.decoder(Any)

        def bind_none(data: bytes, content_type: str | None) -> tuple[tuple[object, ...], dict[str, object]]:
            if data:
                anything(data, content_type)
            return (), contexts

        return bind_none
    if len(fields) == 1:
        only, kind, default = fields[0]
        decode = codec.decoder(kind)
        context_names = tuple(contexts)

        def bind_one(data: bytes, content_type: str | None) -> tuple[tuple[object, ...], dict[str, object]]:
            if not data and default is not inspect.Parameter.empty:
                return (), contexts
            value = decode(data, content_type)
            return ((value,), contexts) if not context_names else ((), {only: value, **contexts})

        return bind_one
    struct = msgspec.defstruct(
        "Arguments",
        [(n, k) if d is inspect.Parameter.empty else (n, k, msgspec.UNSET) for n, k, d in fields],
        kw_only=True,
    )
    decode_all = codec.decoder(struct)

    def bind_many(data: bytes, content_type: str | None) -> tuple[tuple[object, ...], dict[str, object]]:
        value = decode_all(data or b"{}", content_type)
        given = {n: v for n, _, _ in fields if (v := getattr(value, n)) is not msgspec.UNSET}
        return (), {**given, **contexts}

    return bind_many


def fill_context(kwargs: dict[str, object], context: TaskContext) -> dict[str, object]:
    """Return ``kwargs`` with the placeholder for a ``TaskContext`` parameter replaced; ``kwargs`` itself if none."""
    if not kwargs:
        return kwargs
    return {name: context if value is _CONTEXT else value for name, value in kwargs.items()}


def served(
    capabilities: Sequence[Capability[..., Any]],
    pool: str | None,
    *,
    has_actors: bool,
    labels: Mapping[str, str] | None = None,
) -> list[Capability[..., Any]]:
    """Return the capabilities that a worker of this pool and with these labels serves.

    Raises:
        ModuleLoadError: If there is nothing to serve.
    """
    wanted = [c for c in capabilities if pool is None or c.pool in (pool, DEFAULT_POOL)]
    fitting = [c for c in wanted if fits(labels or {}, c.labels)]
    if fitting or has_actors:
        return fitting
    pools = sorted({c.pool for c in capabilities})
    if wanted:
        missing = sorted({f"{key}={value}" for c in wanted for key, value in c.labels.items()})
        message = f"every capability here asks for labels that this worker does not bear: --labels {','.join(missing)}"
    elif pools:
        message = f"pool {pool!r} has no capability here; there are the pools {', '.join(pools)}"
    else:
        message = "there is nothing to serve: decorate a function with @capability, or define an Actor"
    raise ModuleLoadError(message)


def as_input_error(error: Exception) -> InputError:
    """Return an error of binding as one of ours, whatever a user's type raised in its constructor."""
    if isinstance(error, InputError):
        return error
    return DecodeError(f"the payload does not fit: {error}")
