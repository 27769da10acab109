"""``callboard ctx``."""

from __future__ import annotations

import click


@click.group("ctx")
def command() -> None:
    """Read, set and watch what agents share: the shared context."""
