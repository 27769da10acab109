"""A step's function: how it is called, and how its value is read back from the journal."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, get_args, get_origin, get_type_hints

from callboard.runtime import codec
from callboard.runtime.codec import Decoder
from callboard.runtime.errors import DecodeError, EncodeError, HandlerExitError

_AWAITABLES = (Awaitable, Coroutine, asyncio.Future, asyncio.Task)
_CACHED_TYPES = 512


async def call(
    function: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    executor: Executor | None = None,
) -> object:
    """Run ``function`` and return its value.

    A coroutine function runs on the event loop. Anything else runs in a thread of ``executor``, which a cancellation
    leaves behind running; what it returns is awaited on the loop if it can be.

    Raises:
        HandlerExitError: If it tried to end its process from the thread.
    """
    if _is_async(function):
        value = function(*args, **kwargs)
    else:
        own = contextvars.copy_context()
        run = functools.partial(own.run, _guarded, function, args, kwargs)
        value = await asyncio.get_running_loop().run_in_executor(executor, run)
    return await value if inspect.isawaitable(value) else value


def reader(function: Callable[..., object], returns: object, *, step: str) -> Decoder:
    """Return what turns a step's recorded JSON into the type that its function promises.

    Args:
        function: Its return annotation counts where it can be resolved; without one values come back as plain JSON:
            dicts, lists, text, numbers.
        returns: The type to use in place of the annotation, None for the annotation.
        step: The step's name, for the error.

    Raises:
        EncodeError: If the type cannot be read from JSON at all.
    """
    kind = returns if returns is not None else _promised(function)
    return decoder(kind, step=step)


def decoder(kind: object, *, step: str) -> Decoder:
    """Return the decoder for a type; ``Any`` and ``object`` stand for plain JSON.

    Raises:
        EncodeError: If the type cannot be read from JSON at all.
    """
    try:
        return _decoder(kind)
    except (TypeError, NotImplementedError) as error:
        message = (
            f"step {step!r}: its type {kind!r} cannot be read back from the journal: {error}. Annotate what the "
            "function returns, or say returns="
        )
        raise EncodeError(message) from error


def read(decode: Decoder, data: bytes, *, step: str) -> object:
    """Return the value in ``data``.

    Raises:
        DecodeError: If it does not fit; the record stands all the same.
    """
    try:
        return decode(data)
    except (DecodeError, NotImplementedError) as error:
        message = (
            f"step {step!r}: the recorded value does not fit its type: {error}. The record stands: let returns= or the "
            "annotation fit it, or rename the step to run it again"
        )
        raise DecodeError(message) from error


def _decoder(kind: object) -> Decoder:
    plain = Any if kind is object else kind
    try:
        return _cached(plain)
    except TypeError:
        # not hashable, or no type to decode into, which shows now
        return codec.decoder(plain)


_cached = functools.lru_cache(_CACHED_TYPES)(codec.decoder)


def _is_async(function: Callable[..., object]) -> bool:
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004 - not asked whether it is callable


def _guarded(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # a future refuses it, and the waiter would hang
        message = "the step's function raised StopIteration"
        raise RuntimeError(message) from error
    except (SystemExit, KeyboardInterrupt) as error:
        message = f"the step's function tried to end its process: {error!r}"
        raise HandlerExitError(message) from error


def _promised(function: Callable[..., object]) -> object:
    """Return what the function's annotation promises, ``Any`` where there is none that can be resolved."""
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    if isinstance(inner, type):
        return inner
    if not inspect.isroutine(inner):
        inner = type(inner).__call__
    inner = getattr(inner, "__func__", inner)
    found = getattr(inner, "__annotations__", {}).get("return", Any)
    if isinstance(found, str):
        # only this one: the others may name what is imported for type checkers alone
        stand_in = types.SimpleNamespace(__annotations__={"return": found})
        try:
            found = get_type_hints(stand_in, getattr(inner, "__globals__", {}), include_extras=True)["return"]
        except (NameError, AttributeError, TypeError, SyntaxError):
            return Any
    if get_origin(found) in _AWAITABLES or found in _AWAITABLES:
        return get_args(found)[-1] if get_args(found) else Any
    return found
