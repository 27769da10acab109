from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from callboard.runtime.bus import topology
from callboard.runtime.bus.base import ConsumerInfo, Source, StreamConfig, StreamInfo
from callboard.runtime.bus.plan import Plan, diff, render, to_json
from callboard.runtime.bus.provision import promise_faults
from callboard.runtime.bus.topology import Topology, declared, fit, headroom
from callboard.runtime.config import TopologySettings, WorkSettings
from callboard.runtime.errors import InvalidNameError

GIB = 1 << 30
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
STREAMS = {config.name: config for config in declared(TopologySettings()).streams}


def info(config: StreamConfig, *, messages: int = 0, size_bytes: int = 0, leader: str | None = "") -> StreamInfo:
    return StreamInfo(
        config=config,
        messages=messages,
        size_bytes=size_bytes,
        first_seq=1,
        last_seq=messages,
        consumers=0,
        leader=leader,
    )


def plan_for(name: str, *, there: dict[str, object], size_bytes: int = 0, leader: str | None = "") -> Plan:
    wanted = STREAMS[name]
    found = info(replace(wanted, **there), messages=9, size_bytes=size_bytes, leader=leader)
    return diff(Topology(streams=(wanted,)), streams={name: found}, consumers={})


def test_nothing_there_means_everything_is_created_sources_first() -> None:
    plan = diff(declared(TopologySettings(), capabilities=["search"]), streams={}, consumers={})
    names = [change.stream for change in plan.changes]
    assert {change.action for change in plan.changes} == {"create"}
    assert names.index("CB_ACTORS") < names.index("CB_AUDIT")
    assert names[-4:] == ["CB_WORK", "CB_WORK", "CB_WORK", "CB_LATER"]
    assert not plan.is_destructive
    assert render(plan).endswith("Plan: 17 to create")


def test_without_an_audit_its_streams_are_neither_made_nor_removed() -> None:
    wanted = declared(TopologySettings(), audit=False)
    assert {"CB_AUDIT", "CB_AUDIT_GAPS"}.isdisjoint(config.name for config in wanted.streams)
    streams = {config.name: info(config) for config in STREAMS.values()}
    plan = diff(wanted, streams=streams, consumers={}, names=streams)
    assert (plan.is_empty, plan.unknown) == (True, ("CB_AUDIT", "CB_AUDIT_GAPS"))


def test_everything_as_declared_means_an_empty_plan() -> None:
    wanted = declared(TopologySettings(), capabilities=["search"])
    streams = {config.name: info(config) for config in wanted.streams}
    consumers = {
        (stream, config.name): ConsumerInfo(stream=stream, config=config, pending=0, ack_pending=0, redelivered=0)
        for stream, config in wanted.consumers
    }
    plan = diff(wanted, streams=streams, consumers=consumers, names=streams)
    assert plan == Plan()
    assert plan.is_empty
    assert render(plan) == "No changes: the broker has everything as declared."


def test_order_of_subjects_and_shape_of_sources_are_no_drift() -> None:
    assert plan_for("CB_WORK", there={"subjects": STREAMS["CB_WORK"].subjects[::-1]}).is_empty
    split = tuple(Source("CB_ACTORS", (f,)) for f in ("cb.step.>", "cb.mbox.>", "cb.state.>", "cb.event.>"))
    assert plan_for("CB_AUDIT", there={"sources": split}).is_empty


def test_drift_shows_old_and_new() -> None:
    plan = plan_for("CB_WORK", there={"max_bytes": 512 << 20, "subjects": ("cb.task.*",), "max_age_s": 3600.0})
    assert render(plan).splitlines() == [
        "~ stream CB_WORK",
        "    subjects: cb.task.* -> cb.task.* cb.task.*.high cb.task.*.low",
        "    max_age_s: 1 h -> none",
        "    max_bytes: 512 MiB -> 1 GiB",
        "Plan: 1 to update",
    ]
    assert not plan.is_destructive


