"""Every error Callboard raises: one root, a stable code each, and what to do next.

The ``code`` is the same on the wire, in ledger records and in the exit text of the command line. ``retryable`` says
whether the same call may succeed later without a change of its arguments.
"""

from __future__ import annotations

from callboard.runtime.error_base import (
    ApiError,
    BackpressureError,
    BackupError,
    BlobCorruptError,
    BusAuthError,
    BusClosedError,
    BusConnectError,
    BusError,
    BusTimeoutError,
    CallboardError,
    ConfigError,
    ConflictError,
    DeadlineError,
    DecodeError,
    EncodeError,
    InputError,
    InvalidHeaderError,
    InvalidNameError,
    MissingExtraError,
    ModuleLoadError,
    NoLeaderError,
    NoRespondersError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    QuotaExceededError,
    TopologyError,
)

__all__ = [
    "ActorDefinitionError",
    "ActorError",
    "ActorStoppedError",
    "ApiError",
    "AskFailedError",
    "AskTimeoutError",
    "BackpressureError",
    "BackupError",
    "BlobCorruptError",
    "BusAuthError",
    "BusClosedError",
    "BusConnectError",
    "BusError",
    "BusTimeoutError",
    "CallboardError",
    "ConfigError",
    "ConflictError",
    "CrashLimitError",
    "DataFolderInUseError",
    "DeadlineError",
    "DecodeError",
    "DuplicateAgentError",
    "EncodeError",
    "HandlerExitError",
    "HistoryError",
    "InputError",
    "InvalidHeaderError",
    "InvalidNameError",
    "MailLoopError",
    "MailboxFullError",
    "MigrationError",
    "MissingExtraError",
    "ModuleLoadError",
    "NoAgentError",
    "NoHostError",
    "NoLeaderError",
    "NoRespondersError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PortInUseError",
    "QuotaExceededError",
    "RegistryAwayError",
    "RegistryError",
    "ReplyGoneError",
    "RetryableError",
    "ServerBinaryError",
    "ServerStartError",
    "SimulationDeadlockError",
    "SimulationError",
    "SimulationStuckError",
    "StateDecodeError",
    "StateTooLargeError",
    "StepUnknownError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "TerminalError",
    "TicketCycleError",
    "TicketError",
    "TicketNotFoundError",
    "TicketStateError",
    "TopologyError",
    "TurnAbandonedError",
    "TurnCancelledError",
    "TurnFencedError",
    "TurnTimeoutError",
    "UnknownMessageError",
    "WaitTimeoutError",
]

# --- tickets -----------------------------------------------------------------------------------------------------


class TicketError(CallboardError):
    """Raised when a ticket cannot be made or changed as asked: a fixed field, an id that is taken."""

    code = "ticket"


class TicketNotFoundError(TicketError):
    """Raised when there is no ticket of this id, or it was deleted."""

    code = "ticket_not_found"


class TicketStateError(TicketError):
    """Raised when a ticket cannot go from its state to the wanted one; the message names those that it can go to."""

    code = "ticket_state"


class TicketCycleError(TicketError):
    """Raised when a ticket would depend on itself, over others or not."""

    code = "ticket_cycle"


# --- tasks -------------------------------------------------------------------------------------------------------


class TaskError(CallboardError):
    """Raised when a task could not be run or waited for and no narrower error fits."""

    code = "task"


class TaskFailedError(TaskError):
    """Raised when a waited-for task ended without a result.

    Attributes:
        task_id: The task.
        cause_code: Code of the error that ended it.
        status: Its final status: failed, cancelled or expired.
    """

    code = "task_failed"

    def __init__(self, message: str, *, task_id: str = "", cause_code: str = "", status: str = "failed") -> None:
        super().__init__(message)
        self.task_id = task_id
        self.cause_code = cause_code
        self.status = status


class TaskTimeoutError(TaskError):
    """Raised when a run took longer than its capability's ``timeout_s``; the run was cancelled."""

    code = "task_timeout"
    retryable = True


class TaskCancelledError(TaskError):
    """Raised when a task was cancelled by a request."""

    code = "task_cancelled"


class TaskNotFoundError(TaskError):
    """Raised when no task with this id is waiting, running or recorded."""

    code = "task_not_found"


class CrashLimitError(TaskError):
    """Raised when a task's worker died under it as often as the crash limit allows."""

    code = "crash_limit"


class HandlerExitError(TaskError):
    """Raised when a handler tried to end its process (``sys.exit``); the task is not tried again."""

    code = "handler_exit"


