"""Names for the workers of a peer that wants each to have its own, and the name again for the one that replaces it."""

from __future__ import annotations

import fcntl
import os

from bench.peers.apps.side import TOLD

_held: list[int] = []


def take() -> int:
    """Return the lowest number that no living process of this stage has, as a StatefulSet names its pods."""
    number = 0
    while True:
        file = os.open(f"{TOLD['folder']}/{number}.slot", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            number += 1
        else:
            # held until the process ends, however it ends
            _held.append(file)
            return number
