"""Hosting an actor's class hosts what it cannot do without: its companions, each once."""

from __future__ import annotations

import pytest
from msgspec import Struct

from callboard.runtime import testing
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import with_companions
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import ActorDefinitionError
from callboard.runtime.loader import Parts
from callboard.runtime.worker import WorkerOptions


class Word(Struct):
    text: str


class Clerk(Actor, name="clerk"):
    @on
    async def hear(self, m: Word) -> str:
        return f"clerk heard {m.text}"


class Desk(Actor, name="desk"):
    companions = (Clerk,)

    @on
    async def hear(self, m: Word) -> str:
        return str(await self.ask("clerk/one", m))


class Office(Actor, name="office"):
    companions = (Desk, Clerk)

    @on
    async def hear(self, m: Word) -> str:
        return str(await self.ask("desk/one", m))


def test_companions_of_companions_come_once_and_last() -> None:
    assert with_companions([Office]) == [Office, Desk, Clerk]
    assert with_companions([Clerk, Desk, Office]) == [Clerk, Desk, Office]
    assert with_companions([Desk, Office, Desk]) == [Desk, Office, Clerk]
    assert with_companions([]) == []


def test_a_subclass_inherits_them() -> None:
    class Branch(Office, name="branch"):
        pass

    assert with_companions([Branch]) == [Branch, Desk, Clerk]


def test_two_that_need_each_other_are_fine() -> None:
    class Left(Clerk, name="left"):
        pass

    class Right(Clerk, name="right"):
        companions = (Left,)

    Left.companions = (Right,)
    assert with_companions([Left]) == [Left, Right]


def test_another_class_of_the_same_name_is_refused() -> None:
    class Other(Actor, name="clerk"):
        @on
        async def hear(self, m: Word) -> None: ...

    with pytest.raises(ActorDefinitionError, match=r"'clerk' is taken by .*Clerk.* rename .*Other"):
        with_companions([Other, Desk])


def test_what_is_no_class_of_actors_is_refused() -> None:
    class Lost(Clerk, name="lost"):
        companions = ("clerk",)  # type: ignore[assignment] # the mistake under test

    with pytest.raises(ActorDefinitionError, match=r"Lost.companions is .*give a list of actor classes"):
        with_companions([Lost])


def test_a_module_counts_as_serving_them() -> None:
    assert Parts(actors=(Desk,)).names[1] == {"desk", "clerk"}


async def test_a_worker_hosts_them() -> None:
    async with testing.world() as world:
        worker = await world.start(Office)
        assert await world.actor("office/x").ask(Word("hi")) == "clerk heard hi"
        assert worker.host is not None
        assert {"office", "desk", "clerk"} <= set(worker.host.types)


async def test_a_worker_may_leave_them_to_others() -> None:
    async with testing.world() as world:
        own = await world.start(Office, options=WorkerOptions(hosts_companions=False))
        await world.start(Desk, name="b")
        assert await world.actor("office/x").ask(Word("hi")) == "clerk heard hi"
        assert own.host is not None
        assert "clerk" not in own.host.types