class RetryableError(TaskError):
    """Raised by a handler to ask for another attempt.

    Attributes:
        after_s: Seconds until the next attempt, or None to let the retry policy say.
    """

    code = "retryable"
    retryable = True

    def __init__(self, message: str = "", *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class TerminalError(TaskError):
    """Raised by a handler to say that no further attempt can help; the task becomes a dead letter at once."""

    code = "terminal"


# --- actors ------------------------------------------------------------------------------------------------------


class ActorError(CallboardError):
    """Raised when an actor could not be reached or could not answer and no narrower error fits."""

    code = "actor"


class ActorDefinitionError(InputError):
    """Raised when a class cannot be an actor type: two handlers for one message type, an unusable annotation."""

    code = "actor_definition"


class UnknownMessageError(ActorError):
    """Raised when an actor has no handler for a message, or the message does not say which one it is for.

    Attributes:
        handlers: The message types that the actor does handle.
    """

    code = "unknown_message"

    def __init__(self, message: str, *, handlers: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.handlers = handlers


class AskFailedError(ActorError):
    """Raised when an asked actor answered with an error.

    Attributes:
        address: The actor, ``type/key``.
        cause_code: Code of the error it answered with.
        cause_type: Class name of the error that its handler raised, "" when it was none.
    """

    code = "ask_failed"

    def __init__(self, message: str, *, address: str = "", cause_code: str = "", cause_type: str = "") -> None:
        super().__init__(message)
        self.address = address
        self.cause_code = cause_code
        self.cause_type = cause_type


class AskTimeoutError(ActorError):
    """Raised when no answer came in time. The mail stands and may still be handled; ask again under the same key."""

    code = "ask_timeout"
    retryable = True


class NoHostError(ActorError):
    """Raised when no worker hosts the actor type now. A tell would wait in the mailbox for one."""

    code = "no_host"
    retryable = True


class ActorStoppedError(ActorError):
    """Raised when an actor is paused, failed or killed and its mail waits; the message says why and what helps."""

    code = "actor_stopped"


class MailboxFullError(ActorError):
    """Raised when an actor's mailbox is at its cap and its policy refuses more. The mail was not handled.

    Attributes:
        depth: Mails waiting.
        cap: The cap.
    """

    code = "mailbox_full"
    retryable = True

    def __init__(self, message: str, *, depth: int = 0, cap: int = 0) -> None:
        super().__init__(message)
        self.depth = depth
        self.cap = cap


class MailLoopError(ActorError):
    """Raised when a chain of messages is too deep, or turns in a circle: it was cut here."""

    code = "mail_loop"


class ReplyGoneError(ActorError):
    """Raised when a repeated ask was handled long ago and its reply is no longer kept. It had its effect once."""

    code = "reply_gone"


class StateDecodeError(ActorError):
    """Raised when an actor's stored state does not fit its ``State`` class. The actor is failed until it does."""

    code = "state_decode"


class StateTooLargeError(ActorError):
    """Raised when a turn's new state is over the limit; the turn is not committed.

    Attributes:
        size_bytes: Size of the state as JSON.
        limit_bytes: The limit.
    """

    code = "state_too_large"

    def __init__(self, message: str, *, size_bytes: int = 0, limit_bytes: int = 0) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class MigrationError(ActorError):
    """Raised when a state could not be brought to its class's version; the stored state is untouched."""

    code = "migration"


class TurnFencedError(ActorError):
    """Raised when a turn's commit was refused because another host wrote the actor's state since; it is discarded."""

    code = "turn_fenced"


class TurnCancelledError(ActorError):
    """Raised when a turn was cancelled from outside or its deadline passed."""

    code = "turn_cancelled"


class TurnAbandonedError(ActorError):
    """Raised when a turn that another host had begun is not gone on with, as its actor's class decided."""

    code = "turn_abandoned"


class TurnTimeoutError(ActorError):
    """Raised when an attempt at a turn took longer than its handler's or its actor's limit; it was stopped."""

    code = "turn_timeout"
    retryable = True


class StepUnknownError(ActorError):
    """Raised when a step that must not run twice began before a crash and nobody knows whether it took effect.

    Attributes:
        step: Its name.
    """

    code = "step_unknown"

    def __init__(self, message: str, *, step: str = "") -> None:
        super().__init__(message)
        self.step = step


class WaitTimeoutError(ActorError):
    """Raised when a turn waited for a message and none came in time."""

    code = "wait_timeout"


class RegistryError(CallboardError):
    """Raised when something about the registry of agents went wrong; the subclasses say what."""

    code = "registry"


class NoAgentError(RegistryError):
    """Raised when no agent can take a request: nobody has the capability, fits what was asked for, or is well.

    Attributes:
        near: The nearest names of capabilities that exist, when nobody has this one.
        refused: How many agents were left out for each reason.
    """

    code = "no_agent"
    retryable = True

    def __init__(self, message: str, *, near: tuple[str, ...] = (), refused: dict[str, int] | None = None) -> None:
        """Keep what came near."""
        super().__init__(message)
        self.near = near
        self.refused = refused or {}


class DuplicateAgentError(RegistryError):
    """Raised when another living process holds the address that an agent wants to register.

    Attributes:
        holder: Who holds it: instance, and host where it is known.
    """

    code = "duplicate_agent"

    def __init__(self, message: str, *, holder: str = "") -> None:
        """Keep who holds it."""
        super().__init__(message)
        self.holder = holder


class RegistryAwayError(RegistryError):
    """Raised when nobody leads the registry now and nothing was learnt from it yet that could answer instead."""

    code = "registry_away"
    retryable = True


class HistoryError(ActorError):
    """Raised when what an actor was at a moment cannot be told: it did not exist yet, or that is kept no more."""

    code = "history"


# --- life --------------------------------------------------------------------------------------------------------


class ServerBinaryError(CallboardError):
    """Raised when no usable nats-server binary was found, or the one found is too old."""

    code = "server_binary"


class ServerStartError(CallboardError):
    """Raised when the embedded server did not come up; the message ends with what it said."""

    code = "server_start"


class DataFolderInUseError(CallboardError):
    """Raised when another embedded server already runs on the same data folder."""

    code = "data_folder_in_use"


class PortInUseError(CallboardError):
    """Raised when a port that must be bound is taken.

    Attributes:
        port: The port.
    """

    code = "port_in_use"

    def __init__(self, message: str, *, port: int = 0) -> None:
        super().__init__(message)
        self.port = port


class SimulationError(CallboardError):
    """Raised when a simulated run failed: something let an error out, or did not come about in time."""

    code = "simulation"


class SimulationDeadlockError(SimulationError):
    """Raised when nothing can ever happen again and the simulation's main has not ended; names who waits where."""

    code = "simulation_deadlock"


class SimulationStuckError(SimulationError):
    """Raised when a simulation has used up its steps or its time; names who waits where."""

    code = "simulation_stuck"
