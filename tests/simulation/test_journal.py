"""A turn dies at any await, its successor's code has changed, two hosts run it at once: each finished step stands once.

A program is a list of operations, played by a run of the turn. What each of them gave is checked against what the
earlier runs saw, against what stands in the stream, and against who was allowed to run at all.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct, json
from msgspec.structs import replace

from callboard.runtime.actor.journal import Journal, Slot
from callboard.runtime.actor.step import current_step
from callboard.runtime.actor.unknown import settle_unknown, unknown_steps, withdraw_unknown
from callboard.runtime.errors import BackpressureError, BusTimeoutError, StepUnknownError
from tests.support.stage import ANN, SEQ, Stage

pytestmark = pytest.mark.property

CHECKED = settings(max_examples=150)
LOST = BusTimeoutError("the answer is lost")
FULL = BackpressureError("full")


class Op(Struct, frozen=True):
    """One step, by arguments or by key; or several side by side. A ``flaky`` one is tried again when it fails."""

    name: str = "a"
    argument: int = 0
    how: Literal["plain", "key", "flaky", "once"] = "plain"
    side_by_side: tuple[Op, ...] = ()


class Given(Struct, frozen=True):
    """What a step's function returned; ``serial`` tells one run of it from another."""

    name: str
    argument: int
    serial: int


class Crash(BaseException):
    """The process is dead from here on."""


class BrokenError(AssertionError):
    """A promise does not hold."""


class Fates:
    """What happens at the awaits of one run: after so many it dies; some answers are lost, some writes refused."""

    def __init__(self, dice: random.Random, *, dies_after: int | None = None, trouble: float = 0.0) -> None:
        self._dice = dice
        self._left = dies_after
        self._trouble = trouble

    async def pause(self, point: str) -> None:
        for _ in range(self._dice.randrange(3)):
            await asyncio.sleep(0)
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Crash
        if self._dice.random() < self._trouble:
            if point == "after store":
                raise LOST
            if point == "before store":
                raise FULL


