"""What goes wrong with models, tools, sandboxes, budgets and approvals: errors of the agents' room.

They follow ``callboard.runtime.errors``: one root, a stable code each, and a message that says what to do next.
"""

from __future__ import annotations

from callboard.runtime.errors import CallboardError


class ModelError(CallboardError):
    """Raised when a model gave no answer; the subclasses say why.

    Attributes:
        model: Name of the model, ``provider/model``.
        status: HTTP status, or 0 where there was none.
        retry_after_s: Seconds to wait before the next try, as the provider said; None where it did not.
    """

    code = "model"

    def __init__(self, message: str, *, model: str = "", status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.status = status
        self.retry_after_s = retry_after_s


class ModelSetupError(ModelError):
    """Raised when a model cannot be used as it is set up: unknown provider, no key, a missing extra."""

    code = "model_setup"


class ModelAuthError(ModelError):
    """Raised when the provider refuses the key, or the key may not use this model."""

    code = "model_auth"


class ModelUnknownError(ModelError):
    """Raised when the provider does not know the model."""

    code = "model_unknown"


class ModelRateError(ModelError):
    """Raised when the provider refuses for the number of calls or tokens, or because the account has no money left."""

    code = "model_rate"
    retryable = True


class ModelTimeoutError(ModelError):
    """Raised when the answer did not come in time, or a stream stood still for too long."""

    code = "model_timeout"
    retryable = True


class ModelTransientError(ModelError):
    """Raised when the provider failed in a way that passes: a 5xx, a broken connection, a stream cut in the middle."""

    code = "model_transient"
    retryable = True


class ContextTooLongError(ModelError):
    """Raised when the prompt does not fit into the model's context window."""

    code = "context_too_long"


class ModelRefusedError(ModelError):
    """Raised when the model or its provider declined to answer: a content filter, a refusal."""

    code = "model_refused"


class ModelRequestError(ModelError):
    """Raised when the provider calls the request itself wrong: a schema or a parameter it does not take."""

    code = "model_request"


class ModelOutputError(ModelError):
    """Raised when an answer does not have the asked form, also after the repairs that were allowed.

    Attributes:
        text: The last answer, cut to 2,000 characters.
    """

    code = "model_output"

    def __init__(self, message: str, *, model: str = "", text: str = "") -> None:
        super().__init__(message, model=model)
        self.text = text[:2000]


class UnexpectedPromptError(ModelError):
    """Raised when a scripted or recorded model is asked something that its script does not have."""

    code = "unexpected_prompt"


class BudgetExceededError(CallboardError):
    """Raised when a call would go beyond a budget, before it is made, or when one runs out in the middle of an answer.

    Attributes:
        scope: Whose budget, such as ``run/7f3a`` or ``agent-day/planner/2026-11-21``.
        unit: ``tokens``, ``usd`` or ``seconds``; "" where it is something else, such as parents in a circle.
        partial: What had come of the answer, "" if the call was not made.
    """

    code = "budget_exceeded"

    def __init__(self, message: str, *, scope: str = "", unit: str = "", partial: str = "") -> None:
        super().__init__(message)
        self.scope = scope
        self.unit = unit
        self.partial = partial


class ToolError(CallboardError):
    """Raised when a tool cannot be used or called; the subclasses say why."""

    code = "tool"


class ToolDefinitionError(ToolError):
    """Raised when a function cannot become a tool: no type hints, no docstring, a type without a schema."""

    code = "tool_definition"


class ToolUnknownError(ToolError):
    """Raised when a model calls a tool that it was not given."""

    code = "tool_unknown"


class ToolArgumentError(ToolError):
    """Raised when the arguments of a call do not fit the tool's schema."""

    code = "tool_argument"


class ToolDeniedError(ToolError):
    """Raised when permissions refuse a tool; nothing was run.

    Attributes:
        tool: Its name.
        rule: What refused it: ``denied``, ``not_allowed``, ``level``, ``default``.
    """

    code = "tool_denied"

    def __init__(self, message: str, *, tool: str = "", rule: str = "") -> None:
        super().__init__(message)
        self.tool = tool
        self.rule = rule


class PathDeniedError(ToolError):
    """Raised when a path leads out of the folder that a tool may use."""

    code = "path_denied"


class AddressDeniedError(ToolError):
    """Raised when a URL leads to an address that a tool may not reach: this machine, a private or metadata network."""

    code = "address_denied"


class ToolOutcomeUnknownError(ToolError):
    """Raised when a tool that must not be repeated began before a crash, and nobody knows whether it took effect."""

    code = "tool_outcome_unknown"


class SandboxError(CallboardError):
    """Raised when a sandbox could not run what it was given."""

    code = "sandbox"


class SandboxMissingError(SandboxError):
    """Raised when the sandbox that is asked for is not on this machine. Nothing is run in a weaker one instead."""

    code = "sandbox_missing"


class SandboxLimitError(SandboxError):
    """Raised when what ran went beyond a limit and was ended.

    Attributes:
        limit: ``time``, ``memory``, ``cpu``, ``output``, ``processes``, ``files``.
    """

    code = "sandbox_limit"

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class ApprovalDeniedError(CallboardError):
    """Raised when a person, or a time-out policy, said no to what an agent asked for.

    Attributes:
        approval: Id of the approval.
        reason: What was said.
        suggestion: What to do instead, "" if nothing was suggested.
    """

    code = "approval_denied"

    def __init__(self, message: str, *, approval: str = "", reason: str = "", suggestion: str = "") -> None:
        super().__init__(message)
        self.approval = approval
        self.reason = reason
        self.suggestion = suggestion


class ApprovalRefusedError(CallboardError):
    """Raised when a person's decision is not taken: another came first, the hash is not what was shown.

    Attributes:
        approval: Id of the approval.
        why: ``unknown``, ``decided``, ``hash``, ``not_allowed``.
    """

    code = "approval_refused"

    def __init__(self, message: str, *, approval: str = "", why: str = "") -> None:
        super().__init__(message)
        self.approval = approval
        self.why = why


class ApprovalMismatchError(CallboardError):
    """Raised when what is about to be done is not, byte for byte, what was approved, or the grant is used up."""

    code = "approval_mismatch"


class FlowError(CallboardError):
    """Raised when a flow cannot go on: a required branch failed, a quorum is out of reach."""

    code = "flow"


class AgentFailedError(FlowError):
    """Raised when an agent that a flow cannot do without gave no result, nor did a second one in its place.

    Attributes:
        part: Name of its part in the run, such as ``summarise-2``.
        is_lost: Whether nothing came in time, rather than a refusal or an error.
    """

    code = "agent_failed"

    def __init__(self, message: str, *, part: str = "", is_lost: bool = False) -> None:
        super().__init__(message)
        self.part = part
        self.is_lost = is_lost
