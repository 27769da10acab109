"""What changed between two JSON values, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

_ROOT = "state"


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One place that differs.

    Attributes:
        path: Where, such as ``state.items[2].name``.
        old: Value before, as JSON; absent when there was none.
        new: Value after; absent when there is none.
    """

    path: str
    old: Raw | UnsetType = UNSET
    new: Raw | UnsetType = UNSET


def difference(old: bytes | Raw | None, new: bytes | Raw | None) -> list[Change]:
    """Return the places in which two JSON values differ, in the order of their paths; None is no value at all.

    Lists are compared place by place. Costs time in proportion to the values.

    Raises:
        msgspec.DecodeError: If one of them is no JSON.
    """
    before = UNSET if old is None else msgspec.json.decode(old)
    after = UNSET if new is None else msgspec.json.decode(new)
    return list(_differences(before, after, _ROOT))


def _differences(old: Any, new: Any, path: str) -> Iterator[Change]:  # noqa: ANN401 - any JSON
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key, UNSET), new.get(key, UNSET), f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        for place in range(max(len(old), len(new))):
            left = old[place] if place < len(old) else UNSET
            right = new[place] if place < len(new) else UNSET
            yield from _differences(left, right, f"{path}[{place}]")
    elif type(old) is not type(new) or old != new:
        # 1, 1.0 and true are equal in Python and not in JSON
        yield Change(path=path, old=_raw(old), new=_raw(new))


def _raw(value: Any) -> Raw | UnsetType:  # noqa: ANN401 - as above
    return UNSET if value is UNSET else Raw(msgspec.json.encode(value))