class Theatre:
    """Plays runs of one turn and keeps what all of them saw."""

    def __init__(self, stage: Stage, dice: random.Random, *, kind: type[Journal] = Journal) -> None:
        self.stage = stage
        self.dice = dice
        self.kind = kind
        self.serial = 0
        self.ran: list[str] = []
        self.effects: dict[str, Given] = {}
        self.is_alone = True
        self.flaky = 0.0

    async def play(self, program: Sequence[Op], fates: Fates, *, is_fresh: bool = False) -> list[Given]:
        """Run the program to its end or to its crash; return what its steps gave, in the order of the code."""
        journal = self.stage.journal(self.kind, is_fresh=is_fresh, pause=fates.pause)
        got: list[Given] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._program(program, journal, fates, got))
        except BaseExceptionGroup as group:
            _, rest = group.split(Crash)
            if rest is not None:
                raise rest from None
        return got

    async def _program(self, program: Sequence[Op], journal: Journal, fates: Fates, got: list[Given]) -> None:
        for op in program:
            if op.side_by_side:
                async with asyncio.TaskGroup() as tasks:
                    ran = [tasks.create_task(_task(self._op(each, journal, fates))) for each in op.side_by_side]
                got += [task.result() for task in ran]
            else:
                got.append(await self._op(op, journal, fates))

    def _op(self, op: Op, journal: Journal, fates: Fates) -> Awaitable[Given]:
        async def work(name: str, argument: int) -> Given:
            return await self._work(op, Given(name, argument, 0), fates)

        key = f"k{op.argument}" if op.how == "key" else None

        def run() -> Awaitable[Any]:
            return journal.run(op.name, work, (op.name, op.argument), key=key, once=op.how == "once")

        async def settled() -> Given:
            while True:
                try:
                    value: Given = await first.pop() if first else await run()
                except LookupError:
                    continue
                except StepUnknownError:
                    await self._look_outside()
                    raise Crash from None
                break
            if (value.name, value.argument) != (op.name, op.argument):
                message = f"{op} was given {value}"
                raise BrokenError(message)
            return value

        first: list[Awaitable[Any]] = [run()]
        return settled()

    async def _work(self, op: Op, value: Given, fates: Fates) -> Given:
        mine = current_step()
        if self.is_alone and any(found.kind == "done" for found in (await self.stage.records()).get(mine.entry, [])):
            message = f"{mine} runs again although it stands"
            raise BrokenError(message)
        await fates.pause("before effect")
        self.ran.append(mine.id)
        self.serial += 1
        value = replace(value, serial=self.serial)
        if op.how == "once":
            if mine.id in self.effects:
                message = f"{mine} takes effect a second time"
                raise BrokenError(message)
            self.effects[mine.id] = value
        if op.how == "flaky" and self.dice.random() < self.flaky:
            raise LookupError
        await fates.pause("after effect")
        return value

    async def _look_outside(self) -> None:
        """Do what a person does about the steps that nobody knows of, once no run is under way."""
        if not self.is_alone:
            return
        for unknown in await unknown_steps(self.stage.bus, ANN, SEQ):
            if unknown.id in self.effects:
                await settle_unknown(self.stage.bus, unknown.id, self.effects[unknown.id], by="a person")
            else:
                await withdraw_unknown(self.stage.bus, unknown.id, by="a person")

    async def recorded(self) -> dict[str, Given]:
        """Return the values that stand, after checking that each stands once."""
        values = {}
        for entry, records in (await self.stage.records()).items():
            kinds = [found.kind for found in records]
            if kinds.count("done") > 1 or "done" in kinds[:-1]:
                message = f"{entry} has {kinds}"
                raise BrokenError(message)
            value = records[-1].value
            if kinds[-1] == "done":
                assert isinstance(value, Raw)
                values[entry] = json.decode(bytes(value), type=Given)
        return values

    async def check(self, got: Sequence[Given]) -> None:
        """Check that everything a run went on with stands, and stands once."""
        standing = Counter(value.serial for value in (await self.recorded()).values())
        lost = [value for value in got if standing[value.serial] != 1]
        if lost:
            message = f"a run went on with {lost}, which do not stand"
            raise BrokenError(message)


async def _task(awaitable: Awaitable[Given]) -> Given:
    return await awaitable


# --- programs

NAMES = st.sampled_from(["a", "b", "a.b"])
SIMPLE = st.builds(Op, name=NAMES, argument=st.integers(0, 1), how=st.sampled_from(["plain", "plain", "key"]))
FLAKY = st.builds(Op, name=NAMES, argument=st.integers(0, 1), how=st.just("flaky"))
GROUP = st.builds(Op, side_by_side=st.lists(SIMPLE, min_size=2, max_size=3).map(tuple))
ONCE = st.builds(Op, name=NAMES, argument=st.integers(0, 1), how=st.just("once"))
PROGRAM = st.lists(SIMPLE | FLAKY | ONCE | GROUP, min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32)
CRASHES = st.lists(st.integers(0, 25), max_size=4)


async def _crash_and_go_on(program: Sequence[Op], crashes: Sequence[int], seed: int, kind: type[Journal]) -> None:
    """The same code runs until it is done: each run sees what the one before it saw, and goes on from there."""
    dice = random.Random(seed)
    async with Stage.open() as stage:
        theatre = Theatre(stage, dice, kind=kind)
        theatre.flaky = 0.4
        saw: list[Given] = []
        # after the crashes asked for it lives, but a step in doubt ends the run as well
        lives = [None] * 8
        for number, dies_after in enumerate([*crashes, *lives]):
            fates = Fates(dice, dies_after=dies_after, trouble=0.1)
            got = await theatre.play(program, fates, is_fresh=number == 0)
            length = min(len(saw), len(got))
            if got[:length] != saw[:length]:
                message = f"a run saw {saw}, the next one {got}"
                raise BrokenError(message)
            saw = max(saw, got, key=len)
            await theatre.check(saw)
        if len(saw) != sum(len(op.side_by_side) or 1 for op in program):
            message = f"{program} never ended: {saw}"
            raise BrokenError(message)