@pytest.mark.parametrize(
    ("name", "there", "reason"),
    [
        ("CB_WORK", {"subjects": (*STREAMS["CB_WORK"].subjects, "my.x")}, "my.x would be refused from then on"),
        ("CB_WORK", {"max_bytes": 4 * GIB}, "2147483648 bytes are stored; every write is refused"),
        ("CB_AUDIT", {"max_bytes": 4 * GIB}, "2147483648 bytes are stored; the oldest messages are deleted"),
        ("CB_LEDGER", {"max_age_s": 0.0}, "messages older than that are deleted"),
        ("CB_LEDGER", {"max_age_s": 90 * 86400.0}, "messages older than that are deleted"),
        ("KV_CB_CONFIG", {"max_msgs_per_subject": 64}, "older revisions are deleted"),
        ("CB_WORK", {"replicas": 3}, "fewer copies survive fewer failures"),
        ("CB_TOKENS", {"discard": "new"}, "a full stream would drop its oldest messages"),
        ("CB_DEAD", {"discard_new_per_subject": True}, "records would no longer be write-once"),
        ("CB_AUDIT", {"sources": (Source("X"),)}, "X:> would no longer be copied"),
        (
            "CB_ACTORS",
            {"subject_transform": topology.partition_transform(8)},
            "mail stored under the old partitions would never be read",
        ),
    ],
)
def test_a_change_that_loses_something_is_destructive(name: str, there: dict[str, object], reason: str) -> None:
    plan = plan_for(name, there=there, size_bytes=2 * GIB)
    assert [field.destructive for field in plan.changes[0].fields] == [reason]
    assert plan.changes[0].action == "update"
    assert plan.is_destructive
    assert render(plan).endswith("Plan: 1 to update; 1 destructive")


def test_lowering_a_limit_above_what_is_stored_loses_nothing() -> None:
    assert not plan_for("CB_WORK", there={"max_bytes": 4 * GIB}, size_bytes=GIB).is_destructive


def test_lowering_a_limit_without_a_leader_is_destructive_because_the_size_is_not_known() -> None:
    assert plan_for("CB_WORK", there={"max_bytes": 4 * GIB}, leader=None).is_destructive


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("CB_WORK", {"retention": "limits"}),
        ("CB_WORK", {"storage": "memory"}),
        ("CB_AUDIT", {"persist_async": False}),
        ("CB_WORK", {"deny_purge": True}),
        ("CB_WORK", {"deny_delete": True}),
        ("CB_WORK", {"allow_schedules": True}),
        ("CB_AUDIT", {"allow_msg_ttl": True}),
    ],
)
def test_what_the_server_cannot_change_in_place_is_a_destructive_replacement(
    name: str, there: dict[str, object]
) -> None:
    plan = plan_for(name, there=there)
    assert plan.changes[0].action == "replace"
    assert plan.is_destructive
    assert "DESTRUCTIVE: deletes it with all it holds" in render(plan)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("CB_LEDGER", {"deny_purge": False}),
        ("CB_LEDGER", {"deny_delete": False}),
        ("CB_ACTORS", {"allow_schedules": False}),
        ("CB_ACTORS", {"allow_msg_ttl": False}),
        ("CB_ACTORS", {"max_age_s": 9.0}),
    ],
)
def test_switching_a_safeguard_on_is_an_update(name: str, there: dict[str, object]) -> None:
    plan = plan_for(name, there=there)
    assert plan.changes[0].action == "update"
    assert not plan.is_destructive


