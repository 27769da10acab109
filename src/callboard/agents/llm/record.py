"""What stands in the journal of a call of a model: that it began, what came of it, or how it failed."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec
from msgspec import Struct

from callboard.agents.llm.base import Completion, Finish, Prompt, Usage
from callboard.runtime.errors import DecodeError

# Every record begins with it, so that one look tells them from what other steps return.
MARK = b'{"record":"model_'
# Code of a switch away from a model that was not asked at all.
BREAKER_OPEN = "breaker_open"


class Switch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model that was passed over for the next one.

    Attributes:
        model: Which.
        code: Code of its error, or ``breaker_open`` where it was not asked.
        message: The error's text, cut to 300 characters.
    """

    model: str
    code: str
    message: str = ""


class ModelInput(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="record", tag="model_input"):
    """That a call began; what an interrupted one leaves.

    Attributes:
        step: Id of the step that the call is.
        attempt: Which run of the step this is, 1-based, over all hosts.
        nonce: Tells this run from another that took the same number.
        run: The run it belongs to, "" for none.
        agent: Who asks: type of the actor unless the caller says otherwise.
        model: ``provider/model`` as asked for.
        version: The prompt's version.
        category: What it is for: ``work``, ``coordination``, ``repair`` and what else the caller says.
        at: When it began.
        estimated_tokens: The prompt's tokens by our own count.
        prompt: What is asked.
    """

    step: str
    nonce: str
    run: str
    agent: str
    model: str
    category: str
    at: datetime
    prompt: Prompt
    estimated_tokens: int
    attempt: int = 1
    version: str = ""


class ModelCall(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="record", tag="model_call"):
    """A call that was answered: the value of its step.

    Attributes:
        step: Id of the step.
        attempt: Which run of the step gave the answer, 1-based.
        run: The run it belongs to, "" for none.
        agent: Who asked.
        provider: Who answered.
        model: ``provider/model`` that answered.
        version: The prompt's version.
        category: What it was for.
        usage: Tokens.
        cost_usd: Exact price; None where none is known.
        at: When it began.
        latency_s: Seconds until the answer was whole.
        first_s: Seconds until its first piece; 0 where it came as a whole.
        retries: Further requests that it took.
        finish: Why the answer ended.
        is_cached: Whether it came from the cache, and cost nothing.
        switches: Models that were passed over.
        completion: The answer.
    """

    step: str
    run: str
    agent: str
    provider: str
    model: str
    category: str
    usage: Usage
    cost_usd: Decimal | None
    at: datetime
    latency_s: float
    finish: Finish
    completion: Completion
    attempt: int = 1
    version: str = ""
    first_s: float = 0.0
    retries: int = 0
    is_cached: bool = False
    switches: tuple[Switch, ...] = ()


class ModelFailure(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="record", tag="model_failure"):
    """A call that gave no answer and did not lose its host.

    Attributes:
        step: Id of the step.
        attempt: Which run of the step, 1-based.
        run: The run it belongs to, "" for none.
        agent: Who asked.
        model: ``provider/model`` as asked for.
        category: What it was for.
        code: Code of the error.
        message: Its text, cut to 500 characters.
        usage: Tokens by our own count: the prompt's, and those of the text that came. None came, none are counted.
        cost_usd: Their price; None where none is known.
        at: When it began.
        latency_s: Seconds until it failed.
        text: What had come of the answer.
        switches: Models that were passed over.
    """

    step: str
    run: str
    agent: str
    model: str
    category: str
    code: str
    message: str
    at: datetime
    latency_s: float
    usage: Usage = Usage()
    cost_usd: Decimal | None = Decimal(0)
    attempt: int = 1
    text: str = ""
    switches: tuple[Switch, ...] = ()


Record = ModelInput | ModelCall | ModelFailure
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def is_record(data: bytes) -> bool:
    """Return whether a step's value, as JSON, is one of these."""
    return data.startswith(MARK)


def decode(data: bytes) -> Record:
    """Return the record in a step's value.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"this is no record of a model's call: {error}"
        raise DecodeError(message) from error


def provider_of(model: str) -> str:
    """Return what stands before the first slash of a model's name; the name itself without one."""
    return model.partition("/")[0]
