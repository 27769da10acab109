"""The chat protocol of OpenAI, which most providers speak: what is sent, and what an answer says. No request is made.

Providers differ in what they leave out, so that every field of an answer may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from callboard.agents.errors import ModelOutputError, ModelTransientError
from callboard.agents.llm.base import Completion, Finish, Message, Prompt, ToolCall, Usage
from callboard.agents.llm.usage import estimated

MAX_CALLS: Final = 1000
"""Calls of tools in one answer; beyond them it is no answer."""

MAX_TOKENS: Final = 100_000_000
"""Tokens of one call; what a provider counts beyond them is not believed."""

_ID_CHARS, _SUFFIX_CHARS, _NAME_CHARS = 100, 12, 200
_NOT_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_FINISH: Final[dict[str, Finish]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "refused",
}


class Function(Struct):
    """The tool that is called. Arguments come as JSON text; some send them as an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class Call(Struct):
    """A call of a tool, or in a stream a fragment of one."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Part(Struct):
    """A piece of a text that comes in pieces."""

    text: str | None = None


class Said(Struct):
    """A message, or in a stream a fragment of one."""

    content: str | list[Part] | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None


class Choice(Struct):
    """One answer; Callboard asks for one."""

    index: int | None = None
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None


class Details(Struct):
    """Which tokens of the prompt the provider had seen before."""

    cached_tokens: int | None = None


class Counted(Struct):
    """Tokens, as the provider counts them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Answer(Struct):
    """A whole answer, or one event of a stream."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Counted | None = None
    error: Any = None


def request(prompt: Prompt, *, model: str, has_schema: bool, limit_field: str = "max_tokens") -> dict[str, Any]:
    """Return the body that asks ``prompt``.

    Args:
        prompt: What to ask.
        model: The model as the provider calls it.
        has_schema: Whether the provider holds an answer to the prompt's schema; else nothing is sent of it.
        limit_field: What the provider calls the longest answer.
    """
    body: dict[str, Any] = {"model": model, "messages": [_message(message) for message in prompt.messages]}
    if prompt.tools:
        body["tools"] = [{"type": "function", "function": msgspec.to_builtins(tool)} for tool in prompt.tools]
        body["tool_choice"] = _choice(prompt.tool_choice)
    if prompt.output is not None and has_schema:
        body["response_format"] = {"type": "json_schema", "json_schema": _schema(prompt.output)}
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    if prompt.max_output_tokens is not None:
        body[limit_field] = prompt.max_output_tokens
    if prompt.stop:
        body["stop"] = list(prompt.stop)
    return body


class Gathering:
    """Puts an answer together from the events of a stream."""

    def __init__(self, prompt: Prompt, *, provider: str, model: str) -> None:
        self._prompt = prompt
        self._provider = provider
        self._model = model
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[_Open] = []
        self._by_index: dict[int, _Open] = {}
        self._usage: Counted | None = None
        self._finish: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the model said that its answer is whole."""
        return self._finish is not None

    def add(self, event: Answer) -> str:
        """Take one event and return the text that it adds to the answer, "" for none."""
        self._model = event.model or self._model
        self._usage = event.usage or self._usage
        added = []
        for choice in event.choices or ():
            if choice.index:
                continue
            said = choice.delta or choice.message
            if said is not None:
                added.append(_text(said.content))
                self._refusal.append(said.refusal or "")
                for call in said.tool_calls or ():
                    self._fragment(call)
            self._finish = choice.finish_reason or self._finish
        self._text.extend(added)
        return "".join(added)

    def completion(self) -> Completion:
        """Return the answer as far as it came."""
        text, refusal = "".join(self._text), "".join(self._refusal)
        ids = _ids([call.id for call in self._calls])
        calls = tuple(call.close(id_) for call, id_ in zip(self._calls, ids, strict=True))
        counted = _usage(self._usage)
        made = Completion(
            text=text or refusal,
            tool_calls=calls,
            usage=counted or Usage(),
            model=f"{self._provider}/{_one_line(self._model)}",
            finish=_finish(self._finish, has_calls=bool(calls), is_refused=bool(refusal)),
            is_estimated=counted is None,
        )
        return made if counted else msgspec.structs.replace(made, usage=estimated(self._prompt, made))

    def _fragment(self, call: Call) -> None:
        """Add a fragment to the call of its index. Without an index, a name begins a call and anything else goes on.

        A new id under an old index is a new call: some providers number every call 0.
        """
        name = call.function.name if call.function is not None else None
        found = None if call.index is None else self._by_index.get(call.index)
        if call.index is None and self._calls and not name and call.id in {None, "", self._calls[-1].id}:
            found = self._calls[-1]
        if found is not None and call.id and found.id and call.id != found.id:
            found = None
        if found is None:
            found = self._opened(call.index)
        found.add(call)

    def _opened(self, index: int | None) -> _Open:
        """Return a new call.

        Raises:
            ModelOutputError: If there are more than anybody could want.
        """
        if len(self._calls) >= MAX_CALLS:
            name = f"{self._provider}/{self._model[:_NAME_CHARS]}"
            message = f"{name} asks for more than {MAX_CALLS} calls of tools in one answer; none was made"
            raise ModelOutputError(message, model=name)
        made = _Open()
        self._calls.append(made)
        if index is not None:
            self._by_index[index] = made
        return made


