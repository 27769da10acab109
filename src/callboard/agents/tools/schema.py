"""From a function to what a model reads of it, and from what a model wrote to the function's arguments.

One type does both: a struct made of the parameters. Its JSON Schema is what the model is given, its decoder is what
checks the call, so that the two cannot differ.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct

from callboard.agents.errors import ToolArgumentError, ToolDefinitionError
from callboard.agents.tools.context import ToolContext
from callboard.runtime import codec
from callboard.runtime.errors import DecodeError

MAX_ARGUMENTS_BYTES = 1 << 20
_CACHED = 1024
_ROOT = "Arguments"
_ITEM = re.compile(r"^(?P<name>\*{0,2}\w+)\s*(\([^)]*\))?\s*:\s*(?P<text>.*)$")
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?|Attributes):\s*$")


class Shape(Struct, frozen=True, kw_only=True):
    """What a function takes.

    Attributes:
        parameters: JSON Schema, an object.
        decode: Reads JSON text into a struct of the arguments.
        names: Parameters that come from the model.
        contexts: Parameters that are given the ``ToolContext``.
    """

    parameters: dict[str, Any]
    decode: codec.Decoder
    names: tuple[str, ...]
    contexts: tuple[str, ...]


def shape_of(function: Callable[..., Any], name: str) -> Shape:
    """Return what a function takes; made once for each function.

    Raises:
        ToolDefinitionError: If a parameter has no type hint, one that JSON cannot hold, or cannot be named by a model.
    """
    return _shape(function, name)


def arguments_of(shape: Shape, text: str, *, tool: str) -> dict[str, Any]:
    """Return the arguments in what a model wrote, checked: each there, none unknown, each of its type.

    Raises:
        ToolArgumentError: With what is wrong, and what the tool takes, in words that a model can follow.
    """
    data = (text.strip() or "{}").encode("utf-8", "surrogatepass")
    if len(data) > MAX_ARGUMENTS_BYTES:
        message = f"the arguments of {tool} are {len(data)} bytes of JSON: at most {MAX_ARGUMENTS_BYTES} are read"
        raise ToolArgumentError(message)
    try:
        value = shape.decode(data)
    except (DecodeError, ValueError) as error:
        takes = ", ".join(shape.names) or "none"
        why = str(error).removeprefix("the payload does not fit: ")
        message = f"the arguments of {tool} do not fit: {why}. Parameters: {takes}; send one JSON object"
        raise ToolArgumentError(message) from error
    return {name: given for name in shape.names if (given := getattr(value, name)) is not UNSET}


def described(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return what a docstring says of a function, and of each of its parameters (Google style, ``Args:``).

    Everything before the first section describes the function; a docstring in another style is taken whole.
    """
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    start = next((number for number, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    about = "\n".join(lines[:start]).strip()
    return about, _items(lines[start:])


def _items(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    current, is_inside, indent = "", False, 0
    for line in lines:
        if _SECTION.match(line):
            is_inside, current, indent = line.startswith(("Args", "Arguments", "Parameters")), "", 0
            continue
        if not is_inside or not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = indent or depth
        item = _ITEM.match(line.strip()) if depth <= indent else None
        if item is not None:
            current = item["name"].lstrip("*")
            found[current] = item["text"].strip()
        elif current:
            found[current] = f"{found[current]} {line.strip()}".strip()
    return found


@functools.lru_cache(_CACHED)
def _shape(function: Callable[..., Any], name: str) -> Shape:
    hints = _hints(function, name)
    _, texts = described(function)
    fields: list[tuple[str, Any, Any]] = []
    contexts: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            message = f"tool {name!r}: parameter {parameter} cannot be given by name: models name every argument"
            raise ToolDefinitionError(message)
        if parameter.name not in hints:
            message = f"tool {name!r}: parameter {parameter.name!r} has no type hint, and a model must know its type"
            raise ToolDefinitionError(message)
        kind = hints[parameter.name]
        if kind is ToolContext:
            contexts.append(parameter.name)
        else:
            fields.append(_field(parameter, kind, texts.get(parameter.name, "")))
    return _made(name, fields, tuple(contexts))


def _hints(function: Callable[..., Any], name: str) -> Mapping[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        message = (
            f"tool {name!r}: its type hints cannot be resolved: {error}. Import the types where the module can see "
            "them at run time, not under TYPE_CHECKING and not inside a function"
        )
        raise ToolDefinitionError(message) from error


def _field(parameter: inspect.Parameter, kind: Any, text: str) -> tuple[str, Any, Any]:  # noqa: ANN401 - a type
    described_kind = Annotated[kind, Meta(description=text)] if text else kind
    if parameter.default is parameter.empty:
        return parameter.name, described_kind, msgspec.NODEFAULT
    # absent stays absent: the function's own default is used, whatever it is
    return parameter.name, described_kind | msgspec.UnsetType, UNSET


def _made(name: str, fields: list[tuple[str, Any, Any]], contexts: tuple[str, ...]) -> Shape:
    try:
        struct = msgspec.defstruct(_ROOT, fields, kw_only=True, forbid_unknown_fields=True)
        parameters = _schema(struct)
        decode = codec.decoder(struct)
    except (TypeError, ValueError, NotImplementedError) as error:
        message = (
            f"tool {name!r}: a parameter's type has no JSON Schema: {error}. Take plain types, Structs or dataclasses"
        )
        raise ToolDefinitionError(message) from error
    return Shape(parameters=parameters, decode=decode, names=tuple(field[0] for field in fields), contexts=contexts)


def _schema(struct: type[Struct]) -> dict[str, Any]:
    """Return a struct's schema as one object, with the types it refers to below it."""
    (_,), components = msgspec.json.schema_components(
        [struct], schema_hook=codec.foreign_schema, ref_template="#/$defs/{name}"
    )
    root = dict(components.pop(_ROOT))
    root.pop("title", None)
    if components:
        root["$defs"] = components
    return root
