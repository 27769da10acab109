"""The class that a user writes: what is taken, what is refused, and in which words."""

from __future__ import annotations

import types
from typing import Any

import pydantic
import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.definition import ActorType, find_actors
from callboard.runtime.actor.handler import on
from callboard.runtime.capability import capability
from callboard.runtime.errors import ActorDefinitionError, ConfigError


class Ask(Struct):
    text: str


class Reply(Struct):
    text: str
    turn: int


class Model(pydantic.BaseModel):
    size: int


class Greeter(Actor, capabilities=["greet"]):
    """Greets."""

    class State(Struct):
        turns: int = 0

    @on
    async def hello(self, m: Ask) -> Reply:
        """Say hello.

        More of it.
        """
        self.state.turns += 1
        return Reply(f"hi {m.text}", self.state.turns)


# --- what a class says


def test_a_class_gives_name_capabilities_and_handlers() -> None:
    kind = ActorType.of(Greeter)
    assert (kind.name, kind.capabilities, kind.version, kind.cls) == ("greeter", ("greet",), 1, Greeter)
    handler = kind.handlers["Ask"]
    assert (handler.name, handler.method, handler.is_async, handler.is_stream, handler.doc) == (
        "Ask",
        "hello",
        True,
        False,
        "Say hello.",
    )
    given = [handler.read_only, handler.droppable, handler.timeout_s, handler.retry, handler.rule]
    assert not any(given)


async def test_a_handler_is_called_with_the_decoded_message() -> None:
    kind = ActorType.of(Greeter)
    actor = kind.new(Address("greeter", "bob"))
    handler, data = kind.select("Ask", b'{"text":"ann"}', None)
    assert await handler(actor, kind.decode(handler, "Ask", data)) == Reply("hi ann", 1)
    assert (str(actor.address), actor.key) == ("greeter/bob", "bob")


def test_the_type_of_a_class_is_made_once_and_not_shared_with_its_subclass() -> None:
    class Polite(Greeter):
        pass

    assert ActorType.of(Greeter) is ActorType.of(Greeter)
    assert ActorType.of(Polite).name == "polite"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Greeter", "greeter"), ("HttpProbe", "http-probe"), ("HTTPProbe2", "http-probe2"), ("My_Own", "my_own")],
)
def test_the_name_comes_from_the_class(name: str, expected: str) -> None:
    cls = types.new_class(name, (Greeter,))
    assert ActorType.of(cls).name == expected


@pytest.mark.parametrize("name", ["", "Greeter", "a.b", "task", "client", "x" * 65])
def test_a_name_that_is_no_token_is_refused_with_the_place_to_change(name: str) -> None:
    with pytest.raises(ActorDefinitionError, match=r'(?s)actor .*Odd: .*class Odd\(Actor, name="..."\)'):
        types.new_class("Odd", (Greeter,), {"name": name})


def test_a_subclass_takes_over_what_it_does_not_say() -> None:
    class Base(Actor, abstract=True, idle_s=5.0, max_chain=7, capabilities=["a"]):
        @on
        def ask_me(self, m: Ask) -> None: ...

    class One(Base, name="one", idle_s=9.0):
        pass

    options = ActorType.of(One).options
    assert (options.idle_s, options.max_chain, options.capabilities) == (9.0, 7, ("a",))
    assert list(ActorType.of(One).handlers) == ["Ask"]
    assert ActorType.of(Greeter).options.idle_s is None


def test_an_abstract_class_is_not_hosted() -> None:
    class Base(Actor, abstract=True):
        pass

    with pytest.raises(ActorDefinitionError, match="Base is abstract and cannot be hosted"):
        ActorType.of(Base)
    with pytest.raises(ActorDefinitionError, match="Actor is abstract"):
        ActorType.of(Actor)


def test_a_class_without_handlers_is_refused() -> None:
    with pytest.raises(ActorDefinitionError, match="Idle handles nothing: put @on above a method"):
        types.new_class("Idle", (Actor,))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("version", 0, "version is 0, take a whole number from 1"),
        ("version", "2", "version is '2'"),
        ("idle_s", 0, "idle_s is 0: take seconds"),
        ("idle_s", float("inf"), "idle_s is inf"),
        ("turn_timeout_s", -1, "turn_timeout_s is -1"),
        ("turn_timeout_s", "5s", "turn_timeout_s is '5s'"),
        ("mailbox_cap", 0, "mailbox_cap is 0"),
        ("mailbox_cap", True, "mailbox_cap is True"),
        ("mailbox_policy", "forget", "mailbox_policy is 'forget', take one of reject, park, drop"),
        ("restart_budget", -1, "restart_budget is -1, take a whole number from 0"),
        ("restart_window_s", 0, "restart_window_s is 0"),
        ("poison_limit", 0, "poison_limit is 0"),
        ("state_limit_bytes", 0.5, "state_limit_bytes is 0.5"),
        ("max_chain", 0, "max_chain is 0"),
        ("retry", 3, "retry is int: give a RetryPolicy"),
    ],
)
def test_a_number_out_of_range_is_named(option: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"actor Odd: {said}"):
        types.new_class("Odd", (Greeter,), {option: value})


