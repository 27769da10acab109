"""What stands in an agent's class statement beside what any actor has: model, tools, fences and limits, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from callboard.agents.errors import ToolDefinitionError
from callboard.agents.llm import typed
from callboard.agents.llm.base import Model
from callboard.agents.loop import MAX_TURNS
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.tools.base import Tool
from callboard.agents.tools.decorator import tool as make_tool
from callboard.agents.tools.permission import Permissions
from callboard.runtime.errors import ActorDefinitionError

# Longest conversation that an agent keeps; what a state may hold is limited in bytes as well.
MAX_MEMORY = 1000


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent may spend; None for no limit of its own.

    Attributes:
        usd: Dollars of one task.
        tokens: Tokens of one task, prompts and answers.
        seconds: Seconds that the models of one task may take.
        usd_per_day: Dollars of all agents of the type in a day (UTC).
        tokens_per_day: Their tokens.
        seconds_per_day: Their seconds.
    """

    usd: Decimal | None = None
    tokens: int | None = None
    seconds: float | None = None
    usd_per_day: Decimal | None = None
    tokens_per_day: int | None = None
    seconds_per_day: float | None = None


class Profile(Struct, frozen=True, kw_only=True):
    """What an agent's class says. A subclass takes over what it does not say itself.

    Attributes:
        models: Who answers: names as ``provider/model``, or models; each is asked when the one before it fails. None
            for the default of the settings.
        tools: What it may call.
        output: Type of its answer; None for text.
        permissions: What it may do.
        sandbox: Name of the sandbox for sandboxed tools, or one; None for the default of the settings.
        folder: The one folder that its tools may use; None for none.
        approvers: Who may decide about calls that need a person, as ``approve`` takes it; "" for anybody.
        max_turns: Calls of the model for one task.
        budget: What it may spend.
        temperature: 0 to 2; None for the provider's own.
        max_output_tokens: Longest answer; None for the provider's own.
        memory: Messages of the conversation that its state keeps; 0 takes each task alone.
        context_tokens: Room for prompt and answer; None for the model's own.
    """

    models: tuple[str | Model, ...] = ()
    tools: tuple[Tool, ...] = ()
    output: Any = None
    permissions: Permissions = Permissions()
    sandbox: str | Sandbox | None = None
    folder: Path | None = None
    approvers: str = ""
    max_turns: int = MAX_TURNS
    budget: Budget = Budget()
    temperature: float | None = None
    max_output_tokens: int | None = None
    memory: int = 0
    context_tokens: int | None = None


# Least and greatest of the numbers.
_RANGES: dict[str, tuple[float, float]] = {
    "max_turns": (1, 10_000),
    "temperature": (0, 2),
    "max_output_tokens": (1, 10_000_000),
    "memory": (0, MAX_MEMORY),
    "context_tokens": (256, 100_000_000),
}
_WHOLE = frozenset({"max_turns", "max_output_tokens", "memory", "context_tokens"})


def checked(cls: type, given: Mapping[str, Any], *, base: Profile) -> Profile:
    """Return a class's profile: what is given, and the rest from the class it extends.

    Raises:
        ActorDefinitionError: Naming class, keyword and what to write.
    """
    where = f"agent {cls.__qualname__}"
    values = dict(given)
    if "model" in values:
        values["models"] = _models(values.pop("model"), where)
    if "tools" in values:
        values["tools"] = _tools(values["tools"], where)
    if "level" in values:
        values["permissions"] = _level(values.pop("level"), values.get("permissions"), base, where)
    if not isinstance(values.get("permissions", base.permissions), Permissions):
        raise _wrong(where, "permissions", values["permissions"], 'Permissions(level="read", denied=["http"])')
    if values.get("folder") is not None:
        values["folder"] = Path(values["folder"])
    if "budget" in values:
        values["budget"] = _budget(values["budget"], where)
    if values.get("output") is not None:
        _check_output(values["output"], where)
    for name, (least, most) in _RANGES.items():
        _check_number(where, name, values.get(name), least, most)
    return structs.replace(base, **values)


