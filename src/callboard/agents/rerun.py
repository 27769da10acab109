"""Run agents, flows and any other actors again on their records: what a change of code or prompt would have changed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from callboard.agents import asking
from callboard.agents.errors import BudgetExceededError, ModelError
from callboard.agents.llm import call as calls
from callboard.agents.llm import record
from callboard.agents.llm.base import Prompt, ToolCall
from callboard.agents.llm.record import ModelCall, ModelFailure, ModelInput
from callboard.agents.llm.scope import TYPE as BUDGET
from callboard.agents.run_record import ASKED, PREFIX, AgentRun
from callboard.agents.tools import invoker
from callboard.runtime import codec
from callboard.runtime.actor import address as addresses
from callboard.runtime.actor import recording, step
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.parting import Difference
from callboard.runtime.actor.recording import Recorded, Recording
from callboard.runtime.actor.rerun import TIMEOUT_S, Habits, Rerun, rerun
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import CallboardError, DecodeError, ModuleLoadError

Actors = Mapping[str, type[Actor]]
"""Today's classes by the name of their type."""

_CONTEXT_LINES = 2


class Below(Struct, frozen=True, kw_only=True):
    """A turn that was asked by one that ran again, and could not run again itself.

    Attributes:
        turn: ``<type>/<key>/<sequence>``.
        code: Code of the error, with ``message``.
    """

    turn: str
    code: str
    message: str