async def _change_and_go_on(program: Sequence[Op], at: int, seed: int, kind: type[Journal]) -> None:
    """Of a finished turn's code one operation is renamed, dropped or put in: that one runs, and nothing else."""
    dice = random.Random(seed)
    async with Stage.open() as stage:
        theatre = Theatre(stage, dice, kind=kind)
        await theatre.play(program, Fates(dice), is_fresh=True)
        before = await theatre.recorded()
        at %= len(program)
        new = Op(name="new", argument=9)
        changes: list[tuple[list[Op], int]] = [
            ([*program[:at], *program[at + 1 :]], 0),
            ([*program[:at], new, *program[at:]], 1),
            ([*program[:at], replace(program[at], name="renamed", side_by_side=()), *program[at + 1 :]], 1),
        ]
        for changed, wanted in changes:
            theatre.ran.clear()
            got = await theatre.play(changed, Fates(dice))
            if len(theatre.ran) != wanted:
                message = f"{theatre.ran} ran, of {changed}"
                raise BrokenError(message)
            await theatre.check(got)
        after = await theatre.recorded()
        if {entry: after[entry] for entry in before} != before:
            message = f"{before} became {after}"
            raise BrokenError(message)


async def _crash_and_change(programs: Sequence[Sequence[Op]], seed: int, kind: type[Journal]) -> None:
    """Every run has other code and dies somewhere: nobody is given another step's value, nothing stands twice."""
    dice = random.Random(seed)
    async with Stage.open() as stage:
        theatre = Theatre(stage, dice, kind=kind)
        theatre.flaky = 0.3
        for number, program in enumerate(programs):
            is_last = number == len(programs) - 1
            fates = Fates(dice, dies_after=None if is_last else dice.randrange(25), trouble=0.1)
            got = await theatre.play(program, fates, is_fresh=number == 0)
            await theatre.check(got)


async def _race(program: Sequence[Op], runs: int, seed: int, kind: type[Journal]) -> None:
    """Hosts that take each other for dead run the turn at once: all of them go on with the same values."""
    dice = random.Random(seed)
    async with Stage.open() as stage:
        theatre = Theatre(stage, dice, kind=kind)
        theatre.is_alone = False
        async with asyncio.TaskGroup() as tasks:
            racing = [
                tasks.create_task(theatre.play(program, Fates(dice, trouble=0.1), is_fresh=dice.random() < 0.5))
                for _ in range(runs)
            ]
        results = [task.result() for task in racing]
        # one that meets a step with ``once`` under way elsewhere ends there
        longest = max(results, key=len)
        for got in results:
            if got != longest[: len(got)]:
                message = f"one went on with {longest}, another with {got}"
                raise BrokenError(message)
            await theatre.check(got)


Scene = Callable[[type[Journal], random.Random], Awaitable[None]]


@CHECKED
@given(program=PROGRAM, crashes=CRASHES, seed=SEEDS)
def test_a_turn_that_dies_anywhere_goes_on_where_it_was(program: list[Op], crashes: list[int], seed: int) -> None:
    asyncio.run(_crash_and_go_on(program, crashes, seed, Journal))


@CHECKED
@given(program=PROGRAM, at=st.integers(0, 5), seed=SEEDS)
def test_of_changed_code_only_the_changed_step_runs(program: list[Op], at: int, seed: int) -> None:
    asyncio.run(_change_and_go_on(program, at, seed, Journal))


@CHECKED
@given(programs=st.lists(PROGRAM, min_size=2, max_size=4), seed=SEEDS)
def test_whatever_the_code_becomes_no_step_is_given_anothers_value(programs: list[list[Op]], seed: int) -> None:
    asyncio.run(_crash_and_change(programs, seed, Journal))


@CHECKED
@given(program=PROGRAM, runs=st.integers(2, 4), seed=SEEDS)
def test_hosts_that_race_go_on_with_the_same_values(program: list[Op], runs: int, seed: int) -> None:
    asyncio.run(_race(program, runs, seed, Journal))


# --- negative controls: each scene must fail on a journal that breaks what it checks


