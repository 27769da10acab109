"""A model that says what a test tells it to: exact answers, tool calls, errors and delays, and nothing unexpected."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.agents import errors
from callboard.agents.errors import (
    ModelError,
    ModelRateError,
    ModelSetupError,
    ModelTransientError,
    UnexpectedPromptError,
)
from callboard.agents.llm import estimate, usage
from callboard.agents.llm.base import Completion, Delta, Finish, ModelFacts, Prompt, ToolCall, Usage
from callboard.agents.llm.embed import embed_texts
from callboard.agents.settings import AgentSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

PREFIX = "scripted"
_SHOWN = 300
_PIECE = re.compile(r"\S*\s*")


class Say(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One answer of a script.

    Attributes:
        text: What is said.
        tool_calls: The tools called; ids may be left empty and are then made from tool and place.
        when: Regular expression that the last message must hold (all messages with ``anywhere``).
        anywhere: Whether ``when`` looks at the whole conversation.
        always: Answers every prompt that ``when`` fits, in any order and any number of times. Others are used once, in
            their order.
        error: Code of an error to raise in place of an answer, such as ``model_rate``.
        retry_after_s: With ``model_rate``: what the error says.
        delay_s: Seconds before anything comes, by the clock.
        gap_s: Seconds between the pieces of a stream.
        cut_after: Pieces of the stream after which it breaks off; -1 for never.
        finish: How it ends; by default ``tool_calls`` with some, else ``stop``.
        usage: Tokens; counted from prompt and answer when None.
        cost_usd: Price, exact; None for the tokens' by the price of the script.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    when: str = ""
    anywhere: bool = False
    always: bool = False
    error: str = ""
    retry_after_s: float | None = None
    delay_s: float = 0.0
    gap_s: float = 0.0
    cut_after: int = -1
    finish: Finish | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = None


class Script(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A script in a file: JSON, for programs of several processes.

    Attributes:
        answers: As for ``Scripted``. Those used in order are chosen by how many messages of the assistant a prompt
            holds, so that a process that takes over goes on where the other was.
        calls: File that gets one line a call, "" for none; relative to the script.
        facts: What is known about the model.
        usd_per_token: Price of each token, of the prompt and of the answer.
    """

    answers: tuple[Say, ...]
    calls: str = ""
    facts: ModelFacts = ModelFacts(is_local=True, has_schema=True)
    usd_per_token: Decimal = Decimal(0)


Answer = str | ToolCall | Sequence[ToolCall] | Say | ModelError | Callable[[Prompt], "str | Say"]


