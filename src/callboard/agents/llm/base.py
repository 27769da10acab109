"""The model port: what is asked of a language model, what it answers, and what is known about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "tool_calls", "refused"]


class ToolCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call that a model asks for.

    Attributes:
        id: The provider's name of the call, which the tool's answer repeats.
        name: The tool.
        arguments: Its arguments as the model wrote them: JSON text, which may be broken.
    """

    id: str
    name: str
    arguments: str = "{}"


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a conversation.

    Attributes:
        role: Who says it.
        text: What is said.
        tool_calls: Of the assistant: the calls it asks for.
        tool_call_id: Of a tool: the call that it answers.
        name: Of a tool: its name.
    """

    role: Role
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class ToolSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool as a model sees it: name, description, and the JSON Schema (an object) of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


class Prompt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that one call of a model depends on; equal prompts are the same question.

    Attributes:
        messages: The conversation, oldest first.
        tools: What the model may call.
        output: JSON Schema (an object) that the answer must follow, or None for free text.
        temperature: 0 to 2, or None for the provider's own.
        max_output_tokens: Longest answer, or None for the provider's own.
        stop: Texts that end the answer.
        tool_choice: ``auto``, ``none``, ``required`` or the name of one tool.
        version: Version of the prompt's text, the writer's own; it goes into the record of the call.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    output: dict[str, Any] | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    tool_choice: str = "auto"
    version: str = ""


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of one call. ``cached_tokens`` are part of ``input_tokens``."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class Completion(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model's answer.

    Attributes:
        text: What it says, "" where it only calls tools.
        tool_calls: The tools that it wants called, in its order.
        usage: Tokens; estimated where the provider says nothing (``is_estimated``).
        model: ``provider/model`` that answered, as the provider spells the model.
        finish: Why it ended.
        cost_usd: Exact price; None where no price is known.
        is_estimated: Whether ``usage`` is our own count.
        retries: Further requests that this answer took.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    model: str = ""
    finish: Finish = "stop"
    cost_usd: Decimal | None = None
    is_estimated: bool = False
    retries: int = 0


class Delta(Struct, frozen=True, kw_only=True):
    """A piece of the answer's text, as it is made."""

    text: str


class ModelFacts(Struct, frozen=True, kw_only=True):
    """What is known about a model without asking it.

    Attributes:
        context_tokens: Longest prompt and answer together.
        max_output_tokens: Longest answer.
        has_tools: Whether it calls tools.
        has_schema: Whether the provider holds an answer to a JSON Schema; else the prompt asks for it.
        is_local: Whether it runs here and costs nothing.
    """

    context_tokens: int = 128_000
    max_output_tokens: int = 16_384
    has_tools: bool = True
    has_schema: bool = False
    is_local: bool = False


class Model(Protocol):
    """A language model. One object serves many calls at a time; it keeps no conversation.

    Errors are ``callboard.agents.errors.ModelError`` and its subclasses. Cancelling a call, or leaving a stream, closes
    its connection, so that the provider stops.
    """

    @property
    def name(self) -> str:
        """``provider/model``, as the user writes it."""
        ...

    @property
    def facts(self) -> ModelFacts:
        """What is known about it; no request."""
        ...

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
        """Return the whole answer.

        Args:
            prompt: What to ask.
            timeout_s: Longest time, in seconds; default: the provider's setting.
            key: Idempotency key; sent to providers that honour one.

        Raises:
            ModelError: One of its subclasses; see there.
        """
        ...

    def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        """Yield the answer's text in pieces, then, last, the whole ``Completion``.

        Raises:
            ModelError: Also in the middle; ``ModelTransientError`` if the stream was cut off. What came is no answer.
        """
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """Return the prompt's tokens; an estimate that is rather too high where the tokeniser is not known."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector for each text, all of one length.

        Raises:
            ModelSetupError: If it has no embeddings.
        """
        ...

    async def close(self) -> None:
        """Close connections; calls that run are cancelled."""
        ...


def system(text: str) -> Message:
    """Return a message of instructions."""
    return Message(role="system", text=text)


def user(text: str) -> Message:
    """Return a message of the user."""
    return Message(role="user", text=text)


def fingerprint(prompt: Prompt, *, model: str) -> str:
    """Return 32 hex digits that equal questions to one model share, in every process."""
    data = msgspec.json.encode((model, prompt), order="deterministic")
    return blake2b(data, digest_size=16).hexdigest()
