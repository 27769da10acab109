"""A value that fits a JSON Schema, for people who want something to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLAIN: dict[str, object] = {"string": "bob", "integer": 1, "number": 1.5, "boolean": True, "null": None}
_MAX_DEPTH = 6


def sample_of(schema: Mapping[str, Any]) -> object:
    """Return a small value that fits a schema as msgspec makes them: the required fields of an object, in their order.

    It does its best: formats and patterns of texts are not looked at.
    """
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    return _sample(schema, definitions, 0)


def _sample(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> object:
    if depth > _MAX_DEPTH:
        return None
    if "$ref" in schema:
        return _sample(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions, depth + 1)
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf"):
        if schema.get(word):
            return _sample(schema[word][0], definitions, depth + 1)
    kind = schema.get("type")
    if kind == "object":
        fields: Mapping[str, Any] = schema.get("properties", {})
        needed = schema.get("required", [])
        return {name: _sample(field, definitions, depth + 1) for name, field in fields.items() if name in needed}
    if kind == "array":
        first = schema.get("prefixItems") or ([schema["items"]] if isinstance(schema.get("items"), Mapping) else [])
        return [_sample(item, definitions, depth + 1) for item in first]
    if kind == "integer" and "minimum" in schema:
        return max(1, int(schema["minimum"]))
    return _PLAIN.get(kind, {}) if isinstance(kind, str) else {}
