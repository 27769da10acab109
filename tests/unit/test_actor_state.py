"""An actor's state: made, loaded, migrated, stored."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
from msgspec import UNSET, Raw, Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.migration import migrate
from callboard.runtime.errors import ActorDefinitionError, EncodeError, MigrationError, StateDecodeError


class Base(Actor, abstract=True):
    @on
    def take(self, m: str) -> None: ...


class Counter(Base, version=3):
    """Its state was {count} in version 1, {turns} in 2, and has names in 3."""

    class State(Struct):
        turns: int = 0
        names: list[str] = []

    @migrate(1)
    @staticmethod
    def rename(old: dict[str, Any]) -> dict[str, Any]:
        return {"turns": old["count"]}

    @migrate(2)
    @staticmethod
    def name(old: dict[str, Any]) -> dict[str, Any]:
        old["names"] = ["nobody"] * old["turns"]
        return old


# --- kinds of state


@dataclass
class Data:
    turns: int = 0
    names: list[str] = field(default_factory=list)


class Typed(TypedDict, total=False):
    turns: int


class Model(pydantic.BaseModel):
    turns: int = 0


class Plain(Struct):
    turns: int = 0


def _actor(state: object, **options: Any) -> ActorType:  # noqa: ANN401
    return ActorType.of(types.new_class("Some", (Base,), options, lambda names: names.update(State=state)))


@pytest.mark.parametrize("state", [Data, Typed, Model, Plain, dict])
def test_a_state_of_every_kind_survives_being_stored(state: Any) -> None:  # noqa: ANN401
    kind = _actor(state)
    fresh = kind.new_state()
    assert fresh == state()
    assert kind.load_state(Raw(kind.dump_state(fresh)), 1) == fresh
    changed = kind.load_state(Raw(b'{"turns":3}'), 1)
    assert msgspec.json.decode(kind.dump_state(changed))["turns"] == 3


def test_two_actors_do_not_share_a_fresh_state() -> None:
    kind = ActorType.of(Counter)
    first, second = kind.new_state(), kind.new_state()
    assert isinstance(first, Counter.State)
    assert isinstance(second, Counter.State)
    first.names.append("x")
    assert second.names == []


def test_an_actor_without_a_state_class_has_none() -> None:
    kind = ActorType.of(types.new_class("Some", (Base,)))
    assert not kind.has_state
    assert kind.new_state() is None
    assert kind.load_state(UNSET, 1) is None
    assert kind.load_state(Raw(kind.dump_state(None)), 1) is None
    with pytest.raises(EncodeError, match="has no State class"):
        kind.dump_state({"x": 1})
    # it may have had one; losing it would be silent
    with pytest.raises(StateDecodeError, match="has a stored state and its class no State"):
        kind.load_state(Raw(b'{"turns":1}'), 1)


def test_a_state_needs_a_default_for_every_field() -> None:
    class Needy(Struct):
        turns: int
        name: str = ""

    @dataclass
    class NeedyData:
        turns: int

    class NeedyTyped(TypedDict):
        turns: int

    class NeedyModel(pydantic.BaseModel):
        turns: int

    for state in (Needy, NeedyData, NeedyTyped, NeedyModel):
        with pytest.raises(ActorDefinitionError, match=r"(?s)Some\.State cannot start an actor: .*turns.*default"):
            _actor(state)


def test_a_state_that_nothing_can_be_decoded_into_is_refused() -> None:
    class Odd:
        pass

    for state in (Odd, 5):
        with pytest.raises(ActorDefinitionError, match=r"Some\.State: .* cannot be decoded into"):
            _actor(state)


# --- loading and storing


def test_nothing_stored_is_a_fresh_state() -> None:
    assert ActorType.of(Counter).load_state(UNSET, 1) == Counter.State()


def test_a_state_that_does_not_fit_says_where_and_what_helps() -> None:
    kind = ActorType.of(Counter)
    with pytest.raises(StateDecodeError, match=r"counter: .*`\$\.turns`.*give new fields a default.*@migrate\(3\)"):
        kind.load_state(Raw(b'{"turns":"x"}'), 3)
    with pytest.raises(StateDecodeError):
        kind.load_state(Raw(b"{{"), 3)


def test_a_turn_cannot_leave_what_the_next_one_could_not_load() -> None:
    kind = ActorType.of(Counter)
    for wrong in (Counter.State(turns="x"), None, 5, Counter.State(names=[object()])):  # type: ignore[arg-type,list-item]
        with pytest.raises(EncodeError):
            kind.dump_state(wrong)
    with pytest.raises(EncodeError, match=r"the turn left a state that does not fit its class: .*`\$\.turns`"):
        kind.dump_state(Counter.State(turns="x"))  # type: ignore[arg-type]


# --- migration


def test_an_old_state_is_brought_through_every_version() -> None:
    kind = ActorType.of(Counter)
    assert kind.load_state(Raw(b'{"count":2}'), 1) == Counter.State(2, ["nobody", "nobody"])
    assert kind.load_state(Raw(b'{"turns":1}'), 2) == Counter.State(1, ["nobody"])
    assert kind.load_state(Raw(b'{"turns":1,"names":["a"]}'), 3) == Counter.State(1, ["a"])


def test_a_state_of_a_newer_class_asks_for_an_upgrade() -> None:
    with pytest.raises(StateDecodeError, match=r"version 4, this host's class 3: upgrade this host"):
        ActorType.of(Counter).load_state(Raw(b'{"turns":1}'), 4)


def _migrated(steps: dict[int, Callable[[dict[str, Any]], Any]]) -> ActorType:
    def fill(names: dict[str, Any]) -> None:
        names["State"] = Plain
        names.update({f"from_{version}": migrate(version)(step) for version, step in steps.items()})

    return ActorType.of(types.new_class("Some", (Base,), {"version": 3}, fill))


def test_a_failing_migration_touches_nothing_and_may_succeed_later() -> None:
    is_broken = True
    ran: list[int] = []

    def first(old: dict[str, Any]) -> dict[str, Any]:
        ran.append(1)
        return {"turns": old.pop("count")}

    def second(old: dict[str, Any]) -> dict[str, Any]:
        ran.append(2)
        old["turns"] += 1
        if is_broken:
            message = "no space left"
            raise OSError(message)
        return old

    kind = _migrated({1: first, 2: second})
    stored = Raw(b'{"count":4}')
    for _ in range(2):
        with pytest.raises(
            MigrationError, match=r"from version 2 failed: OSError: no space left; .* untouched"
        ) as caught:
            kind.load_state(stored, 1)
        assert isinstance(caught.value.__cause__, OSError)
    assert bytes(stored) == b'{"count":4}'
    is_broken = False
    assert kind.load_state(stored, 1) == Plain(5)
    assert ran == [1, 2] * 3


@pytest.mark.parametrize("broken", [1, 2])
@pytest.mark.parametrize(
    ("step", "said"),
    [
        (None, "there is no migration from"),
        (lambda old: old["absent"], "failed: KeyError"),
        (lambda old: None, "returned NoneType: return the new state as a dict"),
        (lambda old: {"turns": "many"}, "does not fit State|failed: TypeError"),
        (lambda old: {"turns": object()}, "does not fit State|failed: TypeError"),
    ],
)
def test_every_way_to_fail_is_a_migration_error(
    broken: int, step: Callable[[dict[str, Any]], Any] | None, said: str
) -> None:
    steps: dict[int, Callable[[dict[str, Any]], Any]] = {
        1: lambda old: {"turns": old["count"]},
        2: lambda old: {"turns": old["turns"] + 1},
    }
    if step is None:
        del steps[broken]
    else:
        steps[broken] = step
    kind = _migrated(steps)
    stored = Raw(b'{"count":4}')
    with pytest.raises(MigrationError, match=said):
        kind.load_state(stored, 1)
    assert bytes(stored) == b'{"count":4}'


def test_a_stored_state_that_is_no_json_is_not_handed_to_migrations() -> None:
    with pytest.raises(StateDecodeError, match="is no JSON"):
        ActorType.of(Counter).load_state(Raw(b"{{"), 1)


def test_migrations_are_inherited_and_overridden() -> None:
    class More(Counter, version=4):
        @migrate(2)
        @staticmethod
        def other(old: dict[str, Any]) -> dict[str, Any]:
            return {**old, "names": ["other"]}

        @migrate(3)
        def upper(old: dict[str, Any]) -> dict[str, Any]:  # noqa: N805 - static all the same
            return {**old, "names": [name.upper() for name in old["names"]]}

    assert ActorType.of(More).load_state(Raw(b'{"count":2}'), 1) == Counter.State(2, ["OTHER"])
    assert More.rename({"count": 1}) == {"turns": 1}


def test_migrations_are_checked_when_the_class_is_made() -> None:
    def step(old: dict[str, Any]) -> dict[str, Any]:
        return old

    def other(old: dict[str, Any]) -> dict[str, Any]:
        return old

    with pytest.raises(ActorDefinitionError, match=r"Some\.step migrates from version 3 .*version=3: write version=4"):
        types.new_class("Some", (Counter,), {}, lambda names: names.update(step=migrate(3)(step)))
    with pytest.raises(ActorDefinitionError, match="Some: two migrations start from version 1; other is the second"):
        types.new_class(
            "Some", (Counter,), {}, lambda names: names.update(step=migrate(1)(step), other=migrate(1)(other))
        )
    for version in (0, -1, "1", True):
        with pytest.raises(ActorDefinitionError, match="name the version it starts from"):
            migrate(version)  # type: ignore[arg-type]
    with pytest.raises(ActorDefinitionError, match="belongs above a function"):
        migrate(1)(dict)
