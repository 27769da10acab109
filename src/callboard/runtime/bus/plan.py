"""What would have to change on the broker, and what each change would cost: pure functions over settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from callboard.runtime.bus.base import ConsumerConfig, ConsumerInfo, Source, StreamConfig, StreamInfo
from callboard.runtime.bus.topology import AUDIT, Topology

Action = Literal["create", "update", "replace"]

# The server refuses to change these in place, in the direction given by the declared value (None: in any).
_FIXED: Mapping[str, object] = {
    "retention": None,
    "storage": None,
    "persist_async": None,
    "deny_delete": False,
    "deny_purge": False,
    "allow_schedules": False,
    "allow_msg_ttl": False,
}
# Lowering one of these drops or strands what is stored beyond it; -1 and 0 are unlimited.
_LIMITS = {
    "max_age_s": "messages older than that are deleted",
    "max_msgs_per_subject": "older revisions are deleted",
}
_PREFIXES = ("CB_", "KV_CB_", "OBJ_CB_")
_SIGNS: Mapping[Action, str] = {"create": "+", "update": "~", "replace": "!"}
_NO_LEADER = "its size is unknown, because the stream has no leader now"
_SIZE_TOLERANCE = 1e-6
_SIZE_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_TIME_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


class FieldChange(Struct, frozen=True, kw_only=True):
    """One setting that differs.

    Attributes:
        destructive: What would be lost by changing it; empty when nothing is.
        is_fixed: Whether the server refuses to change it in place.
    """

    field: str
    old: object
    new: object
    destructive: str = ""
    is_fixed: bool = False


class Change(Struct, frozen=True, kw_only=True):
    """What has to be done to one stream or consumer.

    Attributes:
        action: ``replace`` deletes it with all it holds and creates it anew.
        consumer: The consumer on ``stream``, or "" when the stream itself changes.
        config: The settings wanted.
        fields: What differs; empty for ``create``.
    """

    action: Action
    stream: str
    consumer: str = ""
    config: StreamConfig | ConsumerConfig
    fields: tuple[FieldChange, ...] = ()

    @property
    def name(self) -> str:
        """What changes, for people."""
        return f"consumer {self.stream}/{self.consumer}" if self.consumer else f"stream {self.stream}"

    @property
    def is_optional(self) -> bool:
        """Whether everything works without it, so that it is left out until its loss is allowed.

        The audit copy of one server is written without waiting for the disk; then it can have one copy only, and the
        server changes neither in place. It stays as it is while the other streams get their further copies.
        """
        names = {field.field for field in self.fields if field.is_fixed or field.destructive}
        return self.stream == AUDIT and self.action == "replace" and names == {"persist_async"}

    @property
    def is_destructive(self) -> bool:
        """Whether it loses anything that is stored or kept safe now."""
        return self.action == "replace" or any(field.destructive for field in self.fields)


class Plan(Struct, frozen=True, kw_only=True):
    """All changes, in the order in which they are made.

    Attributes:
        changes: What has to be done.
        unknown: Streams that bear our prefix and are not declared; they are left alone.
    """

    changes: tuple[Change, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether everything is as declared."""
        return not self.changes

    @property
    def is_destructive(self) -> bool:
        """Whether any change loses something."""
        return any(change.is_destructive for change in self.changes)


def diff(
    topology: Topology,
    *,
    streams: Mapping[str, StreamInfo],
    consumers: Mapping[tuple[str, str], ConsumerInfo],
    names: Iterable[str] = (),
) -> Plan:
    """Compare what is declared with what is there.

    Args:
        topology: What should be there.
        streams: The streams that exist, by name.
        consumers: The consumers that exist, by stream and name.
        names: All streams of the account, to tell unknown ones.
    """
    changes: list[Change] = []
    replaced: set[str] = set()
    for config in topology.streams:
        change = _stream_change(config, streams.get(config.name))
        if change is not None:
            changes.append(change)
            if change.action == "replace":
                replaced.add(config.name)
    for stream, wanted in topology.consumers:
        # A stream that is deleted takes its consumers with it.
        there = None if stream in replaced else consumers.get((stream, wanted.name))
        consumer_change = _consumer_change(stream, wanted, there)
        if consumer_change is not None:
            changes.append(consumer_change)
    known = {config.name for config in topology.streams}
    unknown = sorted(name for name in names if name.startswith(_PREFIXES) and name not in known)
    return Plan(changes=tuple(changes), unknown=tuple(unknown))


