"""``@on`` and ``@every``: which method of an actor's class takes which message."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from callboard.runtime.actor import span
from callboard.runtime.actor.message import Shape, name_of
from callboard.runtime.errors import ActorDefinitionError, ConfigError
from callboard.runtime.retry import RetryPolicy

F = TypeVar("F", bound=Callable[..., Any])

EVERY_PREFIX = "every:"
MAX_TYPE_NAME_BYTES = 128

_MARK = "__callboard_mark__"
_UNKNOWN = object()


class Mark:
    """What a decorator noted on a function; the class it stands in makes handlers of it."""

    __slots__ = ("droppable", "kind", "name", "read_only", "retry", "rule", "time_zone", "timeout_s", "word")

    def __init__(self, word: str) -> None:
        """Note nothing yet."""
        self.word = word
        self.name: str | None = None
        self.read_only = False
        self.droppable = False
        self.timeout_s: float | None = None
        self.retry: RetryPolicy | None = None
        self.rule = ""
        self.time_zone: str | None = None
        # the annotation of the message, once it could be resolved
        self.kind: Any = _UNKNOWN


class Handler:
    """One way into an actor: a method and the message type that picks it.

    Attributes:
        name: Name of the message type on the wire; ``every:<method>`` for a periodic handler.
        method: Name of the method. Call it as ``handler(actor, message)``.
        function: The method as it stands in the class.
        read_only: Its turns write nothing and may run again; state changes, tells and timers in them are errors.
        droppable: A full mailbox with the policy ``drop`` may forget its messages.
        timeout_s: Longest time of one attempt in seconds; None for the actor's ``turn_timeout_s``.
        retry: What follows when an attempt fails; None for the actor's.
        is_async: False when it is synchronous and runs in a thread.
        is_stream: Whether it is an async generator, whose parts are a streaming reply.
        rule: Recurrence of a periodic handler as the broker takes it, else "".
        time_zone: IANA name for a cron rule, else None (UTC).
        shape: The message type, taken apart; None before ``ActorType.prepare`` and for periodic handlers.
    """

    __slots__ = (
        "droppable",
        "function",
        "is_async",
        "is_stream",
        "kind",
        "method",
        "name",
        "read_only",
        "retry",
        "rule",
        "shape",
        "time_zone",
        "timeout_s",
    )

    def __init__(self, mark: Mark, function: Callable[..., Any], *, method: str, name: str, kind: Any) -> None:  # noqa: ANN401
        """``collect`` makes these."""
        inner = inspect.unwrap(function)
        self.name = name
        self.method = method
        self.function = function
        self.kind = kind
        self.read_only = mark.read_only
        self.droppable = mark.droppable
        self.timeout_s = mark.timeout_s
        self.retry = mark.retry
        self.rule = mark.rule
        self.time_zone = mark.time_zone
        self.is_stream = inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(inner)
        self.is_async = self.is_stream or inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner)
        self.shape: Shape | None = None

    def __call__(self, actor: object, message: object = None) -> Any:  # noqa: ANN401 - what the method returns
        """Run the method: a coroutine, an async generator for a stream, or the value of a synchronous one."""
        method = getattr(actor, self.method)
        return method() if self.rule else method(message)

    def __repr__(self) -> str:
        """Return name and method."""
        return f"<Handler {self.name} -> {self.method}>"

    @property
    def is_named(self) -> bool:
        """Whether its message type is a class of fields; a handler of a plain type serves what no other takes."""
        return self.shape is not None and self.shape.is_named

    @property
    def doc(self) -> str:
        """The first paragraph of the method's docstring, "" if there is none."""
        return (inspect.getdoc(self.function) or "").partition("\n\n")[0]


@overload
def on(function: F, /) -> F: ...


@overload
def on(
    *,
    name: str | None = None,
    read_only: bool = False,
    timeout_s: float | None = None,
    droppable: bool = False,
    retry: RetryPolicy | None = None,
) -> Callable[[F], F]: ...