class OrdinalOnly(Journal):
    """Knows a step by its place in the order alone, as runtimes with a determinism rule do."""

    def _place(self, token: str, digest: str) -> str:
        return "step.0000000000000000"


class NameOnly(Journal):
    """Does not look at the arguments."""

    def _place(self, token: str, digest: str) -> str:
        return f"{token}.0000000000000000"


class KeepsItsOwn(Journal):
    """Goes on with its own value where another's stands."""

    async def write(self, slot: Slot, data: bytes, *, attempt: int, took_s: float) -> object:
        await super().write(slot, data, attempt=attempt, took_s=took_s)
        return slot.show(data)


class RecordsNothing(Journal):
    """Goes on without a record now and then."""

    async def write(self, slot: Slot, data: bytes, *, attempt: int, took_s: float) -> object:
        if slot.at.digest < "8":
            return slot.show(data)
        return await super().write(slot, data, attempt=attempt, took_s=took_s)


class CountsFailures(Journal):
    """Counts a step that failed among the identical ones before the next."""

    def give_back(self, slot: Slot) -> None:
        pass


class NeverReads(Journal):
    """Finds out what stands by running everything again."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the journal's own
        super().__init__(*arguments, **options | {"is_fresh": True})
        self._log._read = _nothing  # type: ignore[method-assign]


class IntendsNothing(Journal):
    """Runs what must not run twice as if it might."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the journal's own
        super().__init__(*arguments, **options)
        self._log.intend = _nothing  # type: ignore[method-assign,assignment]


async def _nothing(*arguments: object) -> None:
    return


def _some_program(dice: random.Random) -> list[Op]:
    def simple() -> Op:
        how: Literal["plain", "key"] = "key" if dice.random() < 0.3 else "plain"
        return Op(dice.choice("ab"), dice.randrange(2), how)

    def any_op() -> Op:
        roll = dice.random()
        if roll < 0.4:
            return Op(dice.choice("ab"), dice.randrange(2), "flaky" if roll < 0.2 else "once")
        return Op(side_by_side=(simple(), simple())) if roll < 0.6 else simple()

    return [any_op() for _ in range(dice.randrange(2, 7))]


async def _crashes(kind: type[Journal], dice: random.Random) -> None:
    await _crash_and_go_on(_some_program(dice), [dice.randrange(25) for _ in range(3)], dice.randrange(99), kind)


async def _changes(kind: type[Journal], dice: random.Random) -> None:
    await _change_and_go_on(_some_program(dice), dice.randrange(6), dice.randrange(99), kind)


async def _others(kind: type[Journal], dice: random.Random) -> None:
    await _crash_and_change([_some_program(dice) for _ in range(3)], dice.randrange(99), kind)


async def _races(kind: type[Journal], dice: random.Random) -> None:
    await _race(_some_program(dice), 3, dice.randrange(99), kind)


@pytest.mark.parametrize(
    ("scene", "kind"),
    [
        (_changes, OrdinalOnly),
        (_others, OrdinalOnly),
        (_changes, NameOnly),
        (_others, NameOnly),
        (_races, KeepsItsOwn),
        (_crashes, RecordsNothing),
        (_changes, RecordsNothing),
        (_others, RecordsNothing),
        (_crashes, CountsFailures),
        (_crashes, NeverReads),
        (_crashes, IntendsNothing),
    ],
    ids=lambda value: value.__name__.strip("_"),
)
async def test_the_scene_sees_a_broken_journal(scene: Scene, kind: type[Journal]) -> None:
    dice = random.Random(1)
    for _ in range(200):
        try:
            await scene(kind, dice)
        except BrokenError:
            return
        except ExceptionGroup as group:
            if group.subgroup(BrokenError) is not None:
                return
            raise
    pytest.fail(f"{scene.__name__} passes on {kind.__name__}")


@pytest.mark.parametrize("scene", [_changes, _others, _races, _crashes], ids=lambda value: value.__name__.strip("_"))
async def test_the_scene_passes_on_the_journal_itself(scene: Scene) -> None:
    dice = random.Random(1)
    for _ in range(40):
        await scene(Journal, dice)
