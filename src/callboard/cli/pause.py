"""``callboard pause``."""

from __future__ import annotations

import click

from callboard.cli.output import emit
from callboard.cli.session import Session, example, global_options, json_option, pass_session


@click.command("pause", epilog=example("callboard pause search --reason 'index is being rebuilt'"))
@click.argument("capability")
@click.option("--reason", default="", help="For those who ask later.")
@json_option
@global_options
@pass_session
def command(session: Session, /, capability: str, reason: str) -> None:
    """Hold CAPABILITY back on all workers, now and after restarts, until `callboard resume`; running tasks go on."""
    from callboard.runtime.client import Client

    async def work() -> None:
        async with session.bus("pause") as bus:
            await Client(bus).pause(capability, reason=reason)

    session.run(work())
    if session.json:
        emit({"capability": capability, "paused": True})
    else:
        click.echo(f"{capability} is paused; `callboard resume {capability}` lets it go on")