def on(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    read_only: bool = False,
    timeout_s: float | None = None,
    droppable: bool = False,
    retry: RetryPolicy | None = None,
) -> Any:
    """Make a method the handler of a message type: the annotation of its first parameter after ``self``.

    The type is a msgspec Struct, a dataclass, a TypedDict or a pydantic model, and its name on the wire is the name of
    the class. A union takes each of its members. A plain type (``str``, ``int``, ``dict``, ``Any``) takes what no
    other handler takes. The method may be asynchronous, synchronous (it then runs in a thread), or an async generator,
    whose parts reach the asker one by one. It may run twice: after a crash its turn is run again, with the steps that
    it had recorded.

    Args:
        function: The method; given by ``@on`` without parentheses.
        name: Name on the wire in place of the class's name, such as ``ask.v1``.
        read_only: It changes nothing, so its turn writes nothing and runs beside others.
        timeout_s: Longest time of one attempt; default: the actor's ``turn_timeout_s``.
        droppable: A full mailbox with the policy ``drop`` may forget its messages.
        retry: Attempts and gaps; default: the actor's.

    Raises:
        ActorDefinitionError: If it is no plain method, or the name cannot stand in a header.
        ConfigError: If a number is out of range.
    """
    mark = Mark("@on")
    if name is not None and not (0 < len(name.encode()) <= MAX_TYPE_NAME_BYTES and name.isprintable()):
        message = f"@on(name={name[:80]!r}): take 1 to {MAX_TYPE_NAME_BYTES} bytes that can be printed"
        raise ActorDefinitionError(message)
    mark.name = name
    mark.read_only = read_only
    mark.droppable = droppable
    return _marker(mark, timeout_s, retry) if function is None else _marker(mark, timeout_s, retry)(function)


def every(
    span_or_seconds: str | float | timedelta | None = None,
    /,
    *,
    cron: str | None = None,
    time_zone: str | None = None,
    timeout_s: float | None = None,
    retry: RetryPolicy | None = None,
) -> Callable[[F], F]:
    """Make a method without a message periodic: the server holds the schedule and mails each firing to the actor.

    An actor has its periodic handlers from its first turn on. A firing missed while the server was down comes with the
    next one; a firing waits its turn like any mail.

    Args:
        span_or_seconds: How often, 1 s at least: ``"90s"``, ``"1h30m"``, or seconds.
        cron: In place of it a line of six fields, seconds first, or ``@daily`` and the like; five fields get a 0.
        time_zone: IANA name, for ``cron``; default: UTC.
        timeout_s: Longest time of one attempt; default: the actor's ``turn_timeout_s``.
        retry: Attempts and gaps; default: the actor's.

    Raises:
        ConfigError: If the rule cannot be used; the message says why.
        ActorDefinitionError: If it is no plain method.
    """
    mark = Mark("@every")
    given: object = span_or_seconds
    if callable(given):
        message = '@every needs to know how often: write @every("1h") or @every(cron="0 0 7 * * *")'
        raise ActorDefinitionError(message)
    if (span_or_seconds is None) == (cron is None):
        message = 'give @every either a span, @every("1h"), or cron="0 0 7 * * *"'
        raise ConfigError(message)
    if time_zone is not None and cron is None:
        message = "@every: time_zone belongs to cron; a span is the same in every zone"
        raise ConfigError(message)
    if cron is not None:
        mark.rule = span.cron_rule(cron, time_zone=time_zone)
        mark.time_zone = time_zone
    elif span_or_seconds is not None:
        mark.rule = span.every_rule(span_or_seconds)
    return _marker(mark, timeout_s, retry)


def collect(
    cls: type, names: Mapping[str, object] | None = None, *, is_final: bool = False
) -> tuple[dict[str, Handler], dict[str, Handler]]:
    """Return a class's message handlers and periodic handlers by name, inherited ones included.

    Args:
        cls: The class.
        names: What its annotations may name beside the globals of their module: locals of an enclosing function.
        is_final: Whether an annotation that cannot be resolved now is an error; else its text stands for it.

    Raises:
        ActorDefinitionError: If two handlers have one name, or a method cannot be a handler.
    """
    handlers: dict[str, Handler] = {}
    periodic: dict[str, Handler] = {}
    for method, function, home in _marked(cls):
        mark: Mark = getattr(function, _MARK)
        if mark.rule:
            _check_method(cls, method, function, takes_message=False)
            name = EVERY_PREFIX + method
            periodic[name] = Handler(mark, function, method=method, name=name, kind=None)
            continue
        parameter = _check_method(cls, method, function, takes_message=True)
        local = {**(names or {}), **vars(home)}
        for kind in _kinds(cls, method, mark, function, parameter, names=local, is_final=is_final):
            name = mark.name or name_of(kind)
            known = handlers.get(name)
            if known is not None:
                message = (
                    f"{cls.__qualname__}: {known.method} and {method} both handle {name!r}: "
                    f"remove one, or give one another name with @on(name=...)"
                )
                raise ActorDefinitionError(message)
            handlers[name] = Handler(mark, function, method=method, name=name, kind=kind)
    return handlers, periodic


def is_marked(value: object) -> bool:
    """Return whether ``@on`` or ``@every`` stands above this function."""
    return hasattr(value, _MARK)


