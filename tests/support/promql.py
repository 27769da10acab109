"""Reads expressions of Prometheus strictly enough to say what is wrong with the names in them.

No evaluation: which metrics are read, with which labels they are picked, grouped and joined, and whether a counter is
read as it should be. Whatever is not understood is a fault, so a misspelt function does not pass for a metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

AGGREGATORS = frozenset({"sum", "min", "max", "avg", "count", "topk", "bottomk", "stddev", "quantile"})
FUNCTIONS = frozenset(
    {
        "rate",
        "irate",
        "increase",
        "delta",
        "deriv",
        "histogram_quantile",
        "min_over_time",
        "max_over_time",
        "avg_over_time",
    }
    | {"absent", "clamp_min", "clamp_max", "time", "vector", "abs", "changes", "label_values"}
)
JOINS = frozenset({"on", "ignoring", "group_left", "group_right"})
OPERATORS = frozenset({"and", "or", "unless", "bool", "offset"})
# What Prometheus itself adds to everything that it scrapes.
ADDED = frozenset({"job", "instance"})
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:[^"\\]|\\.)*"|'[^']*')|(?P<duration>\d+(?:ms|[smhdwy]))|(?P<number>\d+(?:\.\d+)?)"""
    r"""|(?P<word>[A-Za-z_:][\w:]*)|(?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){}\[\],:])"""
)


class Malformed(ValueError):  # noqa: N818 - a finding
    """An expression that cannot be read."""


@dataclass
class Expression:
    """What an expression names.

    Attributes:
        metrics: Names of the series.
        picks: Metric, label, operator and value of each matcher.
        groups: Labels of every ``by``; None where nothing is aggregated.
        joins: Labels of every ``on``.
        unranged: Series that are read as they stand, without a range.
    """

    metrics: set[str] = field(default_factory=set)
    picks: list[tuple[str, str, str, str]] = field(default_factory=list)
    groups: set[str] | None = None
    joins: set[str] = field(default_factory=set)
    unranged: set[str] = field(default_factory=set)


def parse(text: str) -> Expression:
    """Read an expression; Grafana's interval stands for five minutes.

    Raises:
        Malformed: If it cannot be read.
    """
    tokens = list(_tokens(text.replace("$__rate_interval", "5m")))
    _check_brackets(tokens, text)
    found, place = Expression(), 0
    while place < len(tokens):
        kind, word = tokens[place]
        place += 1
        if kind != "word":
            continue
        after = tokens[place][1] if place < len(tokens) else ""
        if word in OPERATORS:
            continue
        if word in {"by", "without", *JOINS}:
            place = _labels(found, word, tokens, place)
        elif word in AGGREGATORS:
            found.groups = found.groups or set()
        elif after == "(":
            if word not in FUNCTIONS:
                raise Malformed(f"{word} is no function")  # noqa: EM102 - a finding
        else:
            place = _series(found, word, tokens, place)
    if not found.metrics:
        raise Malformed(f"it reads nothing: {text}")  # noqa: EM102 - a finding
    return found


def faults(text: str, exposed: Mapping[str, frozenset[str]]) -> list[str]:
    """Return what is wrong with an expression, given the series that exist and the labels of each."""
    try:
        found = parse(text)
    except Malformed as error:
        return [str(error)]
    wrong = [f"no metric {name}" for name in sorted(found.metrics - exposed.keys())]
    known = {label for name in found.metrics for label in exposed.get(name, ())} | ADDED
    wrong += [
        f"{name} has no label {label}"
        for name, label, *_ in found.picks
        if label not in exposed.get(name, known) | ADDED
    ]
    wrong += [f"nothing has the label {label}" for label in sorted(((found.groups or set()) | found.joins) - known)]
    counters = {name for name in found.unranged if name.endswith(("_total", "_bucket"))}
    return wrong + [f"the counter {name} is read without a range" for name in sorted(counters)]


def labels_of(text: str, exposed: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Return the labels that its result can have."""
    found = parse(text)
    if found.groups is not None:
        return frozenset(found.groups)
    return frozenset({label for name in found.metrics for label in exposed.get(name, ())} | ADDED)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise Malformed(f"cannot read {text[place:]!r}")  # noqa: EM102 - a finding
        if match.lastgroup != "space":
            yield match.lastgroup, match.group()
        place = match.end()


def _check_brackets(tokens: list[tuple[str, str]], text: str) -> None:
    pairs, open_ = {")": "(", "}": "{", "]": "["}, []
    for kind, sign in tokens:
        if kind == "sign" and sign in pairs.values():
            open_.append(sign)
        elif kind == "sign" and sign in pairs and (not open_ or open_.pop() != pairs[sign]):
            raise Malformed(f"brackets do not match: {text}")  # noqa: EM102 - a finding
    if open_:
        raise Malformed(f"brackets do not match: {text}")  # noqa: EM102 - a finding


def _labels(found: Expression, word: str, tokens: list[tuple[str, str]], place: int) -> int:
    """Read the list behind ``by`` and the like."""
    end = tokens.index(("sign", ")"), place)
    names = {name for kind, name in tokens[place:end] if kind == "word"}
    if word == "by":
        found.groups = (found.groups or set()) | names
    else:
        found.joins |= names
    return end + 1


def _series(found: Expression, name: str, tokens: list[tuple[str, str]], place: int) -> int:
    """Read the matchers and the range behind a metric's name."""
    found.metrics.add(name)
    if tokens[place : place + 1] == [("sign", "{")]:
        end = tokens.index(("sign", "}"), place)
        inside = tokens[place + 1 : end]
        for at in range(0, len(inside), 4):
            part = [value for _, value in inside[at : at + 3]]
            if len(part) < 3 or part[1] not in {"=", "!=", "=~", "!~"}:
                raise Malformed(f"cannot read the matchers of {name}")  # noqa: EM102 - a finding
            found.picks.append((name, part[0], part[1], part[2][1:-1]))
        place = end + 1
    if tokens[place : place + 1] != [("sign", "[")]:
        found.unranged.add(name)
    return place