class Reruns(Struct, frozen=True, kw_only=True):
    """A run, or a turn, with the turns below it.

    Attributes:
        turns: The one that was asked for first, those that it asked behind it.
        left_out: Turns below it that could not run again.
    """

    turns: list[Rerun]
    left_out: list[Below] = []

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs anywhere."""
        return all(each.is_equal for each in self.turns)


async def rerun_all(
    bus: Bus,
    actors: Actors,
    target: str,
    *,
    seq: int | None = None,
    deep: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Reruns:
    """Run a run or a turn again on what is recorded of it, and compare. Nothing goes out, nothing is written.

    Args:
        bus: Where the records are.
        actors: Today's classes.
        target: ``type/key`` of an actor; of a run also ``<flow>/<id>``, as ``callboard runs ls`` shows it.
        seq: Sequence of the mail whose turn it is; None for the last one.
        deep: Whether the turns that it asked run again too, and those below them.
        timeout_s: Longest time of each turn.

    Raises:
        NotFoundError: If no such turn is kept.
        HistoryError: If what it needs is kept no more.
        ModuleLoadError: If the code of the type is not among ``actors``.
    """
    address = _address(actors, target)
    first = await _one(bus, actors, address, seq, timeout_s)
    turns, left_out = [first], []
    known = {first.turn}
    # those that ran again, whose questions have not been followed yet
    open_turns = [first.turn] if deep else []
    while open_turns:
        above = _turn(open_turns.pop(0))
        for below, below_seq in await recording.asked(bus, *above):
            name = f"{below}/{below_seq}"
            if name in known or below.type == BUDGET:
                continue
            known.add(name)
            try:
                turns.append(await _one(bus, actors, below, below_seq, timeout_s))
            except CallboardError as error:
                left_out.append(Below(turn=name, code=error.code, message=str(error)))
            open_turns.append(name)
    return Reruns(turns=turns, left_out=left_out)


def habits() -> Habits:
    """Return what is known here of the steps of agents and flows."""
    return Habits(asked=_asked, failure=_failure, passing=(f"~ask {BUDGET}/",))


def lines(found: Difference) -> list[str]:
    """Return what differs line by line: prompts and arguments as text, ``-`` then and ``+`` now."""
    if found.changes:
        return [
            line
            for change in found.changes
            for line in (f"  {change.path}", *_signed("-", change.old), *_signed("+", change.new))
        ]
    if found.then is None and found.now is None:
        return []
    then, now = (_readable(value) if value is not None else [] for value in (found.then, found.now))
    compared = list(difflib.unified_diff(then, now, lineterm="", n=_CONTEXT_LINES))[2:]
    return compared or [f"  {line}" for line in now]


# --- inside


async def _one(bus: Bus, actors: Actors, address: Address, seq: int | None, timeout_s: float) -> Rerun:
    actor = actors.get(address.type)
    if actor is None:
        known = ", ".join(sorted(actors)) or "none"
        message = f"the code of {address.type!r} is not here: name its file with --module; there are {known}"
        raise ModuleLoadError(message)
    return await rerun(bus, actor, address, seq, habits=habits(), timeout_s=timeout_s)


def _address(actors: Actors, target: str) -> Address:
    found = addresses.parse(target)
    if found.type not in actors and f"{PREFIX}{found.type}" in actors:
        return Address(f"{PREFIX}{found.type}", found.key)
    return found


def _turn(name: str) -> tuple[Address, int]:
    address, _, seq = name.rpartition("/")
    return addresses.parse(address), int(seq)


def _asked(found: Recording, each: Recorded) -> object:
    """Return what a recorded step had asked: a model, a tool, an agent."""
    for child in found.children(each.entry):
        input_ = _record(child)
        if isinstance(input_, ModelInput):
            return calls.asked(input_.model, input_.prompt)
    if each.name == ASKED:
        try:
            part = msgspec.json.decode(each.value, type=AgentRun)
        except msgspec.DecodeError:
            return None
        return asking.asked(part.name, part.input)
    call = _call(found, each)
    return invoker.asked(call) if call is not None else None


def _call(found: Recording, each: Recorded) -> ToolCall | None:
    """Return the call of a tool that a step made: a model had asked for it before."""
    for other in found.steps.values():
        answered = _record(other)
        for call in answered.completion.tool_calls if isinstance(answered, ModelCall) else ():
            name = invoker.name_of(call.name)
            if name == each.name and each.record.args_digest == step.digest(name, {"key": invoker.key_of(call)}):
                return call
    return None


def _failure(found: Recording, entry: str) -> BaseException | None:
    """Return by what a call of a model failed that has no answer on record."""
    failures = [each for child in found.children(entry) if isinstance(each := _record(child), ModelFailure)]
    if not failures:
        return None
    last = failures[-1]
    if last.code == BudgetExceededError.code:
        return BudgetExceededError(last.message)
    kind = next((kind for kind in _model_errors() if kind.code == last.code), ModelError)
    return kind(last.message, model=last.model)


def _model_errors() -> Iterable[type[ModelError]]:
    todo: list[type[ModelError]] = [ModelError]
    while todo:
        kind = todo.pop()
        yield kind
        todo += kind.__subclasses__()


def _record(each: Recorded) -> record.Record | None:
    if not record.is_record(each.value):
        return None
    try:
        return record.decode(each.value)
    except DecodeError:
        return None


def _readable(value: object) -> list[str]:
    """Return a value as lines: a prompt message by message, anything else as indented JSON."""
    if isinstance(value, dict) and isinstance(value.get("prompt"), dict):
        return [f"model: {value.get('model')}", *_prompt(value["prompt"])]
    return msgspec.json.format(codec.encode(value), indent=2).decode().splitlines()


def _prompt(given: dict[str, object]) -> list[str]:
    try:
        prompt = msgspec.convert(given, Prompt)
    except msgspec.ValidationError:
        return msgspec.json.format(codec.encode(given), indent=2).decode().splitlines()
    found = []
    for message in prompt.messages:
        found += [f"[{message.role}]", *message.text.splitlines()]
        found += [f"calls {call.name} {call.arguments}" for call in message.tool_calls]
    rest = msgspec.to_builtins(msgspec.structs.replace(prompt, messages=()))
    rest.pop("messages", None)
    # a digest of the instructions, which stand above
    rest.pop("version", None)
    return [*found, *(f"{name}: {codec.encode(value).decode()}" for name, value in rest.items())]


def _signed(sign: str, value: object) -> list[str]:
    if not isinstance(value, msgspec.Raw):
        return []
    found = msgspec.json.decode(value)
    text = found if isinstance(found, str) else bytes(value).decode()
    return [f"{sign} {line}" for line in text.splitlines() or [""]]
