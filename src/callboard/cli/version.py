"""``callboard version``."""

from __future__ import annotations

import platform

import click

from callboard.cli.output import emit
from callboard.cli.session import Session, json_option, pass_session
from callboard.runtime.version import VERSION


@click.command("version")
@json_option
@pass_session
def command(session: Session) -> None:
    """Print the version of Callboard and of the Python it runs on."""
    if session.json:
        emit({"callboard": VERSION, "python": platform.python_version()})
    else:
        click.echo(f"callboard {VERSION} (Python {platform.python_version()})")
