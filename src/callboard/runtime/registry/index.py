"""Agents by what they can do and are: an index in memory. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from callboard.runtime.near import near
from callboard.runtime.registry.message import Query
from callboard.runtime.registry.record import AgentRecord, CapabilitySpec

# Fields within fields that schemas are compared in; what lies deeper is not looked at.
_MAX_DEPTH = 32
# Agents that have left whose last revision is remembered, at least.
_GONE_KEPT = 10_000


class Narrowed(Struct, frozen=True):
    """Who fits the lasting part of a query (all but status).

    Attributes:
        able: Their addresses, sorted.
        refused: How many of those with the capability were left out, by reason, such as ``labels.zone``.
        has_capability: Agents with the capability, whatever else was asked for.
    """

    able: Sequence[str]
    refused: dict[str, int]
    has_capability: int


class Posting:
    """A set of addresses that is also kept in order."""

    __slots__ = ("members", "order")

    def __init__(self) -> None:
        """Begin empty."""
        self.members: set[str] = set()
        self.order: list[str] = []

    def add(self, address: str) -> None:
        """Take one in."""
        if address not in self.members:
            self.members.add(address)
            insort(self.order, address)

    def remove(self, address: str) -> None:
        """Take one out."""
        if address in self.members:
            self.members.remove(address)
            del self.order[bisect_left(self.order, address)]


_NOBODY = Posting()


class Index:
    """Records by address, and the addresses by each fact of theirs. Cost of a change: some 10 µs among 10,000."""

    def __init__(self) -> None:
        """Begin empty."""
        self._records: dict[str, AgentRecord] = {}
        self._revisions: dict[str, int] = {}
        self._all = Posting()
        self._by: dict[tuple[str, str], Posting] = {}

    def __len__(self) -> int:
        """Return how many agents there are."""
        return len(self._records)

    def put(self, record: AgentRecord, revision: int) -> bool:
        """Take in a record; False when a later one is known."""
        address = record.address
        if revision <= self._revisions.get(address, 0):
            return False
        self._revisions[address] = revision
        self._drop(address)
        self._records[address] = record
        self._all.add(address)
        for fact in _facts(record):
            self._by.setdefault(fact, Posting()).add(address)
        return True

    def remove(self, address: str, revision: int) -> bool:
        """Take a record out; False when a later one is known."""
        if revision <= self._revisions.get(address, 0):
            return False
        self._drop(address)
        # the marker may be followed by what was on its way before it: its number stays
        self._revisions[address] = revision
        if len(self._revisions) > 2 * len(self._records) + _GONE_KEPT:
            self._revisions = {known: self._revisions[known] for known in (*self._records, address)}
        return True

    def get(self, address: str) -> AgentRecord | None:
        """Return an agent's record, None when there is none."""
        return self._records.get(address)

    def revision(self, address: str) -> int:
        """Return the revision of what was heard last of an agent, 0 for nothing."""
        return self._revisions.get(address, 0)

    def addresses(self) -> Sequence[str]:
        """Return all addresses, sorted. Not a copy."""
        return self._all.order

    def capabilities(self) -> list[str]:
        """Return the names of all capabilities, sorted."""
        return sorted(name for kind, name in self._by if kind == "capability")

    def near(self, name: str, others: Sequence[str] = ()) -> list[str]:
        """Return the names of capabilities that come nearest to ``name``, best first; ``others`` exist as well."""
        return near(name, {*self.capabilities(), *others})

    def near_types(self, name: str, others: Iterable[str] = ()) -> list[str]:
        """Return the names of agents' types that come nearest to ``name``, as ``near`` does."""
        return near(name, {*(text for kind, text in self._by if kind == "type"), *others})

    def values(self, label: str) -> list[str]:
        """Return the values that a label has, sorted."""
        start = f"{label}="
        return sorted(text.removeprefix(start) for kind, text in self._by if kind == "label" and text.startswith(start))

    # --- looking

    def matching(self, query: Query) -> Iterator[AgentRecord]:
        """Yield the records that fit a query but for its status, by address, after ``query.after``.

        Cost: the shortest list of the facts that were asked for; the first page of many costs no more than a page.
        """
        postings = [self._by.get(fact, _NOBODY) for _, fact in _asked(query)]
        shortest = min(postings, key=lambda posting: len(posting.order), default=self._all)
        others = [posting.members for posting in postings if posting is not shortest]
        fits = _predicate(query)
        unwanted = frozenset(query.exclude)
        start = bisect_right(shortest.order, query.after) if query.after else 0
        for address in shortest.order[start:]:
            if address in unwanted:
                continue
            if all(address in members for members in others) and fits(record := self._records[address]):
                yield record

    def narrow(self, query: Query) -> Narrowed:
        """Return who fits a query but for its status, and for which reason the others do not.

        Cost: 1 µs for a capability alone; else an intersection of sets for each further fact.
        """
        names = [query.capability] if query.capability else []
        base = self._by.get(("capability", names[0]), _NOBODY) if names else self._all
        refused: dict[str, int] = {}
        members: set[str] = base.members
        for reason, fact in _asked(query):
            if fact == ("capability", query.capability):
                continue
            kept = members & self._by.get(fact, _NOBODY).members
            if len(kept) < len(members):
                refused[reason] = len(members) - len(kept)
            members = kept
        if query.any or query.capability_version or query.input:
            fits = _predicate(query)
            kept = {address for address in members if fits(self._records[address])}
            if len(kept) < len(members):
                refused["capability"] = len(members) - len(kept)
            members = kept
        if query.exclude:
            kept = members.difference(query.exclude)
            if len(kept) < len(members):
                refused["exclude"] = len(members) - len(kept)
            members = kept
        able = base.order if members is base.members else sorted(members)
        return Narrowed(able, refused, len(base.order))

    def _drop(self, address: str) -> None:
        record = self._records.pop(address, None)
        if record is None:
            return
        self._all.remove(address)
        for fact in _facts(record):
            posting = self._by.get(fact)
            if posting is not None:
                posting.remove(address)
                if not posting.order:
                    del self._by[fact]


