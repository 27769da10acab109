"""The root of all errors, and those of the bus and of input. Take them from ``errors``, which has every one."""

from __future__ import annotations

from typing import ClassVar


class CallboardError(Exception):
    """Raised when anything in Callboard fails; catch this to catch all of it."""

    code: ClassVar[str] = "callboard"
    retryable: ClassVar[bool] = False


# --- the bus -----------------------------------------------------------------------------------------------------


class BusError(CallboardError):
    """Raised when the broker refused or could not answer and no narrower error fits."""

    code = "bus"


class ApiError(BusError):
    """Raised when the JetStream API refused a request and no narrower error fits.

    Attributes:
        status: The API's status, as in HTTP.
        err_code: The API's number for the reason.
    """

    code = "bus_api"

    def __init__(self, message: str, *, code: int = 0, err_code: int = 0) -> None:
        super().__init__(message)
        self.status = code
        self.err_code = err_code


class BusConnectError(BusError):
    """Raised when no connection to the broker could be made within the start-up deadline."""

    code = "bus_connect"
    retryable = True


class BusAuthError(BusError):
    """Raised when the broker refused the credentials, or the two sides do not trust each other's certificates.

    Check user, password, token or nkey; for certificates the message says which setting.
    """

    code = "bus_auth"


class BusClosedError(BusError):
    """Raised when an operation is tried on a bus that was closed."""

    code = "bus_closed"


class BusTimeoutError(BusError):
    """Raised when the broker did not answer in time; the outcome is unknown, so repeat it under the same id."""

    code = "bus_timeout"
    retryable = True


class NoLeaderError(BusError):
    """Raised when the server reaches no leader: an election is under way, or the cluster has lost its majority.

    Nothing was changed. A majority that is lost comes back by starting servers, never by removing those away.
    """

    code = "no_leader"
    retryable = True


class NoRespondersError(BusError):
    """Raised when nobody listens on the subject of a request, or no stream stores a published subject."""

    code = "no_responders"
    retryable = True


class PermissionDeniedError(BusError):
    """Raised when the broker's permissions refuse a subject.

    Attributes:
        subject: The subject that was refused, as the server spelled it.
    """

    code = "permission_denied"

    def __init__(self, message: str, *, subject: str = "") -> None:
        super().__init__(message)
        self.subject = subject


class ConflictError(BusError):
    """Raised when a compare-and-set or write-once write lost: another write stands on the subject.

    Attributes:
        last_seq: Sequence of the write that stands, or 0 where the broker did not say.
    """

    code = "conflict"

    def __init__(self, message: str, *, last_seq: int = 0) -> None:
        super().__init__(message)
        self.last_seq = last_seq


class BackpressureError(BusError):
    """Raised when a stream is full and refused the write. Nothing was stored; slow down and publish again."""

    code = "backpressure"
    retryable = True


class QuotaExceededError(BackpressureError):
    """Raised when an account has used up its room, streams or consumers, so that a write or a new stream is refused.

    Nothing was stored. Make room, or have an operator raise the limit: ``callboard tenant create`` with higher numbers.
    """

    code = "quota_exceeded"


class BackupError(CallboardError):
    """Raised when a backup cannot be made, is damaged or incomplete, or would be restored over what is there.

    Attributes:
        stream: The stream it is about; empty when about all.
        err_code: The API's number for the reason, where the server refused.
    """

    code = "backup"

    def __init__(self, message: str, *, stream: str = "", err_code: int = 0) -> None:
        super().__init__(message)
        self.stream = stream
        self.err_code = err_code


class NotFoundError(BusError):
    """Raised when a stream, consumer, bucket, object or message does not exist."""

    code = "not_found"


class BlobCorruptError(BusError):
    """Raised when a stored object's bytes do not have the size or hash that its reference promises."""

    code = "blob_corrupt"


class TopologyError(BusError):
    """Raised when the broker lacks a stream or consumer, or has it with settings that break a promise."""

    code = "topology"


# --- input -------------------------------------------------------------------------------------------------------


class InputError(CallboardError):
    """Raised when something handed to Callboard is not acceptable as it is."""

    code = "input"


class InvalidNameError(InputError):
    """Raised when a name cannot be used as a subject token.

    Attributes:
        name: The refused name.
    """

    code = "invalid_name"

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class InvalidHeaderError(InputError):
    """Raised when a header's name or value has a character that headers cannot carry (CR, LF, NUL, a colon)."""

    code = "invalid_header"


class PayloadTooLargeError(InputError, BusError):
    """Raised when a payload is over the limit.

    Attributes:
        size_bytes: Size of the payload.
        limit_bytes: The limit it passed.
    """

    code = "payload_too_large"

    def __init__(self, message: str, *, size_bytes: int = 0, limit_bytes: int = 0) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class DecodeError(InputError):
    """Raised when bytes are not valid JSON or msgpack, or do not fit the expected type."""

    code = "decode"


class EncodeError(InputError):
    """Raised when a value cannot be encoded, for example a handler's result of an unknown type."""

    code = "encode"


class DeadlineError(InputError):
    """Raised when a deadline has passed: at submission, before a run, or during one."""

    code = "deadline"


class ConfigError(InputError):
    """Raised when a setting is unknown, malformed or contradicts another; names the file and the key."""

    code = "config"


class MissingExtraError(CallboardError):
    """Raised when a feature needs an optional dependency; the message holds the exact install command."""

    code = "missing_extra"


class ModuleLoadError(InputError):
    """Raised when a module with capabilities cannot be imported, or holds none."""

    code = "module_load"