def differences(old: StreamConfig, new: StreamConfig) -> list[str]:
    """Return the names of the settings in which two streams differ; order does not count."""
    return [name for name in StreamConfig.__struct_fields__ if not _equal(name, getattr(old, name), getattr(new, name))]


def render(plan: Plan) -> str:
    """Return the plan as text for people; the last line is a summary."""
    lines: list[str] = []
    for change in plan.changes:
        note = "  DESTRUCTIVE: deletes it with all it holds and creates it anew" if change.action == "replace" else ""
        note += "; left as it is unless that is allowed" if change.is_optional else ""
        lines.append(f"{_SIGNS[change.action]} {change.name}{note}")
        if change.action == "create":
            lines.append(f"    {_summary(change.config)}")
        lines += [_field_line(field, action=change.action) for field in change.fields]
    lines += [f"? stream {name}  not declared, left alone" for name in plan.unknown]
    lines.append(_totals(plan))
    return "\n".join(lines)


def to_json(plan: Plan) -> dict[str, object]:
    """Return the plan as plain JSON values: ``{"changes": […], "unknown": […], "destructive": bool}``."""
    changes = [
        {
            "action": change.action,
            "stream": change.stream,
            "consumer": change.consumer or None,
            "destructive": change.is_destructive,
            "fields": msgspec.to_builtins(change.fields),
            "config": msgspec.to_builtins(change.config),
        }
        for change in plan.changes
    ]
    return {"changes": changes, "unknown": list(plan.unknown), "destructive": plan.is_destructive}


def _stream_change(config: StreamConfig, info: StreamInfo | None) -> Change | None:
    if info is None:
        return Change(action="create", stream=config.name, config=config)
    fields = tuple(_field_change(name, config, info) for name in differences(info.config, config))
    if not fields:
        return None
    action: Action = "replace" if any(field.is_fixed for field in fields) else "update"
    return Change(action=action, stream=config.name, config=config, fields=fields)


def _consumer_change(stream: str, config: ConsumerConfig, info: ConsumerInfo | None) -> Change | None:
    if info is None:
        return Change(action="create", stream=stream, consumer=config.name, config=config)
    fields = tuple(
        FieldChange(field=name, old=getattr(info.config, name), new=getattr(config, name))
        for name in ConsumerConfig.__struct_fields__
        if not _equal(name, getattr(info.config, name), getattr(config, name))
    )
    if not fields:
        return None
    return Change(action="update", stream=stream, consumer=config.name, config=config, fields=fields)


def _field_change(name: str, config: StreamConfig, info: StreamInfo) -> FieldChange:
    old, new = getattr(info.config, name), getattr(config, name)
    is_fixed = name in _FIXED and _FIXED[name] in (None, new)
    return FieldChange(field=name, old=old, new=new, destructive=_loss(name, config, info), is_fixed=is_fixed)


def _loss(name: str, config: StreamConfig, info: StreamInfo) -> str:  # noqa: PLR0911 - one answer per setting
    """Say what changing this setting would lose, or nothing."""
    old, new = getattr(info.config, name), getattr(config, name)
    match name:
        case "subjects":
            gone = sorted(set(old) - set(new))
            return f"{', '.join(gone)} would be refused from then on" if gone else ""
        case "sources":
            gone = sorted(_source_filters(old) - _source_filters(new))
            return f"{', '.join(gone)} would no longer be copied" if gone else ""
        case "subject_transform":
            return "mail stored under the old partitions would never be read"
        case "replicas":
            return "fewer copies survive fewer failures" if new < old else ""
        case "discard":
            return "a full stream would drop its oldest messages" if new == "old" and _is_bounded(config) else ""
        case "discard_new_per_subject":
            return "records would no longer be write-once" if old else ""
        case "max_bytes":
            return _below(new, info.size_bytes, info=info, unit="bytes")
        case "max_msgs":
            return _below(new, info.messages, info=info, unit="messages")
        case "max_age_s" | "max_msgs_per_subject":
            return _LIMITS[name] if _lowers(old, new) else ""
        case _:
            return ""


