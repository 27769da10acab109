"""What a message type is called on the wire, which payloads fit it, and messages that are sent on as they came."""

from __future__ import annotations

import weakref
from typing import Annotated, Any, get_origin

import msgspec
from msgspec import Raw

from callboard.runtime import codec
from callboard.runtime.errors import DecodeError

ANY = "any"
_NAMED = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
)


class _Envelope(msgspec.Struct):
    type: str
    data: Raw


_envelope_json = msgspec.json.Decoder(_Envelope)
_envelope_msgpack = msgspec.msgpack.Decoder(_Envelope)
_fields_json = msgspec.json.Decoder(dict[str, Raw])
_plain_json = msgspec.json.Decoder()
_plain_msgpack = msgspec.msgpack.Decoder()


class Shape:
    """A message type, taken apart once.

    Attributes:
        kind: The annotation.
        name: What it is called on the wire: the class's name; for plain types that of the Python type, or ``any``.
        is_named: Whether it is a class of fields (Struct, dataclass, TypedDict, NamedTuple, pydantic model), which its
            sender names; a plain type serves what nobody else serves.
        fields: Names of its fields on the wire, or None when it has none of its own or takes any.
    """

    __slots__ = ("_decode", "fields", "is_named", "kind", "name")

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 - an annotation
        """Take a type apart.

        Raises:
            TypeError: If nothing can be decoded into it.
            NameError: If an annotation of one of its fields cannot be resolved.
        """
        self.kind = Any if kind is object else kind
        self.name = name_of(self.kind)
        self._decode = codec.decoder(self.kind)
        _check_strangers(self.kind)
        self.is_named, self.fields = _fields(self.kind)

    def decode(self, data: bytes, content_type: str | None = None) -> object:
        """Return the value in a payload. An empty payload stands for no fields, and for None.

        Raises:
            DecodeError: If it is malformed or does not fit.
        """
        try:
            return self._decode(data or self._nothing(content_type), content_type)
        except DecodeError:
            raise
        except Exception as error:
            # a type's own code, such as a __post_init__
            message = f"the payload does not fit {self.name}: {str(error)[:500] or type(error).__name__}"
            raise DecodeError(message) from error

    def fits(self, data: bytes, content_type: str | None, body: object) -> bool:
        """Return whether a payload is exactly of this type: all it needs, and no field that it does not know.

        Args:
            data: The payload.
            content_type: Its ``Content-Type``.
            body: The same as plain values.
        """
        if self.fields is not None and isinstance(body, dict) and not self.fields.issuperset(body):
            return False
        try:
            self.decode(data, content_type)
        except DecodeError:
            return False
        return True

    def schema(self) -> dict[str, Any]:
        """Return its JSON schema; of a type that has none, its name as title."""
        try:
            return msgspec.json.schema(self.kind, schema_hook=codec.foreign_schema)
        except (TypeError, ValueError, NotImplementedError):
            return {"title": self.name}

    def _nothing(self, content_type: str | None) -> bytes:
        empty: object = {} if self.is_named else None
        return msgspec.msgpack.encode(empty) if codec.is_msgpack(content_type) else msgspec.json.encode(empty)