def test_a_replaced_stream_gets_its_consumers_again() -> None:
    wanted = declared(TopologySettings(), capabilities=["search"])
    streams = {config.name: info(config) for config in wanted.streams}
    streams["CB_WORK"] = info(replace(STREAMS["CB_WORK"], retention="limits"))
    consumers = {
        (stream, config.name): ConsumerInfo(stream=stream, config=config, pending=0, ack_pending=0, redelivered=0)
        for stream, config in wanted.consumers
    }
    plan = diff(wanted, streams=streams, consumers=consumers)
    assert [(change.action, change.consumer) for change in plan.changes] == [
        ("replace", ""),
        ("create", "search-high"),
        ("create", "search-normal"),
        ("create", "search-low"),
    ]


def test_unknown_streams_are_shown_and_left_alone() -> None:
    wanted = Topology(streams=())
    plan = diff(wanted, streams={}, consumers={}, names=["CB_OLD", "KV_CB_X", "orders"])
    assert plan.unknown == ("CB_OLD", "KV_CB_X")
    assert plan.is_empty
    assert "? stream CB_OLD  not declared, left alone" in render(plan)


def test_the_plan_is_plain_json() -> None:
    plan = plan_for("CB_WORK", there={"max_bytes": 4 * GIB}, size_bytes=2 * GIB)
    told = to_json(plan)
    assert told["destructive"] is True
    changes = told["changes"]
    assert isinstance(changes, list)
    assert changes[0]["fields"][0]["field"] == "max_bytes"
    assert changes[0]["consumer"] is None


def test_consumers_of_a_capability() -> None:
    high, normal, low = topology.task_consumers("search", WorkSettings(max_ack_pending=5))
    assert (high.name, normal.name, low.name) == ("search-high", "search-normal", "search-low")
    assert [lane.filter_subject for lane in (high, normal, low)] == [
        "cb.task.search.high",
        "cb.task.search",
        "cb.task.search.low",
    ]
    assert (normal.ack_wait_s, normal.max_ack_pending, normal.max_deliver) == (4.0, 5, -1)
    due = topology.due_consumer("search", WorkSettings())
    assert (due.name, due.filter_subject) == ("search-due", "cb.due.search")
    with pytest.raises(InvalidNameError):
        topology.task_consumers("no.dots", WorkSettings())


def test_no_stream_with_schedules_has_a_limit_that_would_drop_in_silence() -> None:
    for config in STREAMS.values():
        if config.allow_schedules:
            assert config.discard == "old"
            assert (config.max_age_s, config.max_bytes, config.max_msgs, config.max_msgs_per_subject) == (0, -1, -1, -1)


def test_state_lives_in_no_stream_with_an_age_limit() -> None:
    holders = [config for config in STREAMS.values() if any("cb.state" in subject for subject in config.subjects)]
    assert [config.name for config in holders] == ["CB_ACTORS"]
    assert holders[0].max_age_s == 0.0


def test_raising_the_replicas_updates_every_stream_but_the_audit_copy_of_one_server() -> None:
    there = {name: info(config) for name, config in STREAMS.items()}
    plan = diff(declared(TopologySettings(replicas=3)), streams=there, consumers={})
    optional = [change for change in plan.changes if change.is_optional]
    assert [change.stream for change in optional] == ["CB_AUDIT"]
    assert [change.stream for change in plan.changes if change.is_destructive] == ["CB_AUDIT"]
    assert {change.action for change in plan.changes if not change.is_optional} == {"update"}
    assert "    replicas: 1 -> 3" in render(plan).splitlines()
    assert "creates it anew; left as it is unless that is allowed" in render(plan)


def test_a_stream_that_must_be_synced_is_not_left_as_it_is() -> None:
    plan = plan_for("CB_WORK", there={"persist_async": True})
    assert not plan.changes[0].is_optional


def test_replicas_reach_every_stream_and_replicated_audit_is_synced() -> None:
    streams = declared(TopologySettings(replicas=3)).streams
    assert {config.replicas for config in streams} == {3}
    assert not any(config.persist_async for config in streams)
    assert [config.name for config in STREAMS.values() if config.persist_async] == ["CB_AUDIT"]


