"""A model that answers what another one answered before: from a file of recordings, or from the records of a run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.agents.errors import ModelSetupError, UnexpectedPromptError
from callboard.agents.llm import estimate
from callboard.agents.llm.around import Around
from callboard.agents.llm.base import Completion, Delta, Model, ModelFacts, Prompt, fingerprint
from callboard.agents.llm.embed import embed_texts
from callboard.agents.llm.record import ModelCall, ModelInput, Record
from callboard.agents.settings import AgentSettings

PREFIX = "recorded"
_SHOWN = 200


class Recording(Struct, frozen=True, kw_only=True):
    """A question and its answer; one line of JSON in a file."""

    prompt: Prompt
    completion: Completion


class Recorded:
    """Answers from recordings, makes no call and costs nothing. Implements ``Model``.

    Equal questions get their answers in the order in which they were recorded, the last one again and again.
    """

    def __init__(self, recordings: Iterable[Recording], *, name: str = PREFIX) -> None:
        """Take recordings, oldest first."""
        self._name = name
        self._answers: dict[str, list[Completion]] = {}
        self._used: dict[str, int] = {}
        for each in recordings:
            self._answers.setdefault(_key(each.prompt), []).append(each.completion)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def facts(self) -> ModelFacts:
        """A local model that does what the recorded one did."""
        return ModelFacts(has_schema=True, is_local=True)

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:  # noqa: ARG002 - the port's
        """See ``Model``.

        Raises:
            UnexpectedPromptError: If the question was not recorded.
        """
        place = _key(prompt)
        answers = self._answers.get(place)
        if answers is None:
            asked = prompt.messages[-1].text[:_SHOWN] if prompt.messages else ""
            message = f"{self._name} has no recording of this prompt, last message {asked!r}: record it anew"
            raise UnexpectedPromptError(message, model=self._name)
        at = self._used.get(place, 0)
        self._used[place] = at + 1
        return msgspec.structs.replace(answers[min(at, len(answers) - 1)], cost_usd=Decimal(0), retries=0)

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        """See ``Model``. The text comes in one piece.

        Raises:
            UnexpectedPromptError: If the question was not recorded.
        """
        found = await self.complete(prompt, timeout_s=timeout_s, key=key)
        if found.text:
            yield Delta(text=found.text)
        yield found

    def count_tokens(self, prompt: Prompt) -> int:
        """See ``Model``."""
        return estimate.prompt_tokens(prompt)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See ``Model``: the offline vectors."""
        return embed_texts(texts)

    async def close(self) -> None:
        """Nothing is open."""


class Recorder(Around):
    """A model whose questions and answers are written to a file, one line each. Vectors are not recorded."""

    def __init__(self, model: Model, file: Path) -> None:
        """Record what ``model`` answers to the end of ``file``; failed calls are not recorded."""
        super().__init__(model)
        self._file = file

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
        """See ``Model``."""
        found = await super().complete(prompt, timeout_s=timeout_s, key=key)
        self._write(prompt, found)
        return found

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncGenerator[Delta | Completion, None]:
        """See ``Model``."""
        async with aclosing(super().stream(prompt, timeout_s=timeout_s, key=key)) as parts:
            async for part in parts:
                if isinstance(part, Completion):
                    self._write(prompt, part)
                yield part

    def _write(self, prompt: Prompt, completion: Completion) -> None:
        line = msgspec.json.encode(Recording(prompt=prompt, completion=completion)) + b"\n"
        with self._file.open("ab", buffering=0) as file:
            file.write(line)


def load(path: str | Path) -> Recorded:
    """Return the model of a file that a ``Recorder`` wrote.

    Raises:
        ModelSetupError: If it cannot be read; names the line that is no recording.
    """
    name = f"{PREFIX}/{path}"
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        message = f"the recordings {path} cannot be read: {error.strerror or error}; write {PREFIX}/<path of a file>"
        raise ModelSetupError(message, model=name) from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(msgspec.json.decode(line, type=Recording))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"{path}, line {number} is no recording: {error}"
            raise ModelSetupError(message, model=name) from error
    return Recorded(found, name=name)


def of_calls(records: Iterable[Record]) -> Recorded:
    """Return a model that answers as the calls of a run were answered: ``read_calls`` has their records."""
    prompts: dict[str, Prompt] = {}
    calls: list[ModelCall] = []
    for each in records:
        if isinstance(each, ModelInput):
            prompts[each.step] = each.prompt
        elif isinstance(each, ModelCall):
            calls.append(each)
    calls.sort(key=lambda each: each.at)
    return Recorded(
        Recording(prompt=prompts[call.step], completion=call.completion) for call in calls if call.step in prompts
    )


def build(name: str, settings: AgentSettings) -> Recorded:  # noqa: ARG001 - a factory's signature
    """Return the model ``recorded/<path of a file>``.

    Raises:
        ModelSetupError: If there is no path, or no recordings behind it.
    """
    path = name.partition("/")[2]
    if not path:
        message = f"{name!r} names no recordings: write {PREFIX}/<path of a file>"
        raise ModelSetupError(message, model=name)
    return load(path)


def _key(prompt: Prompt) -> str:
    return fingerprint(msgspec.structs.replace(prompt, version=""), model="")
