"""Values to bytes and back, by annotation: msgspec structs, dataclasses, TypedDicts, pydantic models, plain types."""

from __future__ import annotations

import math
from typing import Any, Protocol

import msgspec

from callboard.runtime.errors import DecodeError, EncodeError

JSON = "application/json"
MSGPACK = "application/msgpack"
_MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})


class Decoder(Protocol):
    """Turns payloads into values of one type."""

    def __call__(self, data: bytes, content_type: str | None = None) -> object:
        """Return the value in ``data``.

        Raises:
            DecodeError: If it is malformed, does not fit the type, or has an unknown content type.
        """
        ...


def is_json(content_type: str | None) -> bool:
    """Return whether a payload with this ``Content-Type`` is JSON; no header means JSON."""
    if content_type is None:
        return True
    base = content_type.partition(";")[0].strip().lower()
    return base in ("", JSON, "text/json") or base.endswith("+json")


def is_msgpack(content_type: str | None) -> bool:
    """Return whether a payload with this ``Content-Type`` is msgpack."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() in _MSGPACK_NAMES


def decoder(kind: object) -> Decoder:
    """Return the decoder for a type annotation. Build it once per handler: building costs about 10 µs."""
    from_json = msgspec.json.Decoder(kind, dec_hook=_from_builtins, strict=True)
    from_msgpack = msgspec.msgpack.Decoder(kind, dec_hook=_from_builtins, strict=True)

    def decode(data: bytes, content_type: str | None = None) -> object:
        try:
            if content_type is None or is_json(content_type):
                return from_json.decode(data)
            if is_msgpack(content_type):
                return from_msgpack.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            message = f"the payload does not fit: {str(error) or type(error).__name__}"
            raise DecodeError(message) from error
        message = f"unknown Content-Type {content_type[:80]!r}: send {JSON} or {MSGPACK}"
        raise DecodeError(message)

    return decode


def encode(value: object) -> bytes:
    """Return ``value`` as JSON.

    Raises:
        EncodeError: If a part of it has no JSON form: an unknown class, NaN or an infinity, bytes in a wrong place,
            a structure that contains itself.
    """
    try:
        data = msgspec.json.encode(value, enc_hook=_to_builtins)
    except (TypeError, ValueError, RecursionError, msgspec.EncodeError) as error:
        message = f"a value of type {type(value).__name__} cannot be encoded: {str(error) or type(error).__name__}"
        raise EncodeError(message) from error
    # msgspec writes NaN and infinities as null; a silent null is a wrong answer. Only a null makes the look needed.
    if b"null" in data and has_non_finite(msgspec.to_builtins(value, enc_hook=_to_builtins)):
        message = "NaN and infinities have no JSON form: return None or a string in their place"
        raise EncodeError(message)
    return data


def canonical(value: object) -> bytes:
    """Return JSON that is the same for equal values in every process, whatever order their dicts and sets have.

    For digests, not for reading back: a pydantic model that holds sets is written by its Python values.

    Raises:
        EncodeError: As ``encode`` does, and for a set whose members cannot be sorted.
    """
    plain = encode(value)
    for hook in (_to_python, _to_builtins):
        try:
            return msgspec.json.encode(value, enc_hook=hook, order="deterministic")
        except (TypeError, ValueError, RecursionError, msgspec.EncodeError) as error:
            reason = error
    message = f"{len(plain)} bytes of JSON have no fixed order: {reason}"
    raise EncodeError(message) from reason


def foreign_schema(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - the hook's contract is untyped
    """Return the JSON Schema of a type that msgspec does not know, a pydantic model; a hook of ``msgspec.json.schema``.

    Raises:
        NotImplementedError: If it has none; by the hook's contract.
    """
    make = getattr(kind, "model_json_schema", None)
    if make is None:
        message = f"{kind!r}"
        raise NotImplementedError(message)
    found: dict[str, Any] = make()
    return found


def _from_builtins(kind: Any, value: Any) -> Any:  # noqa: ANN401 - the hook's contract is untyped
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        message = f"cannot decode into {kind!r}: use a msgspec Struct, a dataclass, a TypedDict or a pydantic model"
        raise NotImplementedError(message)
    # pydantic raises a ValueError, which msgspec reports with the path of the field
    return validate(value)


def _to_builtins(value: Any) -> Any:  # noqa: ANN401 - as above
    dump = getattr(value, "model_dump", None)
    if dump is None:
        message = f"{type(value).__name__} has no JSON form: return a Struct, a dataclass, a model or plain values"
        raise TypeError(message)
    return dump(mode="json")


def _to_python(value: Any) -> Any:  # noqa: ANN401 - as above
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        # in the JSON mode a model turns its sets into lists, in an order that differs from process to process
        return dump(mode="python")
    from pydantic_core import to_jsonable_python  # noqa: PLC0415 - only what a model holds comes here

    return to_jsonable_python(value)


def has_non_finite(value: object) -> bool:
    """Return whether plain values hold a NaN or an infinity anywhere."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return False
