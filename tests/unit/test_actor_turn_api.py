"""What an actor's methods hand to the turn, and what they say when none runs."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import pytest
from msgspec import Struct

import callboard
from callboard.runtime.actor.actor import Actor, TurnApi, turn_scope
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import TurnRef, current_turn
from callboard.runtime.errors import ActorError, InvalidNameError


class Ask(Struct):
    text: str


class FakeTurn:
    """Writes down what it is asked for."""

    attempt = 2
    deadline = None
    epoch = 7
    mail = "mail"

    def __init__(self, address: Address) -> None:
        self.address = address
        self.key = address.key
        self.asked: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def idempotency_key(self, step_name: str) -> str:
        return f"{self.address}:{step_name}"

    def step(self, name: str, fn: Callable[..., Any], /, *args: object, **kwargs: object) -> Awaitable[Any]:
        self.asked.append(("step", (name, *args), kwargs))
        options = {"key", "once", "retry"}

        async def run() -> object:
            value = fn(*args, **{key: item for key, item in kwargs.items() if key not in options})
            return await value if inspect.isawaitable(value) else value

        return run()

    async def gather(self, *aws: Awaitable[Any]) -> list[Any]:
        return [await item for item in aws]

    async def stream(self, to: object, message: object, *, timeout_s: float) -> AsyncIterator[object]:
        yield to
        yield message
        yield timeout_s

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name in ("tell", "remind", "cancel_timer", "emit", "progress"):
            return lambda *args, **kwargs: self.asked.append((name, args, kwargs))
        if name not in ("call", "ask", "wait_for"):
            raise AttributeError(name)

        async def answer(*args: object, **kwargs: object) -> object:
            self.asked.append((name, args, kwargs))
            return name

        return answer


class Talker(Actor):
    @on
    async def talk(self, m: Ask) -> str:
        return m.text


def _pair(key: str = "bob") -> tuple[Actor, FakeTurn]:
    address = Address("talker", key)
    return ActorType.of(Talker).new(address), FakeTurn(address)


def _as_turn(turn: FakeTurn) -> TurnApi:
    return cast("TurnApi", turn)


def test_an_actor_offers_all_that_a_turn_can_do() -> None:
    # what only code that is given a turn needs: a handler has no business with the connection, or with its own stop
    inner = {"bus", "clock", "stop"}
    names = {name for name in vars(TurnApi) if not name.startswith("_")} - inner
    assert names == {
        "address",
        "ask",
        "attempt",
        "call",
        "cancel_timer",
        "deadline",
        "emit",
        "epoch",
        "find",
        "gather",
        "idempotency_key",
        "is_stopping",
        "key",
        "mail",
        "pick",
        "progress",
        "remind",
        "step",
        "stream",
        "tell",
        "wait_for",
    }
    for name in names:
        assert (inspect.getdoc(getattr(TurnApi, name)) or "") != ""
        ours, theirs = getattr(Actor, name), getattr(TurnApi, name)
        if inspect.isfunction(theirs):
            assert list(inspect.signature(ours).parameters.values()) == list(
                inspect.signature(theirs).parameters.values()
            ) or name in ("gather", "wait_for")


def _each_call(actor: Actor) -> list[Callable[[], object]]:
    return [
        lambda: actor.mail,
        lambda: actor.attempt,
        lambda: actor.deadline,
        lambda: actor.epoch,
        lambda: actor.idempotency_key("x"),
        lambda: actor.step("x", len, "abc"),
        actor.gather,
        lambda: actor.call("x", 1),
        lambda: actor.ask("a/b", 1),
        lambda: actor.stream("a/b", 1),
        lambda: actor.tell("a/b", 1),
        lambda: actor.remind("x", 1, delay_s=5),
        lambda: actor.cancel_timer("x"),
        lambda: actor.emit("x"),
        lambda: actor.wait_for(Ask),
        lambda: actor.progress(5),
        lambda: actor.ref("a/b"),
        lambda: actor.wait(asyncio.sleep(0)),  # never awaited: closed
    ]


def test_outside_a_turn_each_says_so() -> None:
    actor, _ = _pair()
    for call in _each_call(actor):
        with pytest.raises(ActorError, match=r"Talker\.\w+ belongs to a turn and none runs: .* use a Client"):
            call()
    assert actor.key == "bob"
    with pytest.raises(ActorError, match="no turn runs here"):
        current_turn()


async def test_inside_a_turn_each_reaches_the_turn() -> None:
    actor, turn = _pair()
    with turn_scope(actor, _as_turn(turn)):
        assert current_turn() is cast("object", turn)
        assert [actor.attempt, actor.epoch, actor.deadline] == [2, 7, None]
        assert actor.mail == cast("object", "mail")
        assert actor.idempotency_key("pay") == "talker/bob:pay"
        assert await actor.step("size", len, "abc", key="k") == 3
        assert await actor.gather(actor.step("a", len, ""), actor.step("b", len, "x")) == [0, 1]
        assert await actor.ask("a/b", 1, timeout_s=2) == "ask"
        assert await actor.call("find", 1, key="k") == "call"
        assert await actor.wait_for("Ask", timeout="3d", hold=True) == cast("object", "wait_for")
        actor.tell("a/b", 1, delay_s=3)
        actor.remind("r", 1, every="1h")
        actor.cancel_timer("r")
        actor.emit("done", {"x": 1})
        actor.progress(50, stage="half")
        assert [part async for part in actor.stream("a/b", 1)] == ["a/b", 1, 30.0]
    assert turn.asked == [
        ("step", ("size", "abc"), {"key": "k", "once": False, "retry": None}),
        ("step", ("a", ""), {"key": None, "once": False, "retry": None}),
        ("step", ("b", "x"), {"key": None, "once": False, "retry": None}),
        ("ask", ("a/b", 1), {"timeout_s": 2, "idempotency_key": None, "recorded": True}),
        ("call", ("find", 1), {"timeout_s": None, "key": "k"}),
        ("wait_for", ("Ask",), {"timeout": "3d", "where": None, "hold": True}),
        ("tell", ("a/b", 1), {"delay_s": 3}),
        ("remind", ("r", 1), {"delay_s": None, "at": None, "every": "1h"}),
        ("cancel_timer", ("r",), {}),
        ("emit", ("done", {"x": 1}), {}),
        ("progress", (50,), {"stage": "half", "text": None}),
    ]
    with pytest.raises(ActorError):
        actor.tell("a/b", 1)


async def test_a_step_takes_its_place_by_the_call_and_not_by_the_await() -> None:
    actor, turn = _pair()
    with turn_scope(actor, _as_turn(turn)):
        first = actor.step("same", len, "1")
        second = actor.step("same", len, "22")
        assert [await second, await first] == [2, 1]
    assert [args for _, args, _ in turn.asked] == [("same", "1"), ("same", "22")]


async def test_turns_beside_each_other_on_one_object_keep_apart() -> None:
    actor, one = _pair()
    _, two = _pair()
    both = asyncio.Barrier(2)

    async def run(turn: FakeTurn, word: str) -> None:
        with turn_scope(actor, _as_turn(turn)):
            await both.wait()
            actor.tell("a/b", word)
            await both.wait()
            actor.emit(word)

    async with asyncio.TaskGroup() as group:
        group.create_task(run(one, "one"))
        group.create_task(run(two, "two"))
    assert [args for _, args, _ in one.asked] == [("a/b", "one"), ("one", None)]
    assert [args for _, args, _ in two.asked] == [("a/b", "two"), ("two", None)]


async def test_a_turn_of_one_actor_is_none_of_another() -> None:
    actor, turn = _pair()
    other, _ = _pair("ann")
    with turn_scope(actor, _as_turn(turn)), pytest.raises(ActorError, match="none runs"):
        other.tell("a/b", 1)


async def test_a_ref_is_bound_to_its_turn() -> None:
    actor, turn = _pair()
    with turn_scope(actor, _as_turn(turn)):
        bob = actor.ref("greeter/bob/x")
        assert isinstance(bob, TurnRef)
        assert repr(bob) == "<TurnRef greeter/bob/x>"
        bob.tell(1, delay_s=4)
        assert await bob.ask(2, idempotency_key="k") == "ask"
        assert [part async for part in actor.ref(Address("a", "b")).stream(3, timeout_s=1)] == [Address("a", "b"), 3, 1]
        with pytest.raises(InvalidNameError, match="write <type>/<key>"):
            actor.ref("bob")
    target = Address("greeter", "bob/x")
    assert turn.asked == [
        ("tell", (target, 1), {"delay_s": 4}),
        ("ask", (target, 2), {"timeout_s": 30.0, "idempotency_key": "k"}),
    ]


# --- synchronous handlers


async def test_a_synchronous_handler_waits_for_the_loop_from_its_thread() -> None:
    actor, turn = _pair()

    async def slow(text: str) -> str:
        await asyncio.sleep(0)
        return text * 2

    def handle() -> tuple[str, int, object]:
        actor.tell("a/b", "from a thread")
        return actor.wait(actor.step("slow", slow, "ab")), actor.wait(actor.step("quick", len, "abc")), current_turn()

    with turn_scope(actor, _as_turn(turn)):
        context = contextvars.copy_context()
        found = await asyncio.to_thread(context.run, handle)
    assert found == ("abab", 3, turn)
    assert [word for word, _, _ in turn.asked] == ["tell", "step", "step"]


async def test_an_error_of_what_it_waits_for_comes_to_the_synchronous_handler() -> None:
    actor, turn = _pair()

    async def fail() -> None:
        raise KeyError(turn)

    with turn_scope(actor, _as_turn(turn)), pytest.raises(KeyError):
        await asyncio.to_thread(lambda: actor.wait(actor.step("fail", fail)))


async def test_an_asynchronous_handler_is_told_to_await() -> None:
    actor, turn = _pair()
    with turn_scope(actor, _as_turn(turn)), pytest.raises(ActorError, match="write await here"):
        actor.wait(actor.ask("a/b", 1))


# --- hooks, types


async def test_hooks_do_nothing_by_themselves_and_may_be_of_both_kinds() -> None:
    class Hooked(Talker, name="hooked"):
        async def on_start(self) -> None:
            self.log = ["start"]

        def on_stop(self) -> None:
            self.log.append("stop")

        async def on_health(self) -> dict[str, Any]:
            return {"log": self.log}

    plain, _ = _pair()
    hooks = (plain.on_start(), plain.on_stop(), plain.on_pause(), plain.on_resume(), plain.on_failure(ValueError()))
    assert hooks == (None,) * 5
    assert plain.on_health() == {}
    hooked = ActorType.of(Hooked).new(Address("hooked", "x"))
    assert isinstance(hooked, Hooked)
    await hooked.on_start()
    hooked.on_stop()
    assert await hooked.on_health() == {"log": ["start", "stop"]}


if TYPE_CHECKING:

    async def _types(actor: Actor) -> None:
        async def fetch(x: int) -> bytes:
            return bytes(x)

        size: int = await actor.step("size", len, "abc")
        data: bytes = await actor.step("fetch", fetch, 1, once=True)
        ask: Ask = await actor.wait_for(Ask, timeout="3d")
        sizes: list[int] = await actor.gather(actor.step("a", len, ""), actor.step("b", len, ""))
        _ = (size, data, ask, sizes)


def test_the_public_names_are_these_objects() -> None:
    assert callboard.Actor is Actor
    assert callboard.on is on
    assert callboard.current_turn is current_turn
