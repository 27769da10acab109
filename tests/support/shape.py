"""Says where a document read from YAML is not what its format allows. Strict: a key that is not named is a fault.

A shape is a type, a value, a compiled pattern (of a whole text), a list of one shape, a tuple of choices, a dictionary
(a key that ends in ``?`` may be missing), or ``Each(pattern, shape)`` for a mapping whose keys are names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Each:
    """A mapping of names to things of one shape."""

    name: re.Pattern[str]
    shape: Any


def faults(value: object, shape: Any, where: str = "") -> list[str]:  # noqa: ANN401 - any shape
    """Return what does not fit, each with its place."""
    match shape:
        case dict():
            return _mapping(value, shape, where)
        case Each():
            if not isinstance(value, dict):
                return [f"{where}: no mapping"]
            strange = [f"{where}.{key}: no such name" for key in value if not shape.name.fullmatch(str(key))]
            return strange + [
                found for key, each in value.items() for found in faults(each, shape.shape, f"{where}.{key}")
            ]
        case [inner]:
            if not isinstance(value, list):
                return [f"{where}: no list"]
            return [found for number, each in enumerate(value) for found in faults(each, inner, f"{where}[{number}]")]
        case tuple():
            tried = [faults(value, each, where) for each in shape]
            return [] if [] in tried else min(tried, key=len)
        case re.Pattern():
            is_right = isinstance(value, str) and shape.fullmatch(value) is not None
        case type():
            is_right = type(value) is shape
        case _:
            is_right = type(value) is type(shape) and value == shape
    return [] if is_right else [f"{where}: {value!r} is not {getattr(shape, 'pattern', shape)!r}"]


def _mapping(value: object, shape: dict[str, Any], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: no mapping"]
    known = {key.rstrip("?"): each for key, each in shape.items()}
    found = [f"{where}.{key}: no such key" for key in value if key not in known]
    found += [f"{where}.{key}: missing" for key in shape if not key.endswith("?") and key not in value]
    for key in value.keys() & known.keys():
        found += faults(value[key], known[key], f"{where}.{key}")
    return found