class Originals:
    """The messages that a turn has received, so that they can be sent on with the fields their class does not know.

    Kept for the length of a turn. It covers the very objects that were decoded, changed or not, and the top level of
    their JSON objects. Fields that a class does not know are lost from copies (``msgspec.structs.replace``), from
    objects inside other objects, and from msgpack; the mail's own bytes, ``self.mail.data``, have everything.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        """Know no message yet."""
        # the value stands here too, so that its id stays its own
        self._known: dict[int, tuple[object, Shape, bytes]] = {}

    def remember(self, value: object, shape: Shape | None, data: bytes, content_type: str | None = None) -> None:
        """Remember what ``value`` was decoded from, and as what. Plain types have nothing to lose and are left out."""
        if shape is not None and shape.is_named:
            self._known[id(value)] = (value, shape, data if codec.is_json(content_type) else b"")

    def encode(self, value: object) -> bytes:
        """Return ``value`` as JSON; of a message received before, with the fields that its class does not know.

        Raises:
            EncodeError: If it has no JSON form.
        """
        data = codec.encode(value)
        known = self._known.get(id(value))
        if known is None or known[1].fields is None:
            return data
        return _with_unknown(data, known[2], known[1].fields)

    def type_name(self, value: object) -> str | None:
        """Return the ``Cb-Type`` of ``value``, also of a TypedDict, which only its receiver could name."""
        known = self._known.get(id(value))
        return type_name_of(value) if known is None else known[1].name


def name_of(kind: Any) -> str:  # noqa: ANN401 - an annotation
    """Return what a message type is called on the wire: the name of its class, ``any`` for ``Any`` and ``object``."""
    if kind is Any or kind is object:
        return ANY
    if kind is None:
        return "NoneType"
    if get_origin(kind) is Annotated:
        return name_of(kind.__origin__)
    origin = get_origin(kind) or kind
    name = getattr(origin, "__name__", None) or getattr(origin, "_name", None) or str(origin)
    return str(name)


def type_name_of(value: object) -> str | None:
    """Return the ``Cb-Type`` that a message is sent under; None for plain values, which name no type."""
    return name_of(type(value)) if _fields(type(value))[0] else None


def open_envelope(data: bytes, content_type: str | None) -> tuple[str, bytes] | None:
    """Return type and data of a body ``{"type": "Ask", "data": …}``, or None if it is no such object."""
    if b"type" not in data or b"data" not in data:
        return None
    try:
        if codec.is_msgpack(content_type):
            found = _envelope_msgpack.decode(data)
        elif codec.is_json(content_type):
            found = _envelope_json.decode(data)
        else:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.type, bytes(found.data)


def plain(data: bytes, content_type: str | None) -> object:
    """Return a payload as plain values; an empty one as an empty object.

    Raises:
        DecodeError: If it is malformed or of an unknown content type.
    """
    return _anything(data, content_type) if data else {}


_anything = codec.decoder(Any)
# weak: a class that is loaded anew leaves nothing behind
_taken_apart: weakref.WeakKeyDictionary[type, tuple[bool, frozenset[str] | None]] = weakref.WeakKeyDictionary()


def _fields(kind: Any) -> tuple[bool, frozenset[str] | None]:  # noqa: ANN401 - an annotation
    if not isinstance(kind, type):
        return _take_apart(kind)
    known = _taken_apart.get(kind)
    if known is None:
        known = _taken_apart[kind] = _take_apart(kind)
    return known


def _take_apart(kind: Any) -> tuple[bool, frozenset[str] | None]:  # noqa: ANN401 - as above
    if (models := getattr(kind, "model_fields", None)) is not None and hasattr(kind, "model_validate"):
        return True, _pydantic_fields(kind, models)
    try:
        info = msgspec.inspect.type_info(kind)
    except (TypeError, NameError):
        return False, None
    if not isinstance(info, _NAMED):
        return False, None
    names = {field.encode_name for field in info.fields}
    if isinstance(info, msgspec.inspect.StructType) and info.tag_field is not None:
        names.add(info.tag_field)
    return True, frozenset(names)


def _pydantic_fields(kind: Any, models: dict[str, Any]) -> frozenset[str] | None:  # noqa: ANN401 - pydantic is a guest
    if kind.model_config.get("extra") == "allow":
        # it keeps what it does not know by itself
        return None
    names = set(models)
    for field in models.values():
        for alias in (field.alias, field.validation_alias):
            # an alias is a name, a path (whose first part is the name), or a choice of both
            for choice in getattr(alias, "choices", [alias]):
                first = choice if isinstance(choice, str) else next(iter(getattr(choice, "path", [])), None)
                if isinstance(first, str):
                    names.add(first)
    return frozenset(names)


def _check_strangers(kind: Any) -> None:  # noqa: ANN401 - as above
    """Refuse a type that holds, at any depth, a class that nothing can be decoded into; decoders would do so late."""
    waiting: list[object] = [msgspec.inspect.type_info(kind)]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, (tuple, list)):
            waiting.extend(item)
            continue
        if not isinstance(item, (msgspec.inspect.Type, msgspec.inspect.Field)) or id(item) in seen:
            continue
        # a recursive type holds itself
        seen.add(id(item))
        if isinstance(item, msgspec.inspect.CustomType) and not hasattr(item.cls, "model_validate"):
            message = f"{item.cls.__qualname__} is no Struct, dataclass, TypedDict or pydantic model"
            raise TypeError(message)
        waiting.extend(getattr(item, name) for name in item.__struct_fields__)


def _with_unknown(data: bytes, original: bytes, known: frozenset[str]) -> bytes:
    """Return ``data`` with the fields of ``original`` that are not ``known``; both are JSON objects, or it stays."""
    try:
        before = _fields_json.decode(original)
        now = _fields_json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data
    extras = {name: raw for name, raw in before.items() if name not in known and name not in now}
    return msgspec.json.encode({**now, **extras}) if extras else data
