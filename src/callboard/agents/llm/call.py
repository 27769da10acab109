"""A call of a model as one step of a turn: recorded, paid once, watched as it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypedDict, Unpack, cast

import msgspec

from callboard.agents.errors import BudgetExceededError, ModelError, ModelTransientError
from callboard.agents.llm import estimate, notes
from callboard.agents.llm.allowance import Allowance
from callboard.agents.llm.base import Completion, Delta, Model, Prompt, Usage, fingerprint
from callboard.agents.llm.price import price_of
from callboard.agents.llm.record import ModelCall, ModelFailure, ModelInput, provider_of
from callboard.agents.llm.tokens import TokensEnd, TokenWriter
from callboard.runtime import ids
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.step import current_step
from callboard.runtime.actor.turn_api import TurnApi, current_turn

# What follows on a call's name in the names of its further records.
INPUT, FAILURE = " input", " failure"
_MESSAGE_CHARS = 500


class CallOptions(TypedDict, total=False):
    """What may be said of a call besides what is asked, each with a default.

    Attributes:
        name: Name of the step; default: ``model``.
        run: Run that it belongs to, for its record and for who watches its tokens; by default the actor's address.
        agent: Who asks, for the record; by default the actor's type.
        category: What it is for, for the record; default: ``work``.
        budgets: Scopes that pay, such as ``run/7f3a``; each is asked before the call, and its parents. Default: none.
        stream: Whether the text is published as it comes; default: yes.
        timeout_s: Longest time, in seconds; default: the model's setting.
    """

    name: str
    run: str
    agent: str
    category: str
    budgets: Sequence[str]
    stream: bool
    timeout_s: float | None


async def call_model(turn: TurnApi | Actor, model: Model, prompt: Prompt, **options: Unpack[CallOptions]) -> Completion:
    """Ask a model, once: a turn that runs again gets the recorded answer and pays nothing.

    A call that lost its host between question and record is asked, and paid, again; the first one's input record stands
    and ``callboard cost`` counts it.

    Args:
        turn: The running turn, or the actor whose turn it is.
        model: Whom to ask.
        prompt: What. It tells this call from others of the turn, together with its ``name`` and the model's name.
        options: See ``CallOptions``.

    Raises:
        ModelError: One of its subclasses; the failure is recorded for the cost report, and a later run asks again.
        BudgetExceededError: If a budget does not have what the call needs, or it ran out in the middle of the answer.
    """
    now = current_turn() if isinstance(turn, Actor) else turn
    call = _Call(now, model, prompt, **options)
    found: ModelCall = await now.step(call.name, call.make, key=fingerprint(prompt, model=model.name))
    return found.completion


@dataclass(slots=True)
class _Call:
    """One call; ``make`` is the function of its step, and runs again after each host that it lost."""

    turn: TurnApi
    model: Model
    prompt: Prompt
    name: str = "model"
    run: str = ""
    agent: str = ""
    category: str = "work"
    budgets: Sequence[str] = ()
    stream: bool = True
    timeout_s: float | None = None
    _began_s: float = field(default=0.0, init=False)
    _first_s: float = field(default=0.0, init=False)
    _text: list[str] = field(default_factory=list, init=False)
    _allowance: Allowance = field(init=False)

    def __post_init__(self) -> None:
        self.run = self.run or str(self.turn.address)
        self.agent = self.agent or self.turn.address.type
        self.budgets = tuple(dict.fromkeys(self.budgets))

    def asked(self) -> object:
        """Return what is asked, and whom: for people who compare two runs."""
        return asked(self.model.name, self.prompt)

    async def make(self) -> ModelCall:
        """Ask the model and return the record of the call."""
        self._text.clear()
        self._first_s = 0.0
        step, nonce = current_step().id, ids.new_token()
        self._allowance = Allowance(
            self.turn,
            self.model,
            self.prompt,
            self.budgets,
            step=step,
            nonce=nonce,
            timeout_s=self.timeout_s,
        )
        await self._allowance.begin()
        input_ = await self._begin(step, nonce)
        self._began_s = self.turn.clock.monotonic()
        with notes.taken() as noted:
            try:
                completion = await self._timed(input_)
            except (ModelError, BudgetExceededError) as error:
                await self._fail(input_, noted, error)
                raise
        found = self._record(input_, noted, completion)
        await self._allowance.settle(found.usage, cost_usd=found.cost_usd, seconds=found.latency_s)
        return found

    async def _begin(self, step: str, nonce: str) -> ModelInput:
        """Record that this attempt begins, after those that other hosts began and did not bring to an end."""
        prompt = self.prompt
        mine = ModelInput(
            step=step,
            nonce=nonce,
            run=self.run,
            agent=self.agent,
            model=self.model.name,
            version=prompt.version,
            category=self.category,
            at=self.turn.clock.now(),
            prompt=prompt,
            estimated_tokens=self.model.count_tokens(prompt),
        )
        while True:
            # each time a place further, until one is free
            found: ModelInput = await self.turn.step(f"{self.name}{INPUT}", _numbered, mine, key="")
            if found.nonce == mine.nonce:
                return found

    async def _timed(self, input_: ModelInput) -> Completion:
        """Let the call take no longer than the budgets have time."""
        limit_s = self._allowance.seconds_left
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await self._published(input_)
        except TimeoutError as error:
            if not limit.expired():
                raise
            scopes = " or ".join(self.budgets)
            text = f"the answer was stopped after {limit_s:.3g} s: no more wall time is left in {scopes}"
            raise BudgetExceededError(text, scope=self.budgets[0], unit="seconds") from error

    async def _published(self, input_: ModelInput) -> Completion:
        if not self.stream and not self.budgets:
            return await self.model.complete(self.prompt, timeout_s=self.timeout_s, key=input_.step)
        if not self.stream:
            # in pieces all the same: a budget may run out in the middle
            return await self._streamed(input_, None)
        writer = TokenWriter(
            self.turn.bus,
            self.turn.clock,
            run=self.run,
            agent=self.agent,
            step=input_.step,
            attempt=input_.attempt,
        )
        async with writer:
            try:
                completion = await self._streamed(input_, writer)
            except (ModelError, BudgetExceededError) as error:
                await writer.end(TokensEnd(error=error.code))
                raise
            await writer.end(TokensEnd(finish=completion.finish, usage=completion.usage))
        return completion

    async def _streamed(self, input_: ModelInput, writer: TokenWriter | None) -> Completion:
        spent = _Count()
        parts = self.model.stream(self.prompt, timeout_s=self.timeout_s, key=input_.step)
        async with aclosing(cast("AsyncGenerator[Delta | Completion]", parts)) as open_parts:
            async for part in open_parts:
                if isinstance(part, Completion):
                    return part
                if not self._text:
                    self._first_s = self.turn.clock.monotonic() - self._began_s
                self._text.append(part.text)
                if writer is not None:
                    writer.put(part.text)
                await self._allowance.cover(spent.add(part.text))
        message = f"{self.model.name}: the stream ended before the answer did"
        raise ModelTransientError(message, model=self.model.name)

    def _record(self, input_: ModelInput, noted: notes.Notes, completion: Completion) -> ModelCall:
        answered = completion.model or self.model.name
        return ModelCall(
            step=input_.step,
            attempt=input_.attempt,
            run=self.run,
            agent=self.agent,
            provider=provider_of(answered),
            model=answered,
            version=self.prompt.version,
            category=self.category,
            usage=completion.usage,
            cost_usd=completion.cost_usd,
            at=input_.at,
            latency_s=self.turn.clock.monotonic() - self._began_s,
            first_s=self._first_s,
            retries=completion.retries,
            finish=completion.finish,
            is_cached=noted.is_cached,
            switches=tuple(noted.switches),
            completion=completion,
        )

    async def _fail(self, input_: ModelInput, noted: notes.Notes, error: ModelError | BudgetExceededError) -> None:
        """Record that nothing came of it, and charge what came."""
        text = "".join(self._text)
        usage = Usage()
        if text:
            usage = Usage(input_tokens=input_.estimated_tokens, output_tokens=estimate.text_tokens(text))
        if isinstance(error, BudgetExceededError):
            error.partial = text
        failure = ModelFailure(
            step=input_.step,
            attempt=input_.attempt,
            run=self.run,
            agent=self.agent,
            model=(error.model if isinstance(error, ModelError) else "") or self.model.name,
            category=self.category,
            code=error.code,
            message=str(error)[:_MESSAGE_CHARS],
            usage=usage,
            cost_usd=price_of(self.model, usage) if text else Decimal(0),
            at=input_.at,
            latency_s=self.turn.clock.monotonic() - self._began_s,
            text=text,
            switches=tuple(noted.switches),
        )
        _ = await self.turn.step(f"{self.name}{FAILURE}", _told, failure, key=str(input_.attempt))
        await self._allowance.settle(usage, cost_usd=failure.cost_usd, seconds=failure.latency_s)


class _Count:
    """Tokens of a text that comes in pieces; counted piece by piece they would be too many."""

    _STRETCH = 256

    def __init__(self) -> None:
        self._whole = 0
        self._rest = ""

    def add(self, text: str) -> int:
        """Take a further piece and return the tokens so far."""
        self._rest += text
        rest = estimate.text_tokens(self._rest)
        if len(self._rest) < self._STRETCH:
            return self._whole + rest
        self._whole += rest
        self._rest = ""
        return self._whole


def asked(model: str, prompt: Prompt) -> dict[str, object]:
    """Return what a call asks, in the form in which two calls are compared."""
    return {"model": model, "prompt": prompt}


async def _numbered(record: ModelInput) -> ModelInput:
    """Return the record with the number of its place: how many attempts at the step there are."""
    ordinal = current_step().entry.rpartition(".")[2]
    return msgspec.structs.replace(record, attempt=int(ordinal) + 1)


async def _told(record: ModelFailure) -> ModelFailure:
    return record