class Scripted:
    """A model that follows a script. Implements ``Model``.

    Attributes:
        prompts: What it was asked, in order.
    """

    def __init__(
        self,
        answers: Sequence[Answer] = (),
        *,
        name: str = "scripted/test",
        facts: ModelFacts | None = None,
        clock: Clock = SYSTEM_CLOCK,
        calls: Path | None = None,
        by_conversation: bool = False,
        usd_per_token: Decimal = Decimal(0),
    ) -> None:
        """Take a script.

        Args:
            answers: Texts, tool calls, ``Say`` for more, errors to raise, or functions of the prompt. They are used in
                their order, each once, but for ``Say(always=True)``.
            name: Its name.
            facts: What is known about it; by default a local model that holds to schemas.
            clock: Time, for delays.
            calls: File that gets one line of JSON a call: number, model, digest of the prompt.
            by_conversation: Choose among the answers in order by the number of messages of the assistant in the prompt,
                not by the number of calls: then a call that is repeated gets the same answer.
            usd_per_token: Price of each token, of the prompt and of the answer.

        Raises:
            ModelSetupError: If an answer has a ``when`` that is no expression, or an ``error`` that does not exist.
        """
        self.prompts: list[Prompt] = []
        self._answers = [answer for answer in answers if not _is_rule(answer)]
        self._rules = [answer for answer in answers if isinstance(answer, Say) and answer.always]
        self._name = name
        self._facts = facts or ModelFacts(is_local=True, has_schema=True)
        self._clock = clock
        self._calls = calls
        self._by_conversation = by_conversation
        self._usd_per_token = usd_per_token
        self._used = 0
        for answer in answers:
            if isinstance(answer, Say):
                _check(answer, name)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def facts(self) -> ModelFacts:
        """What is known about it."""
        return self._facts

    @property
    def calls(self) -> int:
        """How often it was asked."""
        return len(self.prompts)

    @property
    def left(self) -> int:
        """Answers that are still to be used, those of ``always`` not counted."""
        return len(self._answers) - self._used

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:  # noqa: ARG002 - the port's
        """See ``Model``.

        Raises:
            UnexpectedPromptError: If the script has no answer, or another prompt was expected.
            ModelError: As the script says.
        """
        said = await self._next(prompt)
        if said.cut_after >= 0:
            raise self._cut()
        return self._completion(prompt, said)

    async def stream(
        self,
        prompt: Prompt,
        *,
        timeout_s: float | None = None,  # noqa: ARG002 - the port's
        key: str = "",  # noqa: ARG002 - the port's
    ) -> AsyncIterator[Delta | Completion]:
        """See ``Model``. The text comes word by word.

        Raises:
            UnexpectedPromptError: If the script has no answer, or another prompt was expected.
            ModelError: As the script says.
        """
        said = await self._next(prompt)
        pieces = [piece for piece in _PIECE.findall(said.text) if piece]
        for number, piece in enumerate(pieces):
            if number == said.cut_after:
                raise self._cut()
            if number and said.gap_s:
                await self._clock.sleep(said.gap_s)
            yield Delta(text=piece)
        if 0 <= len(pieces) <= said.cut_after:
            raise self._cut()
        yield self._completion(prompt, said)

    def count_tokens(self, prompt: Prompt) -> int:
        """See ``Model``."""
        return estimate.prompt_tokens(prompt)

    def cost(self, usage: Usage) -> Decimal | None:
        """Return what so many tokens cost: ``usd_per_token`` of the script."""
        return usage.tokens * self._usd_per_token

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See ``Model``: the offline vectors."""
        return embed_texts(texts)

    async def close(self) -> None:
        """Nothing is open."""

    def assert_used(self) -> None:
        """Fail if answers are left.

        Raises:
            AssertionError: Naming the next one.
        """
        if self.left:
            following = repr(self._answers[self._used])[:_SHOWN]
            text = f"{self._name}: {self.left} answers of the script were not asked for, next {following}"
            raise AssertionError(text)

    # --- inside

    async def _next(self, prompt: Prompt) -> Say:
        self.prompts.append(prompt)
        self._note(prompt)
        said = self._chosen(prompt)
        if said.delay_s:
            await self._clock.sleep(said.delay_s)
        if said.error:
            raise _error(said, self._name)
        return said

    def _chosen(self, prompt: Prompt) -> Say:
        for rule in self._rules:
            if _fits(rule, prompt):
                return rule
        at = self._used
        if self._by_conversation:
            at = sum(message.role == "assistant" for message in prompt.messages)
        if at >= len(self._answers):
            raise self._unexpected(
                prompt, f"its script has {len(self._answers)} answers and this would be number {at + 1}"
            )
        self._used = max(self._used, at + 1)
        said = _say(self._answers[at], prompt)
        if not _fits(said, prompt):
            raise self._unexpected(prompt, f"answer {at + 1} of its script is for prompts with {said.when!r}")
        return said

    def _note(self, prompt: Prompt) -> None:
        if self._calls is None:
            return
        line = {"number": self.calls, "model": self._name, "prompt": _last(prompt)[:_SHOWN]}
        # one write: lines of several processes do not mix
        with self._calls.open("ab", buffering=0) as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def _completion(self, prompt: Prompt, said: Say) -> Completion:
        calls = tuple(
            call if call.id else msgspec.structs.replace(call, id=f"{call.name}-{len(prompt.messages)}-{number}")
            for number, call in enumerate(said.tool_calls)
        )
        made = Completion(
            text=said.text,
            tool_calls=calls,
            model=self._name,
            finish=said.finish or ("tool_calls" if calls else "stop"),
            is_estimated=said.usage is None,
        )
        used = said.usage or usage.estimated(prompt, made)
        cost_usd = self.cost(used) if said.cost_usd is None else said.cost_usd
        return msgspec.structs.replace(made, usage=used, cost_usd=cost_usd)

    def _cut(self) -> ModelTransientError:
        return ModelTransientError(f"{self._name}: the stream was cut off, as its script says", model=self._name)

    def _unexpected(self, prompt: Prompt, why: str) -> UnexpectedPromptError:
        text = (
            f"{self._name} was asked what its script does not expect: {why}. Asked, last message: "
            f"{_last(prompt)[:_SHOWN]!r}. Add an answer, or let Say(when=..., always=True) fit it"
        )
        return UnexpectedPromptError(text, model=self._name)


def load(path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> Scripted:
    """Return the model of a script file, ``scripted/<path>``.

    Raises:
        ModelSetupError: If the file cannot be read or is no script.
    """
    file = Path(path)
    try:
        script = msgspec.json.decode(file.read_bytes(), type=Script)
    except OSError as error:
        text = f"the script {path} cannot be read: {error.strerror or error}; write scripted/<path of a JSON file>"
        raise ModelSetupError(text, model=f"{PREFIX}/{path}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = f'{path} is no script: {error}. It reads {{"answers": [{{"text": "Hello"}}]}}'
        raise ModelSetupError(text, model=f"{PREFIX}/{path}") from error
    calls = file.parent / script.calls if script.calls else None
    return Scripted(
        script.answers,
        name=f"{PREFIX}/{path}",
        facts=script.facts,
        clock=clock,
        calls=calls,
        by_conversation=True,
        usd_per_token=script.usd_per_token,
    )


def build(name: str, settings: AgentSettings) -> Scripted:  # noqa: ARG001 - a factory's signature
    """Return the model ``scripted/<path of a script>``.

    Raises:
        ModelSetupError: If there is no path, or no script behind it.
    """
    path = name.partition("/")[2]
    if not path:
        text = f"{name!r} names no script: write {PREFIX}/<path of a JSON file>"
        raise ModelSetupError(text, model=name)
    return load(path)


def _is_rule(answer: Answer) -> bool:
    return isinstance(answer, Say) and answer.always


def _say(answer: Answer, prompt: Prompt) -> Say:
    if callable(answer):
        answer = answer(prompt)
    if isinstance(answer, ModelError):
        raise answer
    if isinstance(answer, Say):
        return answer
    if isinstance(answer, str):
        return Say(text=answer)
    return Say(tool_calls=(answer,) if isinstance(answer, ToolCall) else tuple(answer))


def _fits(said: Say, prompt: Prompt) -> bool:
    if not said.when:
        return True
    text = "\n".join(message.text for message in prompt.messages) if said.anywhere else _last(prompt)
    return re.search(said.when, text) is not None


def _last(prompt: Prompt) -> str:
    return prompt.messages[-1].text if prompt.messages else ""


def _check(said: Say, model: str) -> None:
    try:
        _ = re.compile(said.when)
    except re.error as error:
        text = f"the script of {model}: {said.when!r} in `when` is no regular expression: {error}"
        raise ModelSetupError(text, model=model) from error
    if said.error and said.error not in _kinds():
        text = f"the script of {model} names an error {said.error!r}; there are {', '.join(sorted(_kinds()))}"
        raise ModelSetupError(text, model=model)


def _kinds() -> dict[str, type[ModelError]]:
    found = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelError))
    return {kind.code: kind for kind in found}


def _error(said: Say, model: str) -> ModelError:
    text = said.text or f"{model}: the script says {said.error}"
    if said.error == ModelRateError.code:
        return ModelRateError(text, model=model, status=429, retry_after_s=said.retry_after_s)
    return _kinds()[said.error](text, model=model)
