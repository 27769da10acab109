"""Error codes stand on the wire and in records: each class has one of its own, and it never changes."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import callboard
from callboard.agents import errors as agent_errors
from callboard.cli.main import FAILED, status_of
from callboard.runtime import errors
from callboard.runtime.errors import CallboardError

# Adding one is fine. Changing or removing one breaks whoever reads records or matches codes.
CODES = {
    "ModelError": "model",
    "ModelSetupError": "model_setup",
    "ModelAuthError": "model_auth",
    "ModelUnknownError": "model_unknown",
    "ModelRateError": "model_rate",
    "ModelTimeoutError": "model_timeout",
    "ModelTransientError": "model_transient",
    "ContextTooLongError": "context_too_long",
    "ModelRefusedError": "model_refused",
    "ModelRequestError": "model_request",
    "ModelOutputError": "model_output",
    "UnexpectedPromptError": "unexpected_prompt",
    "BudgetExceededError": "budget_exceeded",
    "ToolError": "tool",
    "ToolDefinitionError": "tool_definition",
    "ToolUnknownError": "tool_unknown",
    "ToolArgumentError": "tool_argument",
    "ToolDeniedError": "tool_denied",
    "PathDeniedError": "path_denied",
    "AddressDeniedError": "address_denied",
    "ToolOutcomeUnknownError": "tool_outcome_unknown",
    "SandboxError": "sandbox",
    "SandboxMissingError": "sandbox_missing",
    "SandboxLimitError": "sandbox_limit",
    "ApprovalDeniedError": "approval_denied",
    "ApprovalRefusedError": "approval_refused",
    "ApprovalMismatchError": "approval_mismatch",
    "FlowError": "flow",
    "AgentFailedError": "agent_failed",
    "TicketError": "ticket",
    "TicketNotFoundError": "ticket_not_found",
    "TicketStateError": "ticket_state",
    "TicketCycleError": "ticket_cycle",
    "ActorError": "actor",
    "ActorDefinitionError": "actor_definition",
    "UnknownMessageError": "unknown_message",
    "AskFailedError": "ask_failed",
    "AskTimeoutError": "ask_timeout",
    "NoHostError": "no_host",
    "ActorStoppedError": "actor_stopped",
    "MailboxFullError": "mailbox_full",
    "MailLoopError": "mail_loop",
    "ReplyGoneError": "reply_gone",
    "StateDecodeError": "state_decode",
    "StateTooLargeError": "state_too_large",
    "MigrationError": "migration",
    "TurnFencedError": "turn_fenced",
    "TurnAbandonedError": "turn_abandoned",
    "TurnCancelledError": "turn_cancelled",
    "TurnTimeoutError": "turn_timeout",
    "StepUnknownError": "step_unknown",
    "WaitTimeoutError": "wait_timeout",
    "BackpressureError": "backpressure",
    "BackupError": "backup",
    "BlobCorruptError": "blob_corrupt",
    "ApiError": "bus_api",
    "BusAuthError": "bus_auth",
    "BusClosedError": "bus_closed",
    "BusConnectError": "bus_connect",
    "BusError": "bus",
    "BusTimeoutError": "bus_timeout",
    "CallboardError": "callboard",
    "ConfigError": "config",
    "ConflictError": "conflict",
    "CrashLimitError": "crash_limit",
    "DataFolderInUseError": "data_folder_in_use",
    "DeadlineError": "deadline",
    "DecodeError": "decode",
    "DuplicateAgentError": "duplicate_agent",
    "EncodeError": "encode",
    "HandlerExitError": "handler_exit",
    "HistoryError": "history",
    "InputError": "input",
    "InvalidHeaderError": "invalid_header",
    "InvalidNameError": "invalid_name",
    "MissingExtraError": "missing_extra",
    "ModuleLoadError": "module_load",
    "NoLeaderError": "no_leader",
    "NoAgentError": "no_agent",
    "NoRespondersError": "no_responders",
    "NotFoundError": "not_found",
    "QuotaExceededError": "quota_exceeded",
    "PayloadTooLargeError": "payload_too_large",
    "PermissionDeniedError": "permission_denied",
    "PortInUseError": "port_in_use",
    "RegistryAwayError": "registry_away",
    "RegistryError": "registry",
    "RetryableError": "retryable",
    "ServerBinaryError": "server_binary",
    "ServerStartError": "server_start",
    "SimulationDeadlockError": "simulation_deadlock",
    "SimulationError": "simulation",
    "SimulationStuckError": "simulation_stuck",
    "TaskCancelledError": "task_cancelled",
    "TaskError": "task",
    "TaskFailedError": "task_failed",
    "TaskNotFoundError": "task_not_found",
    "TaskTimeoutError": "task_timeout",
    "TerminalError": "terminal",
    "TopologyError": "topology",
}


def _all() -> list[type[CallboardError]]:
    """Return the root and every subclass, wherever it is written."""
    for module in pkgutil.walk_packages(callboard.__path__, "callboard."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, queue = [], [CallboardError]
    while queue:
        error = queue.pop()
        queue += error.__subclasses__()
        if error.__module__.startswith("callboard."):
            found.append(error)
    return sorted(found, key=lambda error: error.__name__)


# a class with two parents of ours is found twice
ALL = sorted(set(_all()), key=lambda error: error.__name__)


def test_codes_are_pinned() -> None:
    assert {error.__name__: error.code for error in ALL} == CODES


def test_every_class_has_a_code_of_its_own() -> None:
    assert [error.__name__ for error in ALL if "code" not in vars(error)] == []
    assert len({error.code for error in ALL}) == len(ALL)


def test_every_error_is_found_in_the_one_module_of_its_room() -> None:
    ours = [error for error in ALL if error.__module__ != agent_errors.__name__]
    assert sorted(errors.__all__) == [error.__name__ for error in ours]
    assert [error.__name__ for error in ours if getattr(errors, error.__name__, None) is not error] == []


@pytest.mark.parametrize("error", ALL)
def test_the_docstring_says_when_it_is_raised(error: type[CallboardError]) -> None:
    assert (error.__doc__ or "").startswith(("Raised when", "Raised by"))
    assert error.code == error.code.lower()
    assert isinstance(error.retryable, bool)


@pytest.mark.parametrize("error", ALL)
def test_it_can_be_raised_with_a_message_alone(error: type[CallboardError]) -> None:
    assert str(error("what, which and what to do next")) == "what, which and what to do next"


def test_every_exit_status_is_documented_with_all_its_codes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \|.*\| (.*) \|$", page, flags=re.MULTILINE)
    documented = {(int(status), code) for status, codes in rows for code in re.findall(r"`([a-z_]+)`", codes)}
    codes = {(status_of(error("x")), error.code) for error in ALL}
    assert {each for each in codes if each[0] != FAILED} == {each for each in documented if each[0] != FAILED}
    # what has no status of its own need not be listed, but what is listed must be so
    assert {each for each in documented if each[0] == FAILED} - {(FAILED, "internal")} <= codes