def instructions_of(cls: type, root: type) -> str:
    """Return what a class tells its model: its own ``instructions`` or docstring, else those of the class it extends.

    What ``root`` and the classes above it say is about code, and no instruction.
    """
    for each in cls.__mro__:
        if each is root or not issubclass(each, root):
            break
        text = vars(each).get("instructions") or vars(each).get("__doc__")
        if isinstance(text, str) and text.strip():
            return inspect.cleandoc(text)
    return ""


def _models(given: object, where: str) -> tuple[str | Model, ...]:
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for each in several:
        is_model = hasattr(each, "complete") and hasattr(each, "facts")
        if not (is_model or (isinstance(each, str) and each.strip())):
            raise _wrong(where, "model", given, 'model="openai/gpt-4o-mini", a list of such names, or a model')
    if not several:
        raise _wrong(
            where, "model", given, "at least one name, or leave the keyword out for the default of the settings"
        )
    return tuple(several)


def _tools(given: object, where: str) -> tuple[Tool, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise _wrong(where, "tools", given, "tools=[area, search], a list of functions with @tool")
    found: dict[str, Tool] = {}
    for each in given:
        one = each if isinstance(each, Tool) else _made(each, where)
        if found.get(one.name, one) is not one:
            message = f"{where}: two of its tools are named {one.name!r}: give one another name, @tool(name=...)"
            raise ActorDefinitionError(message)
        found[one.name] = one
    return tuple(found.values())


def _made(given: Any, where: str) -> Tool:  # noqa: ANN401 - whatever stands in the list
    if not callable(given):
        raise _wrong(where, "tools", given, "functions with @tool above them")
    function: Callable[..., Any] = given
    try:
        return make_tool(function)
    except ToolDefinitionError as error:
        message = f"{where}: {error}"
        raise ActorDefinitionError(message) from error


def _level(given: object, permissions: object, base: Profile, where: str) -> Permissions:
    if permissions is not None:
        message = f"{where}: level and permissions say the same twice: write permissions=Permissions(level=...)"
        raise ActorDefinitionError(message)
    try:
        return structs.replace(base.permissions, level=given)
    except ToolDefinitionError as error:
        message = f"{where}: level: {error}"
        raise ActorDefinitionError(message) from error


def _budget(given: object, where: str) -> Budget:
    if isinstance(given, Budget):
        found = given
    else:
        try:
            found = msgspec.convert(_exact(given), Budget)
        except (msgspec.ValidationError, InvalidOperation) as error:
            message = f'{where}: budget: {error}; write budget={{"usd": 0.50, "usd_per_day": 5}}'
            raise ActorDefinitionError(message) from error
    for name in structs.fields(Budget):
        value = getattr(found, name.name)
        if value is not None and value < 0:
            message = f"{where}: budget: {name.name} is {value}: take 0 or more"
            raise ActorDefinitionError(message)
    return found


def _exact(given: object) -> object:
    """Return a budget with its dollars as they are written: 0.1 is a tenth, not the nearest binary number."""
    if not isinstance(given, Mapping):
        return given
    return {name: Decimal(str(value)) if str(name).startswith("usd") else value for name, value in given.items()}


def _check_output(kind: object, where: str) -> None:
    try:
        typed.schema(kind)
    except (TypeError, ValueError) as error:
        message = f"{where}: output {kind!r} cannot be asked for: {error}; take a Struct, dataclass or pydantic model"
        raise ActorDefinitionError(message) from error


def _check_number(where: str, name: str, value: object, least: float, most: float) -> None:
    if value is None:
        return
    is_number = isinstance(value, int) or (isinstance(value, float) and name not in _WHOLE)
    if not is_number or isinstance(value, bool) or not least <= value <= most:  # type: ignore[operator] # a number
        message = f"{where}: {name} is {value!r}, take a {'whole ' if name in _WHOLE else ''}number {least} to {most}"
        raise ActorDefinitionError(message)


def _wrong(where: str, keyword: str, given: object, want: str) -> ActorDefinitionError:
    return ActorDefinitionError(f"{where}: {keyword} is {given!r:.80}: give {want}")
