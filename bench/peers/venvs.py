"""A virtual environment for each peer, made from a pinned list through the user's own pip configuration."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from bench.job import ROOT
from bench.peers.peer import Peer, PeerUnavailableError

FOLDER = ROOT / ".venv-peers"
LISTS = Path(__file__).parent / "requirements"
_INSTALL_S = 900
_VERSIONS = (
    "import sys; from importlib.metadata import version as v; print(*(n + ' ' + v(n) for n in sys.argv[1:]), sep=', ')"
)


def python_of(peer: Peer) -> str:
    """Return the peer's interpreter, made at the first use and when its list has changed.

    Raises:
        PeerUnavailableError: If it cannot be installed; with what pip said.
    """
    if not peer.has_venv:
        return sys.executable
    wanted = requirements_of(peer)
    folder = FOLDER / peer.name
    python = folder / "bin" / "python"
    stamp = folder / ".made"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text("ascii") == digest:
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], "a virtual environment")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--no-deps", "--requirement", str(wanted)], "the packages")
    stamp.write_text(digest, "ascii")
    return str(python)


def requirements_of(peer: Peer) -> Path:
    """Return the peer's pinned list: names and versions, no address."""
    return LISTS / f"{peer.name.replace('-', '_')}.txt"


def versions(peer: Peer, python: str) -> str:
    """Return the peer's packages and their versions as installed, and its server's.

    Raises:
        PeerUnavailableError: If a package or the server is missing.
    """
    told = subprocess.run([python, "-c", _VERSIONS, *peer.packages], capture_output=True, text=True, check=False)
    if told.returncode:
        message = f"its environment is not whole: {told.stderr.strip().splitlines()[-1]}"
        raise PeerUnavailableError(message)
    return ", ".join(part for part in (told.stdout.strip(), peer.server_version()) if part)


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        message = f"{what} could not be installed within {_INSTALL_S} s"
        raise PeerUnavailableError(message) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        message = f"{what} could not be installed: {' '.join(said[-2:])}"
        raise PeerUnavailableError(message)
