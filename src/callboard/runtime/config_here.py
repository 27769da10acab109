"""The settings that this process runs with, for code that nobody hands any: those that its command line named count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from callboard.runtime.config import Settings

_used: list[Settings] = []


@contextmanager
def using(settings: Settings) -> Iterator[None]:
    """Take the settings as those of this process, as a worker does while it runs."""
    _used.append(settings)
    try:
        yield
    finally:
        _used.remove(settings)


def settings() -> Settings:
    """Return the settings of this process; where none are in use, those of its files and environment, read again.

    Raises:
        ConfigError: If those are wrong.
    """
    return _used[-1] if _used else Settings.load()