@pytest.mark.parametrize("value", ["greet", 5, ["Greet"], [5], None])
def test_capabilities_are_a_list_of_names(value: object) -> None:
    with pytest.raises(ActorDefinitionError, match="actor Odd: capabilities"):
        types.new_class("Odd", (Greeter,), {"capabilities": value})


def test_capabilities_may_be_given_as_functions() -> None:
    @capability("search")
    def search(text: str) -> str:
        return text

    class Finder(Greeter, name="finder", capabilities=[search, "find", "find"]):
        pass

    assert ActorType.of(Finder).capabilities == ("search", "find")


def test_an_unknown_option_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ActorDefinitionError, match="has no option idel_s: there are name, abstract, capabilities"):
        types.new_class("Odd", (Greeter,), {"idel_s": 5})


def test_a_mixin_may_take_keywords_of_its_own() -> None:
    class Tagged:
        tag = ""

        def __init_subclass__(cls, *, tag: str = "", **others: object) -> None:
            super().__init_subclass__(**others)
            cls.tag = tag

    class Local(Struct):
        x: int

    class One(Tagged, Actor, name="one", tag="a"):
        @on
        def take(self, m: Local) -> None: ...

    class Two(Actor, Tagged, name="two", tag="b"):
        @on
        def take(self, m: Local) -> None: ...

    assert (One.tag, ActorType.of(One).name, list(ActorType.of(One).handlers)) == ("a", "one", ["Local"])
    assert (Two.tag, ActorType.of(Two).name) == ("b", "two")


# --- modules


def test_actors_of_a_module_are_found_by_name() -> None:
    module = types.ModuleType("shop")

    def make(name: str, base: type[Actor], /, home: str = "shop", **options: Any) -> None:  # noqa: ANN401
        cls = types.new_class(name, (base,), options)
        cls.__module__ = home
        setattr(module, name, cls)

    make("Base", Greeter, home="elsewhere")
    make("Shared", Greeter, home="elsewhere")
    make("Zeta", module.Base)
    make("Alpha", Greeter)
    make("Hidden", Greeter, abstract=True)
    vars(module)["Again"] = module.Alpha
    vars(module)["Actor"] = Actor
    assert [cls.__name__ for cls in find_actors(module)] == ["Alpha", "Shared", "Zeta"]
    make("Beta", Greeter, name="alpha")
    with pytest.raises(ConfigError, match="the actors Alpha and Beta are both named 'alpha': rename one"):
        find_actors(module)


def test_an_init_with_parameters_is_refused() -> None:
    class Needy(Greeter, name="needy"):
        def __init__(self, size: int) -> None:
            self.size = size

    with pytest.raises(ActorDefinitionError, match=r"Needy\.__init__ missing a required argument: 'size'"):
        ActorType.of(Needy)


def test_an_init_of_ones_own_knows_the_address_and_need_not_call_ours() -> None:
    class Own(Greeter, name="own"):
        def __init__(self) -> None:
            self.title = f"{self.key} has {self.state.turns}"

    actor = ActorType.of(Own).new(Address("own", "bob"))
    assert isinstance(actor, Own)
    assert actor.title == "bob has 0"


def test_the_fingerprint_follows_messages_state_and_version() -> None:
    def prints(**options: Any) -> str:  # noqa: ANN401
        return ActorType.of(types.new_class("Greeter", (Greeter,), options)).fingerprint

    class Wider(Greeter, name="greeter"):
        class State(Struct):
            turns: int = 0
            last: str = ""

    class More(Greeter, name="greeter"):
        @on
        def model(self, m: Model) -> None: ...

    assert prints() == prints(idle_s=5.0) == ActorType.of(Greeter).fingerprint
    assert len({prints(), prints(version=2), ActorType.of(Wider).fingerprint, ActorType.of(More).fingerprint}) == 4
