"""Structured logs: JSON or console, a level per logger, bound ids, rotation, and no secrets.

A ``Logger`` is a thin face on the standard library's: a disabled call costs one look-up, and nothing heavy is imported
until ``configure``. Our handlers sit on the root logger, so what other libraries log is redacted and rendered alike.
Every event passes ``redact``; what cannot be redacted or rendered is withheld, all but its name.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path
from typing import Literal, TextIO

from callboard.runtime import events
from callboard.runtime.errors import ConfigError
from callboard.runtime.redact import redact

Form = Literal["auto", "json", "console"]
LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# a client or command that configures no logging stays quiet; the library would print the bare name of a warning
logging.getLogger("callboard").addHandler(logging.NullHandler())

_FIELDS = "callboard_fields"  # where a record carries our fields
_IDS: ContextVar[Mapping[str, object] | None] = ContextVar("callboard_log_ids", default=None)
_Render = Callable[[dict[str, object]], str]


class Logger:
    """Logs events under one name.

    The event is a constant of ``callboard.runtime.events``; values travel as fields and never inside a text. The fields
    ``timestamp``, ``level``, ``logger``, ``event`` and ``exception`` belong to the record and cannot be given.
    """

    __slots__ = ("_bound", "_target")

    def __init__(self, target: logging.Logger, bound: Mapping[str, object]) -> None:
        self._target = target
        self._bound = bound

    def bind(self, **fields: object) -> Logger:
        """Return a logger that adds ``fields`` to every event."""
        return Logger(self._target, {**self._bound, **fields})

    def is_enabled(self, level: str) -> bool:
        """Return whether events of ``level`` are printed; ask before gathering costly fields."""
        return self._target.isEnabledFor(LEVELS[level])

    def log(self, level: str, event: str, /, **fields: object) -> None:
        """Log at ``level``, a key of ``LEVELS``."""
        if self._target.isEnabledFor(LEVELS[level]):
            self._emit(LEVELS[level], event, fields)

    def debug(self, event: str, /, **fields: object) -> None:
        """Log something that happens per message."""
        if self._target.isEnabledFor(logging.DEBUG):
            self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log a step in the life of something long-lived."""
        if self._target.isEnabledFor(logging.INFO):
            self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log something odd that was handled."""
        if self._target.isEnabledFor(logging.WARNING):
            self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, *, exc_info: BaseException | bool | None = None, **fields: object) -> None:
        """Log something that a person should look at, with the traceback of ``exc_info``."""
        if self._target.isEnabledFor(logging.ERROR):
            self._emit(logging.ERROR, event, fields, exc_info=exc_info)

    def _emit(
        self, level: int, event: str, fields: Mapping[str, object], *, exc_info: BaseException | bool | None = None
    ) -> None:
        extra = {_FIELDS: {**self._bound, **fields}}
        self._target.log(level, "%s", event, exc_info=exc_info, extra=extra, stacklevel=3)


def get_logger(name: str) -> Logger:
    """Return the logger called ``name`` (a module's ``__name__``); cheap, imports nothing, needs no configuration."""
    return Logger(logging.getLogger(name), {})


@contextmanager
def bound_ids(**ids: object) -> Iterator[None]:
    """Add ``ids`` to every event logged inside, in this task or thread and those it starts, whoever logs it."""
    token = _IDS.set({**(_IDS.get() or {}), **ids})
    try:
        yield
    finally:
        _IDS.reset(token)


def configure(
    *,
    level: str = "info",
    levels: Mapping[str, str] | None = None,
    form: Form = "auto",
    file: Path | None = None,
    keep_days: int = 30,
    stream: TextIO | None = None,
) -> None:
    """Send logs to ``stream`` and, if given, to ``file``. Calling it again replaces what an earlier call set up.

    Args:
        level: Lowest level printed: debug, info, warning or error.
        levels: Levels of single loggers and all below them, such as ``{"callboard.runtime.bus": "debug"}``.
        form: ``json`` is a line per event; ``console`` is for people; ``auto`` is console on a terminal, else JSON.
        file: A log file, always JSON, rotated at midnight UTC. One process per file: rotation is not shared.
        keep_days: Rotated files kept, 30 by default.
        stream: Where to print; standard error by default, because standard output belongs to results.

    Raises:
        ConfigError: If a level is unknown.
    """
    wanted = {name: _level(value, name) for name, value in {"": level, **(levels or {})}.items()}
    target = stream if stream is not None else sys.stderr
    is_console = form == "console" or (form == "auto" and target.isatty())
    handlers: list[logging.Handler] = [_StreamHandler(target)]
    handlers[0].setFormatter(_Formatter(_console(target) if is_console else _json()))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        rotating = _FileHandler(file, when="midnight", backupCount=keep_days, encoding="utf-8", utc=True, delay=True)
        rotating.setFormatter(_Formatter(_json()))
        handlers.append(rotating)
    _install(handlers, wanted)


def set_level(level: str, *, name: str = "") -> None:
    """Change the level of the logger ``name`` and all below it (default: all) while running.

    Raises:
        ConfigError: If the level is unknown.
    """
    logging.getLogger(name or None).setLevel(_level(level, name))


class _Formatter(logging.Formatter):
    """Redacts and renders a record, ours or a library's."""

    def __init__(self, render: _Render) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self._render(redact(_event_of(record, self.formatException)))
        except Exception:  # noqa: BLE001 - a field whose own code fails must leak nothing and stop nobody
            return json.dumps({**_head(record), "event": _name_of(record), "withheld": events.LOG_WITHHELD})


class _StreamHandler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        _complain(record)


class _FileHandler(TimedRotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        _complain(record)


def _complain(record: logging.LogRecord) -> None:
    """Say that an event could not be written; the library would print its arguments, secrets included."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"callboard: could not write a log event ({_name_of(record)}): {sys.exc_info()[0]}\n")


def _event_of(record: logging.LogRecord, render_traceback: Callable[..., str]) -> dict[str, object]:
    """Return everything a record says, secrets included."""
    fields: Mapping[str, object] = getattr(record, _FIELDS, {})
    event: dict[str, object] = {**(_IDS.get() or {}), **fields, **_head(record), "event": record.getMessage()}
    if record.exc_info and record.exc_info[0] is not None:
        event["exception"] = render_traceback(record.exc_info)
    if record.stack_info:
        event["stack"] = record.stack_info
    return event


def _head(record: logging.LogRecord) -> dict[str, object]:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"timestamp": at, "level": record.levelname.lower(), "logger": record.name}


def _name_of(record: logging.LogRecord) -> str:
    """Return the event's name where it is one of ours; any other text may be or hold a secret."""
    name = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return name if isinstance(name, str) and name in events.CATALOGUE else events.LOG_WITHHELD


def _json() -> _Render:
    from structlog.processors import JSONRenderer  # noqa: PLC0415 - 250 ms that `callboard --help` must not pay

    renderer = JSONRenderer()
    return lambda event: str(renderer(None, "", {"event": event.pop("event"), **event}))


def _console(target: TextIO) -> _Render:
    from structlog.dev import ConsoleRenderer, plain_traceback  # noqa: PLC0415 - as above

    renderer = ConsoleRenderer(colors=target.isatty(), exception_formatter=plain_traceback)
    return lambda event: str(renderer(None, "", event))


def _level(level: str, name: str) -> int:
    if level.lower() not in LEVELS:
        where = f"of logger {name!r} " if name else ""
        message = f"log level {where}is {level!r}; take one of {', '.join(LEVELS)}"
        raise ConfigError(message)
    return LEVELS[level.lower()]


def _install(handlers: list[logging.Handler], levels: Mapping[str, int]) -> None:
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler.formatter, _Formatter)]:
        root.removeHandler(old)
        # Standard error is not ours to close; StreamHandler.close leaves it open, the file handler closes its file.
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
