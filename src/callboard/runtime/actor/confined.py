"""A block in which the process opens no connection and starts no program, whoever asks for it."""

from __future__ import annotations

import contextvars
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Audit events of the interpreter (PEP 578) by which something leaves the process.
_WAYS_OUT = frozenset(
    {
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.sendto",
        "socket.sendmsg",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
    }
)
_tried: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("callboard_confined", default=None)
_hooked: list[bool] = []


@contextmanager
def confined() -> Iterator[list[str]]:
    """Refuse connections and programs to the code of the block, its tasks and threads; yield what was refused.

    What runs beside it is not touched. Names may still be looked up, where the event loop does so in its threads. The
    first use adds an audit hook to the process, which stays and costs a look-up
    for each connection and each program.

    Raises:
        PermissionError: In the code that tried; clean-up of sockets counts on an ``OSError``.
    """
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    tried: list[str] = []
    token = _tried.set(tried)
    try:
        yield tried
    finally:
        _tried.reset(token)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in _WAYS_OUT:
        return
    tried = _tried.get()
    if tried is None:
        return
    about = repr(arguments[1] if event.startswith("socket.") and len(arguments) > 1 else arguments[:1])
    tried.append(f"{event} {about[:120]}")
    message = (
        f"{event} {about[:120]}: what runs again on its records reaches nothing outside; put what a turn does "
        "outside of its own state into a step"
    )
    raise PermissionError(errno.EACCES, message)