def test_declared_streams_keep_their_own_promises() -> None:
    assert [fault for config in STREAMS.values() for fault in promise_faults(config, partitions=16)] == []


@pytest.mark.parametrize(
    ("name", "there", "fault"),
    [
        ("CB_ACTORS", {"max_age_s": 60.0}, "actor state would be deleted at a restart of the server"),
        ("CB_ACTORS", {"max_bytes": GIB}, "the state of idle actors would be dropped in silence"),
        ("CB_ACTORS", {"subject_transform": None}, "has no subject transform"),
        ("CB_ACTORS", {"subject_transform": topology.partition_transform(8)}, "topology.partitions is 16"),
        ("CB_LEDGER", {"max_msgs_per_subject": -1}, "a task could have two records"),
        ("CB_LEDGER", {"discard": "old"}, "a task's record could be overwritten"),
        ("CB_WORK", {"discard": "old"}, "a full queue would drop acknowledged tasks"),
        ("CB_WORK", {"storage": "memory"}, "would lose acknowledged messages"),
        ("CB_WORK", {"subjects": ("cb.task.*",)}, "does not take cb.task.*.high, cb.task.*.low"),
        ("CB_LATER", {"allow_schedules": False}, "need schedules"),
        ("CB_DEAD", {"persist_async": True}, "would not be on disk"),
    ],
)
def test_a_setting_that_breaks_a_promise_is_told_with_the_reason(
    name: str, there: dict[str, object], fault: str
) -> None:
    (told,) = promise_faults(replace(STREAMS[name], **there), partitions=16)
    assert fault in told


def test_limits_shrink_together_to_fit_a_small_store() -> None:
    settings = TopologySettings()
    assert fit(settings, store_bytes=100 * GIB) is settings
    small = fit(settings, store_bytes=GIB)
    limits = [config.max_bytes for config in declared(small).streams if config.storage == "file"]
    assert sum(limit for limit in limits if limit > 0) <= GIB * 3 // 4
    assert small.ledger_max_bytes == pytest.approx(2 * small.queue_max_bytes, abs=2)


def filled(config: StreamConfig, *, size_bytes: int, age: timedelta) -> StreamInfo:
    return replace(info(config, messages=1 if size_bytes else 0, size_bytes=size_bytes), first_time=NOW - age)


def test_headroom_says_how_long_until_writes_are_refused() -> None:
    room = headroom(filled(STREAMS["CB_WORK"], size_bytes=GIB // 4, age=timedelta(hours=2)), now=NOW)
    assert room.bytes_left == GIB * 3 // 4
    assert room.hours_left == pytest.approx(6)
    assert room.when_full == "writes are refused"


def test_headroom_of_a_stream_that_ages_out_first_is_endless() -> None:
    config = replace(STREAMS["CB_AUDIT"], max_age_s=3600.0)
    room = headroom(filled(config, size_bytes=GIB // 4, age=timedelta(hours=1)), now=NOW)
    assert (room.hours_left, room.when_full) == (None, "the oldest messages are dropped")


def test_headroom_without_limit_rate_or_messages() -> None:
    unlimited = filled(STREAMS["CB_ACTORS"], size_bytes=10, age=timedelta(hours=1))
    assert (headroom(unlimited, now=NOW).bytes_left, headroom(unlimited, now=NOW).hours_left) == (None, None)
    assert headroom(unlimited, now=NOW, limit_bytes=20).hours_left == pytest.approx(1)
    young = filled(STREAMS["CB_WORK"], size_bytes=10, age=timedelta(seconds=5))
    assert (headroom(young, now=NOW).bytes_per_hour, headroom(young, now=NOW).hours_left) == (None, None)
    empty = info(STREAMS["CB_WORK"])
    assert headroom(empty, now=NOW).bytes_left == GIB
    full = filled(STREAMS["CB_WORK"], size_bytes=GIB, age=timedelta(seconds=5))
    assert headroom(full, now=NOW).hours_left == 0.0
