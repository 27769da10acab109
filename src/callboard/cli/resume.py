"""``callboard resume``."""

from __future__ import annotations

import click

from callboard.cli.output import emit
from callboard.cli.session import Session, example, global_options, json_option, pass_session


@click.command("resume", epilog=example("callboard resume search"))
@click.argument("capability")
@json_option
@global_options
@pass_session
def command(session: Session, /, capability: str) -> None:
    """Let a paused CAPABILITY go on."""
    from callboard.runtime.client import Client

    async def work() -> None:
        async with session.bus("resume") as bus:
            await Client(bus).resume(capability)

    session.run(work())
    if session.json:
        emit({"capability": capability, "paused": False})
    else:
        click.echo(f"{capability} goes on")