class _Open:
    """A call of a tool of which fragments may still come."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def add(self, call: Call) -> None:
        self.id = self.id or call.id or ""
        if call.function is None:
            return
        # the name comes whole; some repeat it with each fragment
        self.name = self.name or call.function.name or ""
        arguments = call.function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        self.arguments.append(arguments or "")

    def close(self, id_: str) -> ToolCall:
        return ToolCall(id=id_, name=self.name, arguments="".join(self.arguments).strip() or "{}")


def read(answer: Answer, prompt: Prompt, *, provider: str, model: str) -> Completion:
    """Return what a whole answer says.

    Raises:
        ModelTransientError: If it holds no answer.
    """
    if not any(choice.message is not None for choice in answer.choices or ()):
        name = f"{provider}/{model}"
        message = f"{name} sent a reply without an answer in it (no choices); try again"
        raise ModelTransientError(message, model=name, status=200)
    gathering = Gathering(prompt, provider=provider, model=model)
    gathering.add(answer)
    return gathering.completion()


def is_strict(schema: object) -> bool:
    """Return whether a schema is of the kind that OpenAI enforces: objects closed, each property required."""
    if isinstance(schema, list):
        return all(is_strict(item) for item in schema)
    if not isinstance(schema, Mapping):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        required = set(schema.get("required", ()))
        if schema.get("additionalProperties") is not False or required != set(schema.get("properties", {})):
            return False
    return all(is_strict(item) for item in schema.values())


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        said["content"] = message.text or None
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        said["tool_call_id"] = message.tool_call_id
    return said


def _choice(tool_choice: str) -> str | dict[str, Any]:
    if tool_choice in {"auto", "none", "required"}:
        return tool_choice
    return {"type": "function", "function": {"name": tool_choice}}


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    name = _NOT_NAME.sub("_", str(schema.get("title", "")))[:64] or "answer"
    return {"name": name, "schema": schema, "strict": is_strict(schema)}


def _text(content: str | list[Part] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text or "" for part in content)
    return content or ""


def _ids(given: list[str]) -> list[str]:
    """Return the ids of calls, each once: a provider that is shown two answers to one id refuses the conversation."""
    found: dict[str, None] = {}
    for number, id_ in enumerate(given):
        own = id_[:_ID_CHARS] or f"call_{number}"
        if own in found:
            own = f"{own[: _ID_CHARS - _SUFFIX_CHARS]}_{number}"
        while own in found:
            own += "_"
        found[own] = None
    return list(found)


def _one_line(name: str) -> str:
    """Return a model's name as a provider spells it, without what is no part of a name."""
    return "".join(letter for letter in name[:_NAME_CHARS] if letter.isprintable())


def _usage(counted: Counted | None) -> Usage | None:
    """Return what a provider counted; None where it did not, or counted what cannot be.

    Below nothing would be given back to a budget, and beyond ``MAX_TOKENS`` no budget of a day would stand it.
    """
    if counted is None or counted.prompt_tokens is None:
        return None
    details = counted.prompt_tokens_details
    made = counted.completion_tokens or 0
    cached = (details.cached_tokens or 0) if details is not None else 0
    if not all(0 <= tokens <= MAX_TOKENS for tokens in (counted.prompt_tokens, made, cached)):
        return None
    return Usage(input_tokens=counted.prompt_tokens, output_tokens=made, cached_tokens=cached)


def _finish(reason: str | None, *, has_calls: bool, is_refused: bool) -> Finish:
    if is_refused:
        return "refused"
    found = _FINISH.get(reason or "stop", "stop")
    # several local servers say "stop" after calls
    return "tool_calls" if has_calls and found == "stop" else found