def check_seconds(value: object, *, what: str) -> None:
    """Refuse what cannot be a time limit.

    Raises:
        ConfigError: If it is no number of seconds above 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= span.MAX_SPAN_S:
        message = f"{what} is {value!r}: take seconds, more than 0 and at most ten years"
        raise ConfigError(message)


def check_retry(value: object, *, what: str) -> None:
    """Refuse what is no retry policy.

    Raises:
        ConfigError: Always then.
    """
    if not isinstance(value, RetryPolicy):
        message = f"{what} is {type(value).__name__}: give a RetryPolicy"
        raise ConfigError(message)


def _marker(mark: Mark, timeout_s: float | None, retry: RetryPolicy | None) -> Callable[[F], F]:
    if timeout_s is not None:
        check_seconds(timeout_s, what=f"{mark.word}: timeout_s")
    if retry is not None:
        check_retry(retry, what=f"{mark.word}: retry")
    mark.timeout_s = timeout_s
    mark.retry = retry

    def wrap(function: F) -> F:
        if isinstance(function, (staticmethod, classmethod)) or not inspect.isroutine(function):
            message = f"{mark.word} belongs above a plain method, not above {type(function).__name__}"
            raise ActorDefinitionError(message)
        if is_marked(function):
            message = f"{function.__qualname__} is decorated twice with @on or @every: a union type takes several"
            raise ActorDefinitionError(message)
        # one decorator may be kept and put above several
        setattr(function, _MARK, copy.copy(mark))
        return function

    return wrap


def _marked(cls: type) -> list[tuple[str, Callable[..., Any], type]]:
    """Return marked methods in the order of their definition, base classes first, with the class they stand in."""
    found: dict[str, tuple[str, Callable[..., Any], type]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if is_marked(value):
                found[name] = (name, value, base)
            elif name in found:
                inherited = found.pop(name)
                if value is not None:
                    message = (
                        f"{base.__qualname__}.{name} hides the handler {inherited[2].__qualname__}.{name}: put "
                        f"{getattr(inherited[1], _MARK).word} above it too, or set {name} = None to remove the handler"
                    )
                    raise ActorDefinitionError(message)
    return list(found.values())


def _check_method(
    cls: type, method: str, function: Callable[..., Any], *, takes_message: bool
) -> inspect.Parameter | None:
    """Return the parameter that takes the message."""
    wrong = ""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if inspect.isgeneratorfunction(inspect.unwrap(function)):
        wrong = "is a generator; write async def, so that it can stream its reply"
    first = parameters[0] if takes_message and parameters else None
    if takes_message and (first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)):
        wrong = "takes no message; give it one parameter, such as `m: Ask`, or use @every for periodic work"
    elif takes_message and first is not None and first.annotation is inspect.Parameter.empty:
        wrong = f"does not say which message it handles; annotate {first.name}, such as `{first.name}: Ask` or `: Any`"
    rest = parameters[1:] if takes_message else parameters
    needed = [p.name for p in rest if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not wrong and needed:
        role = "a message brings one value" if takes_message else "nothing is passed to a periodic handler"
        wrong = f"needs {', '.join(needed)} as well, but {role}; give it a default or take it out"
    if not wrong and not takes_message and inspect.isasyncgenfunction(inspect.unwrap(function)):
        wrong = "is periodic and yields, but nobody asked; let it return"
    if wrong:
        message = f"{cls.__qualname__}.{method} {wrong}"
        raise ActorDefinitionError(message)
    return first


def _kinds(
    cls: type,
    method: str,
    mark: Mark,
    function: Callable[..., Any],
    parameter: inspect.Parameter | None,
    *,
    names: Mapping[str, object],
    is_final: bool,
) -> list[Any]:
    """Return the message types of a handler; while its annotation cannot be resolved, names that stand for them."""
    if mark.kind is _UNKNOWN and parameter is not None:
        holder = types.SimpleNamespace(__annotations__={"message": parameter.annotation})
        scope = getattr(inspect.unwrap(function), "__globals__", {})
        try:
            hints = get_type_hints(holder, dict(scope), dict(names), include_extras=True)
            mark.kind = hints["message"]
        except Exception as error:
            if is_final or not isinstance(error, NameError):
                message = (
                    f"{cls.__qualname__}.{method}: its message type {parameter.annotation!r} cannot be resolved: "
                    f"{error}; import it, or define it at the top of the module"
                )
                raise ActorDefinitionError(message) from error
            return [_Later(part.strip().rpartition(".")[2]) for part in str(parameter.annotation).split("|")]
    if isinstance(mark.kind, TypeVar):
        message = f"{cls.__qualname__}.{method}: its message type is the type variable {mark.kind}; name a real type"
        raise ActorDefinitionError(message)
    members = get_args(mark.kind) if get_origin(mark.kind) in (Union, types.UnionType) else (mark.kind,)
    if mark.name is not None and len(members) > 1:
        message = f"{cls.__qualname__}.{method}: one name cannot stand for the {len(members)} types of a union"
        raise ActorDefinitionError(message)
    return list(members)


class _Later:
    """Stands for a message type whose class does not exist yet."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
