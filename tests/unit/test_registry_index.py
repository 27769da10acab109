"""The index of agents: by what they can do and are, in pages, and the nearest names of what nobody can do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.registry.index import Index, takes
from callboard.runtime.registry.message import Query
from callboard.runtime.registry.record import AgentRecord, CapabilitySpec

AT = datetime(2026, 1, 1, tzinfo=UTC)


def agent(key: str, *names: str | CapabilitySpec, kind: str = "bot", **more: Any) -> AgentRecord:  # noqa: ANN401 - fields
    specs = [CapabilitySpec(name=name) if isinstance(name, str) else name for name in names]
    return AgentRecord(type=kind, key=key, capabilities=specs, registered_at=AT, **more)


def index_of(*agents: AgentRecord) -> Index:
    index = Index()
    for revision, found in enumerate(agents, 1):
        assert index.put(found, revision)
    return index


def found(index: Index, **query: Any) -> list[str]:  # noqa: ANN401 - fields
    return [record.key for record in index.matching(Query(**query))]


def test_what_is_given_must_all_hold() -> None:
    index = index_of(
        agent("a", "search", labels={"zone": "eu", "gpu": "t4"}, host="h1"),
        agent("b", "search", "sum", labels={"zone": "us"}, host="h1", version="2"),
        agent("c", "sum", kind="other", labels={"zone": "eu"}),
    )
    assert found(index, capability="search") == ["a", "b"]
    assert found(index, all=["search", "sum"]) == ["b"]
    assert found(index, any=["search", "sum"]) == ["a", "b", "c"]
    assert found(index, capability="search", labels={"zone": "eu", "gpu": "t4"}) == ["a"]
    assert found(index, type="other") == ["c"]
    assert found(index, host="h1", version="2") == ["b"]
    assert found(index, capability="search", labels={"zone": "moon"}) == []
    assert found(index) == ["a", "b", "c"]


@given(st.sets(st.text("abc", min_size=1, max_size=4), max_size=30), st.integers(1, 7))
def test_pages_give_everybody_once_and_in_order(keys: set[str], size: int) -> None:
    index = index_of(*(agent(key, "search") for key in sorted(keys, key=hash)))
    seen: list[str] = []
    after = ""
    while page := [record.address for record, _ in zip(index.matching(Query(after=after)), range(size), strict=False)]:
        seen += page
        after = page[-1]
    assert seen == sorted(f"bot/{key}" for key in keys)


def test_an_older_word_on_an_agent_changes_nothing() -> None:
    index = index_of(agent("a", "old"))
    assert index.put(agent("a", "new"), 5)
    assert not index.put(agent("a", "old"), 4)
    assert not index.remove("bot/a", 3)
    assert found(index, capability="new") == ["a"]
    assert index.remove("bot/a", 6)
    assert not index.put(agent("a", "late"), 5)
    assert (found(index), index.capabilities(), len(index)) == ([], [], 0)


def test_a_capability_that_nobody_has_is_answered_with_the_nearest_names() -> None:
    index = index_of(agent("a", "summarise", "search", "translate"))
    assert index.near("sumarize")[0] == "summarise"
    assert index.near("reserch", ["research"])[0] == "research"
    assert index.near("zzzz") == []


def test_it_says_what_left_whom_out() -> None:
    index = index_of(
        agent("a", "search", labels={"zone": "eu"}),
        agent("b", "search", labels={"zone": "us"}, version="2"),
        agent("c", "search", labels={"zone": "us"}),
        agent("d", "other"),
    )
    narrowed = index.narrow(Query(capability="search", labels={"zone": "us"}, version="2"))
    assert (list(narrowed.able), narrowed.refused) == (["bot/b"], {"labels.zone": 1, "version": 1})
    assert narrowed.has_capability == 3
    assert index.values("zone") == ["eu", "us"]


def test_a_typed_capability_is_found_by_version_and_schema() -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    index = index_of(
        agent("a", CapabilitySpec(name="sum", version="2", input=schema)),
        agent("b", CapabilitySpec(name="sum"), CapabilitySpec(name="x", version="2")),
    )
    sends = {"type": "object", "properties": {"text": {"type": "string"}}}
    number = {"type": "object", "properties": {"text": {"type": "integer"}}}
    assert found(index, capability="sum", capability_version="2") == ["a"]
    assert found(index, capability="sum", input=sends) == ["a", "b"]
    assert found(index, capability="sum", input=number) == ["b"]
    assert index.narrow(Query(capability="sum", capability_version="9")).refused == {"capability": 2}


def test_schemas_meet_where_types_and_required_fields_do() -> None:
    assert takes({"type": "number"}, {"type": "integer"})
    assert not takes({"type": "integer"}, {"type": "string"})
    assert takes({}, {"type": "string"})
    needs = {"type": "object", "required": ["a"], "properties": {"a": {}}, "additionalProperties": False}
    assert not takes(needs, {"type": "object", "properties": {"b": {}}})
    assert not takes(needs, {"type": "object", "properties": {"a": {}, "b": {}}})
    assert takes(needs, {"type": "object", "properties": {"a": {"type": "string"}}})
