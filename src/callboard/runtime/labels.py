"""Pools by label: the name of the pool that serves a capability on workers with certain labels, and who fits it.

A task that asks for labels is given to ``<capability>--<key>_<value>[--<key>_<value>…]``, its keys sorted: a name like
any other, with a subject, consumers, records and dead letters of its own. So a plain publish can ask for labels
without a header, and a worker that does not fit never sees the task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from callboard.runtime.errors import InvalidNameError
from callboard.runtime.subjects import MAX_NAME_BYTES, check_name

_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_IS_WORD = re.compile(_WORD)
_NAME = re.compile(rf"(?P<base>[a-z0-9_-]*?[a-z0-9])(?P<labels>(?:--{_WORD}_{_WORD})+)")


def pool_name(capability: str, labels: Mapping[str, str]) -> str:
    """Return the name under which ``capability`` is offered by workers that bear all of ``labels``; itself for none.

    Raises:
        InvalidNameError: If the capability is no name, asks for labels already, or a label is not made of words of
            ``a-z 0-9`` joined by single ``-``, or the whole is over 64 bytes.
    """
    check_name(capability, what="capability")
    if not labels:
        return capability
    if _NAME.fullmatch(capability):
        message = f"{capability!r} asks for labels already; give the capability's own name, or no labels"
        raise InvalidNameError(message, name=capability)
    for key, value in labels.items():
        if not (_IS_WORD.fullmatch(key) and _IS_WORD.fullmatch(value)):
            message = f"tasks cannot ask for the label {key}={value}: take words of a-z and 0-9 joined by single '-'"
            raise InvalidNameError(message, name=f"{key}={value}")
    name = "--".join([capability, *(f"{key}_{labels[key]}" for key in sorted(labels))])
    if len(name) > MAX_NAME_BYTES or split(name)[0] != capability:
        message = f"{name!r} is not usable as the name of a pool: take shorter labels, or another name"
        raise InvalidNameError(message, name=name)
    return name


def split(name: str) -> tuple[str, dict[str, str]]:
    """Return the capability and the labels that a pool's name asks for; a plain capability asks for none."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, {}
    pairs = [part.partition("_") for part in found["labels"].removeprefix("--").split("--")]
    labels = {key: value for key, _, value in pairs}
    if len(labels) != len(pairs) or [key for key, _, _ in pairs] != sorted(labels):
        # only one spelling means a set of labels
        return name, {}
    return found["base"], labels


def reach(name: str) -> tuple[str, ...]:
    """Return the names under which a pool is meant: its own, and that of its capability when it is one by label."""
    return tuple(dict.fromkeys((name, split(name)[0])))


def fits(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Return whether ``labels`` hold all that is ``wanted``."""
    return all(labels.get(key) == value for key, value in wanted.items())


def told(name: str) -> str:
    """Return a pool's name for people: ``embed on gpu=yes,zone=a``."""
    base, wanted = split(name)
    return base if not wanted else f"{base} on {','.join(f'{key}={value}' for key, value in wanted.items())}"