def _below(limit: int, stored: int, *, info: StreamInfo, unit: str) -> str:
    if limit <= 0:
        return ""
    if info.leader is None:
        return _NO_LEADER
    if limit >= stored:
        return ""
    lost = "the oldest messages are deleted" if info.config.discard == "old" else "every write is refused"
    return f"{stored} {unit} are stored; {lost}"


def _lowers(old: float, new: float) -> bool:
    return new > 0 and (old <= 0 or new < old)


def _is_bounded(config: StreamConfig) -> bool:
    return config.max_bytes > 0 or config.max_msgs > 0


def _equal(name: str, old: object, new: object) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=_SIZE_TOLERANCE, abs_tol=_SIZE_TOLERANCE)
    if isinstance(old, tuple) and isinstance(new, tuple):
        if name == "sources":
            return _source_filters(old) == _source_filters(new)
        if name == "subjects":
            return set(old) == set(new)
    return old == new


def _source_filters(sources: Sequence[Source]) -> set[str]:
    """Return ``stream:filter`` for each: three sources with one filter copy the same as one with three."""
    return {f"{source.name}:{subject}" for source in sources for subject in source.filters or (">",)}


def _field_line(field: FieldChange, *, action: Action) -> str:
    line = f"    {field.field}: {_shown(field.field, field.old)} -> {_shown(field.field, field.new)}"
    if field.is_fixed and action == "replace":
        line += "  (the server cannot change this in place)"
    return f"{line}  DESTRUCTIVE: {field.destructive}" if field.destructive else line


def _totals(plan: Plan) -> str:
    if plan.is_empty:
        return "No changes: the broker has everything as declared."
    actions = [change.action for change in plan.changes]
    words = (("create", "to create"), ("update", "to update"), ("replace", "to replace"))
    parts = [f"{actions.count(action)} {text}" for action, text in words if action in actions]
    destructive = sum(change.is_destructive for change in plan.changes)
    return f"Plan: {', '.join(parts)}" + (f"; {destructive} destructive" if destructive else "")


def _summary(config: StreamConfig | ConsumerConfig) -> str:
    """Describe what would be created: the settings that differ from the defaults of their type."""
    if isinstance(config, ConsumerConfig):
        return f"filter {config.filter_subject}, ack wait {config.ack_wait_s:g} s, open claims {config.max_ack_pending}"
    plain = StreamConfig(name=config.name)
    return ", ".join(
        f"{name}={_shown(name, getattr(config, name))}" for name in differences(plain, config) if name != "name"
    )


def _shown(name: str, value: object) -> str:  # noqa: PLR0911 - one answer per kind of value
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_bytes"):
            return _amount(value, _SIZE_UNITS, "B")
        case float() if name.endswith("_s"):
            return _amount(value, _TIME_UNITS, "s")
        case int():
            return "unlimited" if value < 0 else str(value)
        case tuple() if name == "subject_transform":
            return " => ".join(value)
        case tuple() if name == "sources":
            return " ".join(sorted(_source_filters(value)))
        case tuple():
            return " ".join(value) or "none"
        case None:
            return "none"
        case _:
            return str(value)


def _amount(value: float, units: tuple[tuple[int, str], ...], base: str) -> str:
    if value <= 0:
        return "none" if base == "s" and value == 0 else "unlimited"
    for size, unit in units:
        # Only whole multiples: a rounded number would hide a difference.
        if value >= size and value % size == 0:
            return f"{int(value // size)} {unit}"
    return f"{value:.15g} {base}"