def _facts(record: AgentRecord) -> set[tuple[str, str]]:
    facts = {("capability", spec.name) for spec in record.capabilities}
    facts |= {("label", f"{name}={value}") for name, value in record.labels.items()}
    return facts | {("type", record.type), ("host", record.host), ("version", record.version)}


def _asked(query: Query) -> list[tuple[str, tuple[str, str]]]:
    """Return what a query asks for that is looked up as it stands, each with the reason it is refused for."""
    found = [("capability", ("capability", name)) for name in (query.capability, *query.all) if name]
    if query.type:
        found.append(("type", ("type", query.type)))
    found += [(f"labels.{name}", ("label", f"{name}={value}")) for name, value in sorted(query.labels.items())]
    if query.host:
        found.append(("host", ("host", query.host)))
    if query.version:
        found.append(("version", ("version", query.version)))
    return found


def _predicate(query: Query) -> Callable[[AgentRecord], bool]:
    """Return what decides the rest: one of several capabilities, and a capability's version and schema."""
    names = {name for name in (query.capability, *query.all) if name}

    def fits(record: AgentRecord) -> bool:
        specs = record.capabilities
        if query.any and not any(spec.name in query.any for spec in specs):
            return False
        if not (query.capability_version or query.input):
            return True
        meant = [spec for spec in specs if spec.name in (names or query.any)] if (names or query.any) else specs
        fitting = [spec for spec in meant if _spec_fits(spec, query)]
        return len(fitting) == len(meant) > 0 if names else bool(fitting)

    return fits


def _spec_fits(spec: CapabilitySpec, query: Query) -> bool:
    if query.capability_version and spec.version != query.capability_version:
        return False
    return not query.input or not spec.input or takes(spec.input, query.input)


def takes(wanted: dict[str, Any], given: dict[str, Any], *, depth: int = _MAX_DEPTH) -> bool:
    """Return whether what fits the schema ``given`` can be expected to fit ``wanted``; where they are silent, yes.

    It compares types, required fields and the types of fields both name, so many fields deep; it is no proof. What is
    no schema (a type that is no name, say) is silent.
    """
    if not depth:
        return True
    if not _types_meet(wanted.get("type"), given.get("type")):
        return False
    fields, has = wanted.get("properties"), given.get("properties")
    if not isinstance(has, dict):
        return True
    required = wanted.get("required")
    if isinstance(required, list) and any(name not in has for name in required if isinstance(name, str)):
        return False
    if not isinstance(fields, dict):
        return True
    if wanted.get("additionalProperties") is False and any(name not in fields for name in has):
        return False
    both = [(fields[name], has[name]) for name in fields if name in has]
    schemas = ((one, other) for one, other in both if isinstance(one, dict) and isinstance(other, dict))
    return all(takes(one, other, depth=depth - 1) for one, other in schemas)


def _types_meet(wanted: object, given: object) -> bool:
    one, other = _types(wanted), _types(given)
    if not one or not other:
        return True
    if "number" in one:
        one.add("integer")
    return bool(one & other)


def _types(given: object) -> set[str]:
    """Return the names in a schema's ``type``; empty when it says nothing that can be understood."""
    return {name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str)}


def same(one: AgentRecord, other: AgentRecord) -> bool:
    """Return whether two records say the same of an agent, whenever it registered."""
    return msgspec.structs.replace(one, registered_at=other.registered_at) == other
