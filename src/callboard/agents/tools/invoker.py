"""A call of a tool, made once: checked, journaled, and with a person asked where a crash left its outcome unknown.

A call is one step of the turn. Its idempotency key is the step's id, the same in every run of the turn. A tool that may
be repeated runs again under that key when a crash left no record. One that may not is announced in the journal before
it begins (``once=True``). When a later run finds the announcement and no result, nothing is run: a person looks and
says whether it took effect.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from callboard.agents.errors import (
    ApprovalDeniedError,
    ApprovalMismatchError,
    ToolArgumentError,
    ToolDeniedError,
    ToolError,
    ToolOutcomeUnknownError,
)
from callboard.agents.llm.base import ToolCall
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.tools import pooled
from callboard.agents.tools.approver import Approver, ToolAnswer, ToolQuestion
from callboard.agents.tools.base import Tool, ToolResult
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.permission import Permissions
from callboard.agents.tools.run import MAX_CHARS, cut, run
from callboard.agents.tools.schema import arguments_of, shape_of
from callboard.runtime import codec
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.step import current_step
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.errors import EncodeError, PayloadTooLargeError, StepUnknownError

DENIED_EVENT = "tool.denied"
# Of a call's arguments, in what a person is asked; beside them stands some text.
MAX_SHOWN_BYTES = 48 * 1024
_KEY_BYTES = 16


class Means(Struct, frozen=True, kw_only=True):
    """What the calls of an agent may use; the same for all of them.

    Attributes:
        permissions: Which tools.
        sandbox: Where code runs; None for none.
        approve: Asks a person; None if nobody can be asked.
        folder: The one folder that tools may use; None for none.
        max_chars: Longest result that a model is told, in characters.
    """

    permissions: Permissions
    sandbox: Sandbox | None = None
    approve: Approver | None = None
    folder: Path | None = None
    max_chars: int = MAX_CHARS


async def invoke(
    turn: TurnApi | Actor,
    tool: Tool,
    call: ToolCall,
    *,
    permissions: Permissions,
    sandbox: Sandbox | None = None,
    approve: Approver | None = None,
    folder: Path | None = None,
    max_chars: int = MAX_CHARS,
) -> ToolResult:
    """Make one call and return what the model is told of it; a call that was recorded is not made again.

    What is wrong with the call, or goes wrong in the tool, is a result with an ``error``: not permitted
    (``tool_denied``, and an event ``tool.denied``), arguments that do not fit (``tool_argument``), too slow
    (``tool_timeout``), the code of a Callboard error, or ``tool_failed``. One stored write; one more for a tool that
    must not be repeated.

    Args:
        turn: The turn that calls, or its actor.
        tool: What is called.
        call: The model's call.
        permissions: Which tools may be called.
        sandbox: Where code runs.
        approve: Asks a person: for tools that need approval, and about unknown outcomes.
        folder: The one folder that the tool may use.
        max_chars: Longest result, in characters; the rest is cut off with a note.

    Raises:
        ToolOutcomeUnknownError: If the outcome is unknown and there is nobody to ask. Nothing was run again.
    """
    means = Means(permissions=permissions, sandbox=sandbox, approve=approve, folder=folder, max_chars=max_chars)
    first = await attempt(turn, tool, call, means)
    return first if isinstance(first, ToolResult) else await settle(turn, tool, call, means)


async def attempt(turn: TurnApi | Actor, tool: Tool, call: ToolCall, means: Means) -> ToolResult | None:
    """Make a call as far as no person is needed: the result, or None if ``settle`` must ask one.

    It never parks the turn, so that several may run side by side.
    """
    made = _Call(turn, tool, call, means)
    refusal = made.refusal()
    try:
        if refusal is not None:
            return await made.refuse(refusal)
        return None if tool.needs_approval else await made.make(0)
    except (StepUnknownError, ToolOutcomeUnknownError):
        return None


async def settle(turn: TurnApi | Actor, tool: Tool, call: ToolCall, means: Means) -> ToolResult:
    """Bring a call to its end with a person's help. It may park the turn: nothing else may run beside it.

    Raises:
        ToolOutcomeUnknownError: As ``invoke``.
    """
    return await _Call(turn, tool, call, means).settled()


class _Call:
    """One call on its way."""

    def __init__(self, turn: TurnApi | Actor, tool: Tool, call: ToolCall, means: Means) -> None:
        self._turn = turn
        self._tool = tool
        self._call = call
        self._means = means
        self._name = name_of(tool.name)
        self._key = key_of(call)

    def asked(self) -> object:
        """Return what is called: for people who compare two runs."""
        return asked(self._call)

    def refusal(self) -> ToolError | None:
        """Return why the call is not made, None if it is."""
        try:
            self._means.permissions.check(self._tool)
            if self._tool.needs_approval and self._means.approve is None:
                text = f"the tool {self._tool.name} needs a person's approval, and nobody can be asked here"
                return ToolDeniedError(text, tool=self._tool.name, rule="approval")
            self._arguments()
        except (ToolDeniedError, ToolArgumentError) as error:
            return error
        return None

    async def refuse(self, error: ToolError) -> ToolResult:
        """Record a refusal: a later run tells the model the same, whatever was permitted meanwhile."""
        told = self._result(str(error), error.code)
        result = await self._turn.step(self._name, _same, told, key=self._key)
        if isinstance(error, ToolDeniedError) and result.error == error.code:
            seen = {"tool": self._tool.name, "rule": error.rule, "call": self._call.id[:100]}
            self._turn.emit(DENIED_EVENT, seen)
        return _told(result)

    async def make(self, round_: int) -> ToolResult:
        """Run the tool, or take what was recorded.

        Raises:
            StepUnknownError: If it must not be repeated, began before, and left no result.
            ToolOutcomeUnknownError: The same, of a tool in a worker pool, or of one that was stopped in the middle.
        """
        refusal = self.refusal() if round_ else None
        if refusal is not None:
            # no longer permitted, since it began
            return self._result(str(refusal), refusal.code)
        key = f"{self._key} again {round_}" if round_ else self._key
        if self._tool.pool:
            return await pooled.call(
                self._turn, self._tool, self._call, self._arguments(), key=key, max_chars=self._means.max_chars
            )
        once = not self._tool.is_repeatable
        return _told(await self._turn.step(self._name, self._run, self._arguments(), key=key, once=once))

    async def settled(self) -> ToolResult:
        """Ask what must be asked, and run what may be run, until there is a result."""
        try:
            if self._tool.needs_approval:
                await self._ask(self._question("call", 0))
            return await self._rounds()
        except (ApprovalDeniedError, ApprovalMismatchError, EncodeError, PayloadTooLargeError) as error:
            return self._result(str(error), error.code)

    async def _rounds(self) -> ToolResult:
        round_ = 0
        while True:
            try:
                return await self.make(round_)
            except (StepUnknownError, ToolOutcomeUnknownError) as error:
                answer = await self._ask(self._question("outcome", round_), error)
            if answer.choice == "done":
                return self._result(answer.text, "")
            if answer.choice != "again":
                text = (
                    f"nobody knows whether {self._tool.name} took effect; do not call it again for this. {answer.text}"
                )
                return self._result(text.strip(), ToolOutcomeUnknownError.code)
            round_ += 1

    async def _ask(self, question: ToolQuestion, cause: Exception | None = None) -> ToolAnswer:
        if self._means.approve is None:
            text = f"{question.text} Nobody can be asked here: {cause}"
            raise ToolOutcomeUnknownError(text) from cause
        answer = await self._means.approve(self._turn, question)
        if answer.choice not in question.choices:
            text = f"the answer {answer.choice!r} is none of {', '.join(question.choices)}: another question's"
            raise ApprovalMismatchError(text)
        return answer

    def _question(self, kind: str, round_: int) -> ToolQuestion:
        tool = self._tool
        if kind == "call":
            text = f"{self._turn.address} wants to call {tool.name}, which {_DOES[tool.action]}."
            choices: tuple[str, ...] = ("grant",)
        else:
            text = (
                f"{self._turn.address} began to call {tool.name}, and nobody knows whether that took effect. Look "
                "outside, then say: done, with its result; again, if it had no effect and its first run has surely "
                "ended; or give_up."
            )
            choices = ("done", "again", "give_up")
        shown = self._shown(is_whole=kind == "call")
        fields = {"kind": kind, "tool": tool.name, "action": tool.action, "arguments": shown, "round": round_}
        return msgspec.convert({**fields, "key": self._key, "text": text, "choices": choices}, ToolQuestion)

    async def _run(self, arguments: dict[str, Any]) -> ToolResult:
        means = self._means
        context = ToolContext(
            key=current_step().id,
            address=str(self._turn.address),
            call_id=self._call.id,
            folder=means.folder,
            sandbox=means.sandbox,
            turn=self._turn,
        )
        return await run(self._tool, arguments, context, max_chars=means.max_chars)

    def _arguments(self) -> dict[str, Any]:
        shape = shape_of(self._tool.function, self._tool.name)
        return arguments_of(shape, self._call.arguments, tool=self._tool.name)

    def _shown(self, *, is_whole: bool) -> dict[str, Any]:
        """Return the arguments as a person is shown them: what the function is given, not what the model wrote.

        Raises:
            EncodeError: If they have no form in JSON.
            PayloadTooLargeError: If they are more than a person reads and must be whole.
        """
        data = codec.encode(self._arguments())
        if len(data) > MAX_SHOWN_BYTES:
            if is_whole:
                text = f"the arguments take {len(data)} bytes, a person is shown at most {MAX_SHOWN_BYTES}: send less"
                raise PayloadTooLargeError(text, size_bytes=len(data), limit_bytes=MAX_SHOWN_BYTES)
            return {"left out": f"{len(data)} bytes", "blake2b": blake2b(data, digest_size=_KEY_BYTES).hexdigest()}
        found: dict[str, Any] = msgspec.json.decode(data)
        return found

    def _result(self, text: str, error: str) -> ToolResult:
        text = cut(text, max_chars=self._means.max_chars)
        return ToolResult(call_id=self._call.id, tool=self._tool.name, text=text, error=error)


def name_of(tool: str) -> str:
    """Return the name of the steps of a tool's calls."""
    return f"tool {tool}"


def key_of(call: ToolCall) -> str:
    """Return the key of a call's step."""
    digest = blake2b(call.arguments.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES)
    return f"{call.id[:100]} {digest.hexdigest()}"


def asked(call: ToolCall) -> dict[str, object]:
    """Return what a call asks for, in the form in which two calls are compared."""
    try:
        arguments = msgspec.json.decode(call.arguments.strip() or "{}")
    except msgspec.DecodeError:
        arguments = call.arguments
    return {"tool": call.name, "arguments": arguments}


_DOES = {
    "read": "reads",
    "write": "writes",
    "execute": "runs code",
    "network": "goes to the network",
    "communicate": "speaks to people",
    "spend": "spends money",
    "delegate": "gives work to others",
}


def _same(result: ToolResult) -> ToolResult:
    return result


def _told(value: object) -> ToolResult:
    return value if isinstance(value, ToolResult) else msgspec.convert(value, ToolResult)
