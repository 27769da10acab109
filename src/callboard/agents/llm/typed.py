"""Answers in a type: the schema that a model is asked for, the value in its answer, and what to say when it is none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeVar, Unpack, cast

import msgspec

from callboard.agents.errors import ModelOutputError
from callboard.agents.llm.base import Message, Model, Prompt, user
from callboard.agents.llm.call import CallOptions, call_model
from callboard.runtime import codec
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.errors import DecodeError

T = TypeVar("T")

REPAIRS = 2
# A schema must be an object: what is none, such as a list, is asked for as its only field.
WRAPPED = "value"
_FENCE = re.compile(r"```[a-zA-Z0-9_-]*\s*\n(.*?)```", re.DOTALL)
_SHOWN = 300


def schema(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - a type form
    """Return the JSON Schema, an object, that answers of a type follow.

    Args:
        kind: A Struct, dataclass, TypedDict or pydantic model, or plain types such as ``list[str]``.

    Raises:
        TypeError: If there is no schema for it.
    """
    found = _schema(kind)
    if _is_object(found):
        return found
    definitions = found.pop("$defs", None)
    made: dict[str, Any] = {"type": "object", "properties": {WRAPPED: found}, "required": [WRAPPED]}
    if definitions is not None:
        made["$defs"] = definitions
    return made


def parse(text: str, kind: type[T] | Any, *, model: str = "") -> T:  # noqa: ANN401 - a type form
    """Return the value in an answer. JSON inside of a fence, or between words, counts as well.

    Args:
        text: What the model said.
        kind: The type, as in ``schema``.
        model: Who said it, for the error.

    Raises:
        ModelOutputError: If no value of that type is in it; says what is wrong where.
    """
    is_wrapped = not _is_object(_schema(kind))
    decode = _decoder(kind)
    problem = "there is no JSON in it"
    for candidate in _candidates(text):
        try:
            value = decode(_unwrapped(candidate) if is_wrapped else candidate.encode())
        except (DecodeError, UnicodeEncodeError) as error:
            problem = str(error)
        else:
            return cast("T", value)
    message = f"the answer of {model or 'the model'} is no {_name(kind)}: {problem[:_SHOWN]}"
    raise ModelOutputError(message, model=model, text=text)


def complaint(error: ModelOutputError) -> str:
    """Return what to say to a model whose answer had not the form it was asked for."""
    return (
        f"That answer could not be used: {error}. Answer again with JSON alone that follows the schema, without any "
        f"words before or after it."
    )


async def call_typed(
    turn: TurnApi | Actor,
    model: Model,
    prompt: Prompt,
    kind: type[T] | Any,  # noqa: ANN401 - a type form
    *,
    repairs: int = REPAIRS,
    **options: Unpack[CallOptions],
) -> T:
    """Ask a model for a value of a type. Each question is a journaled step; see ``call_model``.

    Args:
        turn: The running turn, or its actor.
        model: Whom to ask.
        prompt: What; its ``output`` is set to the type's schema.
        kind: The type, as in ``schema``.
        repairs: How often it is asked again, with its answer and what was wrong, 0 to 10. Recorded as ``repair``.
        options: As for ``call_model``; a time-out is that of one call.

    Raises:
        TypeError: If the type has no schema.
        ValueError: If ``repairs`` is out of range.
        ModelOutputError: If the last answer does not fit either.
        ModelError: As ``call_model``.
        BudgetExceededError: As ``call_model``.
    """
    if not 0 <= repairs <= 10:  # noqa: PLR2004 - said in the docstring
        message = f"repairs is {repairs}: take 0 to 10"
        raise ValueError(message)
    wanted = schema(kind)
    asked = msgspec.structs.replace(prompt, output=wanted, messages=_told(prompt, model, wanted))
    for left in range(repairs, -1, -1):
        answer = await call_model(turn, model, asked, **options)
        try:
            found: T = parse(answer.text, kind, model=answer.model or model.name)
        except ModelOutputError as error:
            if not left:
                raise
            said = (Message(role="assistant", text=answer.text), user(complaint(error)))
            asked = msgspec.structs.replace(asked, messages=(*asked.messages, *said))
            options["category"] = "repair"
        else:
            return found
    raise AssertionError  # the loop returns or raises


# --- inside


def _told(prompt: Prompt, model: Model, wanted: dict[str, Any]) -> tuple[Message, ...]:
    """Return the messages; a model whose provider does not hold it to a schema is shown the schema in words."""
    if model.facts.has_schema:
        return prompt.messages
    text = f"Answer with JSON alone that follows this JSON Schema:\n{msgspec.json.encode(wanted).decode()}"
    return (*prompt.messages, Message(role="system", text=text))


def _schema(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - a type form
    of_pydantic = getattr(kind, "model_json_schema", None)
    if of_pydantic is not None and inspect.isclass(kind):
        return _inlined(of_pydantic())
    try:
        return _inlined(msgspec.json.schema(kind))
    except RuntimeError as error:
        # what msgspec says of a class that it does not know
        raise TypeError(str(error)) from error


def _inlined(found: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose top is not a reference; one that others refer to keeps its definition."""
    top = found.get("$ref")
    definitions: dict[str, Any] = dict(found.get("$defs") or {})
    if top is None:
        return dict(found)
    name = str(top).rpartition("/")[2]
    inner = dict(definitions.pop(name))
    if f'"{top}"' in msgspec.json.encode([inner, definitions]).decode():
        definitions[name] = inner
    return {**inner, "$defs": definitions} if definitions else inner


def _is_object(found: dict[str, Any]) -> bool:
    return found.get("type") == "object"


def _decoder(kind: Any) -> codec.Decoder:  # noqa: ANN401 - a type form
    try:
        return _cached(kind)
    except TypeError:
        # not hashable
        return codec.decoder(kind)


_cached = lru_cache(256)(codec.decoder)


def _candidates(text: str) -> Iterator[str]:
    """Yield what may be the JSON of an answer, likeliest first."""
    yield text.strip()
    for fenced in _FENCE.findall(text):
        yield fenced.strip()
    for opened, closed in (("{", "}"), ("[", "]")):
        start, end = text.find(opened), text.rfind(closed)
        if 0 <= start < end:
            yield text[start : end + 1]


def _unwrapped(text: str) -> bytes:
    """Return the only field of what stands for a value that is no object; a bare value as it is."""
    try:
        found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return text.encode()
    return bytes(found[WRAPPED]) if set(found) == {WRAPPED} else text.encode()


def _name(kind: Any) -> str:  # noqa: ANN401 - a type form
    return getattr(kind, "__name__", None) or str(kind)
